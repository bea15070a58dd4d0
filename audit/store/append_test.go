package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// scribe writes the lines of one epoch.
type scribe struct {
	t     *testing.T
	epoch string
	seq   uint64
	head  chain.Hash
	now   time.Time
}

func newScribe(t *testing.T, epoch string) *scribe {
	return &scribe{t, epoch, 0, chain.First(epoch), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
}

func (s *scribe) line(r audit.Record) audit.Line {
	s.seq++
	s.now = s.now.Add(time.Second)
	r.Schema, r.Epoch, r.Sequence = audit.SchemaVersion, s.epoch, s.seq
	if r.Time.IsZero() {
		r.Time = s.now
	}
	text := r.AppendJSON(nil)
	s.head = chain.Next(s.head, text)
	return audit.Line{Epoch: s.epoch, Sequence: s.seq, JSON: text, Chain: s.head, Chained: true}
}

func (s *scribe) begin(id string) audit.Line {
	return s.line(audit.Record{Type: audit.TypeBegin, ID: id, Owner: "ana", Workload: &audit.Workload{ID: "spiffe://x/a", Namespace: "one"},
		Request: &audit.Request{Host: "a.example.com", Method: "GET", Path: "/v1/" + id}, Decision: &audit.Decision{Verdict: "inject"}})
}

func (s *scribe) end(id, epoch string, begin uint64, outcome string) audit.Line {
	return s.line(audit.Record{Type: audit.TypeEnd, ID: id, BeginEpoch: epoch, BeginSequence: begin, Result: &audit.Result{Outcome: outcome, Status: 200, BytesDown: 5}})
}

func (s *scribe) event(name string, fields map[string]string) audit.Line {
	return s.line(audit.Record{Type: audit.TypeEvent, ID: fmt.Sprintf("rec_%s_%d", s.epoch, s.seq+1), Event: &audit.Event{Name: name, Fields: fields}})
}

var alice = store.Producer{ID: "pod-a", Kind: "sidecar", Namespace: "one"}

func put(t *testing.T, d *store.DB, p store.Producer, lines ...audit.Line) store.Ack {
	t.Helper()
	ack, err := d.Append(t.Context(), p, lines)
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

// stored reads an epoch back.
func stored(t *testing.T, d *store.DB, epoch string) []audit.Line {
	t.Helper()
	var l []audit.Line
	for x, err := range d.Lines(t.Context(), epoch, 0) {
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, x)
	}
	return l
}

func sameLines(a, b []audit.Line) bool {
	return slices.EqualFunc(a, b, func(x, y audit.Line) bool {
		return x.Epoch == y.Epoch && x.Sequence == y.Sequence && bytes.Equal(x.JSON, y.JSON) && x.Chain == y.Chain && x.Chained == y.Chained
	})
}

func indexIsWhole(t *testing.T, d *store.DB) {
	t.Helper()
	if err := d.VerifyIndex(t.Context(), func(r store.Ref, text string) bool {
		t.Errorf("index: %+v: %s", r, text)
		return true
	}); err != nil {
		t.Error(err)
	}
}

func outcomes(t *testing.T, d *store.DB, q string) string {
	t.Helper()
	var l []string
	for _, r := range all(t, d, store.Query{Filter: filter(t, q), Oldest: true}) {
		s := r.ID + ":" + r.Type
		if r.Result != nil {
			s += ":" + r.Result.Outcome
		}
		l = append(l, s)
	}
	return strings.Join(l, " ")
}

func TestLinesAreKeptByteForByte(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		f := seed.New(seed.Options{Records: size(3000), Agents: 7, BatchLines: 300})
		want := map[string][]audit.Line{}
		for b := f.Next(); b != nil; b = f.Next() {
			put(t, d, b.Producer, b.Lines...)
			want[b.Lines[0].Epoch] = append(want[b.Lines[0].Epoch], b.Lines...)
		}
		var batches []audit.Line
		last := int64(0)
		for b, err := range d.Batches(t.Context(), 0) {
			if err != nil || b.ID <= last {
				t.Fatalf("batch %d after %d: %v", b.ID, last, err)
			}
			last = b.ID
			batches = append(batches, b.Lines...)
		}
		heads, err := d.Heads(t.Context())
		if err != nil || len(heads) != len(want) {
			t.Fatalf("%d heads, want %d: %v", len(heads), len(want), err)
		}
		for _, h := range heads {
			w := want[h.Epoch]
			if got := stored(t, d, h.Epoch); !sameLines(got, w) {
				t.Errorf("epoch %s: %d lines are not the %d that were stored", h.Epoch, len(got), len(w))
			}
			got := slices.DeleteFunc(slices.Clone(batches), func(l audit.Line) bool { return l.Epoch != h.Epoch })
			if !sameLines(got, w) {
				t.Errorf("epoch %s: batches have other lines", h.Epoch)
			}
			if h.Hash != w[len(w)-1].Chain || h.Last != uint64(len(w)) || h.Lines != h.Last || h.First != 1 || len(h.Gaps) != 0 || h.Producer.Kind != "sidecar" {
				t.Errorf("head %+v of %d lines", h, len(w))
			}
		}
		if _, err := d.Head(t.Context(), "none"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("head of nothing: %v", err)
		}
		indexIsWhole(t, d)
	})
}

func TestJoin(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		a, b, c := s.begin("rec_a"), s.begin("rec_b"), s.begin("rec_c")
		put(t, d, alice, a, b)
		if got := outcomes(t, d, ""); got != "rec_a:begin:open rec_b:begin:open" {
			t.Errorf("without ends: %s", got)
		}
		endA := s.end("rec_a", "e1", 1, "ok")
		endC := s.end("rec_c", "e1", 3, "ok")
		tail := s.event("task.opened", nil)
		// The begin of c is late: first it is a gap and an end without a begin.
		ack := put(t, d, alice, endA, endC)
		if len(ack.Gaps) != 1 || ack.Gaps[0] != (store.Gap{Epoch: "e1", From: 3, To: 3}) {
			t.Errorf("gaps %+v, want line 3", ack.Gaps)
		}
		if got := outcomes(t, d, ""); got != "rec_a:end:ok rec_b:begin:open rec_c:end:ok" {
			t.Errorf("with a gap: %s", got)
		}
		put(t, d, alice, c, endA, endC, tail)
		h, err := d.Head(t.Context(), "e1")
		if err != nil || len(h.Gaps) != 0 || h.Last != 6 || h.Lines != 6 {
			t.Errorf("head %+v, %v", h, err)
		}
		row, refs, err := d.Get(t.Context(), "rec_c")
		if err != nil || row.Request == nil || row.Request.Path != "/v1/rec_c" || row.Result.Status != 200 || len(refs) != 2 || refs[0].Sequence != 3 || row.Producer != "pod-a" {
			t.Errorf("rec_c: %+v %+v %v", row, refs, err)
		}
		// A start after a crash says what became of b; a stranger cannot.
		mallory := newScribe(t, "e3")
		put(t, d, store.Producer{ID: "pod-m", Kind: "sidecar"}, mallory.end("rec_b", "e1", 2, "ok"))
		if got := outcomes(t, d, "owner:ana id:rec_b"); got != "rec_b:begin:open" {
			t.Errorf("after a stranger's end: %s", got)
		}
		s2 := newScribe(t, "e2")
		put(t, d, alice, s2.end("rec_b", "e1", 2, "unknown"))
		if got := outcomes(t, d, "owner:ana"); got != "rec_a:end:ok rec_b:end:unknown rec_c:end:ok" {
			t.Errorf("after the next start: %s", got)
		}
		// A second end stands by itself.
		put(t, d, alice, s2.end("rec_b", "e1", 2, "ok"))
		if got := outcomes(t, d, "id:rec_b owner:ana"); got != "rec_b:end:unknown" {
			t.Errorf("after a second end: %s", got)
		}
		indexIsWhole(t, d)
	})
}

// A request whose producer is gone for good is unknown, not open.
func TestOpenOrUnknown(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		put(t, d, alice, s.begin("rec_a"))
		n := newScribe(t, "e2")
		n.now = s.now.Add(time.Hour)
		put(t, d, alice, n.event("task.opened", nil), n.begin("rec_b"))
		if got := outcomes(t, d, "owner:ana"); got != "rec_a:begin:unknown rec_b:begin:open" {
			t.Errorf("got %s", got)
		}
		f, err := d.Facets(t.Context(), store.Query{}, []string{"outcome"}, 0)
		if err != nil || f.Total.Count != 3 || len(f.Facets[0].Values) != 2 {
			t.Errorf("facets %+v %v", f, err)
		}
	})
}

func TestAppendIsIdempotent(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		l := []audit.Line{s.begin("rec_a"), s.end("rec_a", "e1", 1, "ok"), s.event("x.y", nil), s.begin("rec_b"), s.end("rec_b", "e1", 4, "ok")}
		put(t, d, alice, l[:3]...)
		for range 2 {
			if ack := put(t, d, alice, l[:2]...); ack.Stored != 0 || ack.Duplicates != 2 {
				t.Errorf("ack %+v", ack)
			}
		}
		if ack := put(t, d, alice, l...); ack.Stored != 2 || ack.Duplicates != 3 {
			t.Errorf("ack %+v", ack)
		}
		if got := stored(t, d, "e1"); !sameLines(got, l) {
			t.Errorf("%d lines", len(got))
		}
		if got := outcomes(t, d, "owner:ana"); got != "rec_a:end:ok rec_b:end:ok" {
			t.Errorf("got %s", got)
		}
		indexIsWhole(t, d)
	})
}

func TestForgedLinesAreRefused(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		l := []audit.Line{s.begin("rec_a"), s.event("x.y", nil), s.event("x.z", nil), s.event("x.w", nil), s.event("x.v", nil)}
		put(t, d, alice, l[0], l[1])
		put(t, d, alice, l[4]) // 3 and 4 are late
		other := newScribe(t, "e1")
		forged := []audit.Line{other.begin("rec_x"), other.event("x.y", nil), other.event("x.q", nil), other.event("x.r", nil)}
		second := newScribe(t, "e1")
		later := []audit.Line{second.begin("rec_a"), second.event("x.q", nil)}
		same := l[1]
		same.JSON = bytes.Replace(l[1].JSON, []byte("x.y"), []byte("x.q"), 1)
		changed := l[2]
		changed.JSON = bytes.Replace(l[2].JSON, []byte("x.z"), []byte("x.q"), 1)
		moved := l[2]
		moved.Sequence = 4
		bare := l[2]
		bare.Chained, bare.Chain = false, chain.Hash{}
		next := newScribe(t, "e1")
		next.seq, next.head = 5, chain.First("e1")
		for name, x := range map[string]struct {
			p     store.Producer
			lines []audit.Line
			want  error
		}{
			"another text under a stored number": {alice, forged[:1], store.ErrForged},
			"a chain of its own":                 {alice, forged, store.ErrForged},
			"another text under a later number":  {alice, later[1:], store.ErrForged},
			"another text under its chain value": {alice, []audit.Line{same}, store.ErrForged},
			"a late line of another chain":       {alice, forged[2:3], store.ErrForged},
			"a late line before a stored one":    {alice, forged[3:], store.ErrForged},
			"a changed text":                     {alice, []audit.Line{changed}, store.ErrForged},
			"a number that the text has not":     {alice, []audit.Line{moved}, store.ErrForged},
			"a line without a chain":             {alice, []audit.Line{bare}, store.ErrForged},
			"a line that does not follow":        {alice, []audit.Line{next.event("x.y", nil)}, store.ErrForged},
			"another producer":                   {store.Producer{ID: "pod-b"}, l[2:3], store.ErrForged},
			"no producer":                        {store.Producer{}, l[2:3], store.ErrBadLine},
			"descending":                         {alice, []audit.Line{l[3], l[2]}, store.ErrBadLine},
			"an epoch twice":                     {alice, []audit.Line{l[2], newScribe(t, "e9").event("x", nil), l[3]}, store.ErrBadLine},
			"no JSON":                            {alice, []audit.Line{{Epoch: "e5", Sequence: 1, JSON: []byte("{")}}, store.ErrBadLine},
			"sequence 0":                         {alice, []audit.Line{{Epoch: "e5", JSON: l[0].JSON}}, store.ErrBadLine},
			"an epoch with a space":              {alice, []audit.Line{{Epoch: "e 5", Sequence: 1, JSON: l[0].JSON}}, store.ErrBadLine},
			"10 MB":                              {alice, []audit.Line{{Epoch: "e5", Sequence: 1, JSON: []byte(`{"schema":"x","epoch":"e5","sequence":1,"id":"` + strings.Repeat("x", 10<<20) + `"}`)}}, store.ErrBadLine},
		} {
			if _, err := d.Append(t.Context(), x.p, x.lines); !errors.Is(err, x.want) {
				t.Errorf("%s: %v, want %v", name, err, x.want)
			}
		}
		put(t, d, alice, l[2], l[3])
		if got := stored(t, d, "e1"); !sameLines(got, l) {
			t.Errorf("%d lines, want those that were written", len(got))
		}
		if _, err := d.Head(t.Context(), "e9"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a part of a refused batch was stored: %v", err)
		}
	})
}

// A batch that is refused leaves those of others alone that are committed with
// it.
func TestRefusalIsOfOneBatch(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				s := newScribe(t, fmt.Sprintf("e%d", i))
				l := []audit.Line{s.begin(fmt.Sprintf("rec_%d", i)), s.event("x.y", nil)}
				if i%4 == 0 {
					l[1].Chain[3]++
				}
				_, err := d.Append(t.Context(), store.Producer{ID: fmt.Sprint("pod", i)}, l)
				if want := i%4 == 0; errors.Is(err, store.ErrForged) != want || !want && err != nil {
					t.Errorf("batch %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		h, err := d.Heads(t.Context())
		if err != nil || len(h) != 30 {
			t.Errorf("%d epochs, want 30: %v", len(h), err)
		}
	})
}

// Lines of before the chain, and of a schema to come, are kept too.
func TestOldAndNewLines(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "old")
		var l []audit.Line
		for i := range 3 {
			x := s.begin(fmt.Sprintf("rec_%d", i))
			x.Chained, x.Chain = false, chain.Hash{}
			l = append(l, x)
		}
		put(t, d, alice, l...)
		if got := stored(t, d, "old"); !sameLines(got, l) {
			t.Errorf("old lines: %d", len(got))
		}
		text := []byte(`{"schema":"attache.audit/v9","type":"vision","id":"rec_new","epoch":"new","sequence":1,"time":"2030-01-01T00:00:00Z","request":["not","an","object"],"workload":{"id":"spiffe://x/ns/pay/sa/a","namespace":"pay"},"owner":"ana"}`)
		x := audit.Line{Epoch: "new", Sequence: 1, JSON: text, Chain: chain.Next(chain.First("new"), text), Chained: true}
		put(t, d, alice, x)
		if got := stored(t, d, "new"); !sameLines(got, []audit.Line{x}) {
			t.Error("a line of a newer schema is not kept as it was")
		}
		row, _, err := d.Get(t.Context(), "rec_new")
		if err != nil || row.Schema != "attache.audit/v9" || row.Type != "vision" {
			t.Errorf("%+v %v", row, err)
		}
		// What it has of this schema is found, by those who may see it.
		for _, x := range []struct {
			may  []string
			want int
		}{{[]string{"pay"}, 1}, {[]string{"other"}, 0}, {nil, 1}} {
			p, err := d.Search(t.Context(), store.Query{Filter: filter(t, "owner:ana type:vision"), Namespaces: x.may})
			if err != nil || len(p.Rows) != x.want {
				t.Errorf("%v sees %d rows, want %d: %v", x.may, len(p.Rows), x.want, err)
			}
		}
	})
}

func TestTooManyGaps(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		var l []audit.Line
		for range 1100 {
			s.event("x.y", nil)
			l = append(l, s.event("x.y", nil))
		}
		if _, err := d.Append(t.Context(), alice, l); !errors.Is(err, store.ErrForged) {
			t.Errorf("got %v", err)
		}
		put(t, d, alice, l[:900]...)
	})
}
