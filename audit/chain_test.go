package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/chain"
)

// segmentLines reads the lines of the first segment.
func segmentLines(t *testing.T, dir string) []Line {
	t.Helper()
	var out []Line
	for _, text := range lines(t, dir) {
		l, err := ParseLine(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestLinesAreChained(t *testing.T) {
	o := Options{Dir: t.TempDir(), Producer: "pod-1", Kind: KindSidecar}
	heads := []string{}
	for range 3 {
		s := mustOpen(t, o)
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		heads = append(heads, s.head.String())
	}
	prev := chain.Hash{}
	epoch, n := "", 0
	for _, l := range segmentLines(t, o.Dir) {
		if l.Epoch != epoch {
			epoch, prev = l.Epoch, chain.First(l.Epoch)
			r, err := l.Record()
			if err != nil {
				t.Fatal(err)
			}
			f := r.Event.Fields
			if f["producer"] != "pod-1" || f["producer_kind"] != KindSidecar {
				t.Errorf("epoch %d: producer %q %q", n, f["producer"], f["producer_kind"])
			}
			if n > 0 && f["previous_head"] != heads[n-1] {
				t.Errorf("epoch %d follows %q, want %q", n, f["previous_head"], heads[n-1])
			}
			n++
		}
		if !l.Follows(prev) {
			t.Fatalf("sequence %d of epoch %d is not chained", l.Sequence, n)
		}
		prev = l.Chain
		if got := l.AppendTo(nil); !bytes.HasSuffix(got, []byte(l.Chain.String()+"\n")) {
			t.Errorf("a line is written as %q", got)
		}
	}
	rep := wantWhole(t, o.Dir)
	for i, e := range rep.Epochs {
		if !e.Chained || e.Head != heads[i] || e.Producer != "pod-1" {
			t.Errorf("epoch %d: %+v", i, e)
		}
	}
}

func TestLinesOfBeforeTheChain(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var old []byte
	for _, l := range segmentLines(t, dir) {
		l.JSON = bytes.Replace(l.JSON, []byte(`"producer":`), []byte(`"former":`), 1)
		l.Chained = false
		old = l.AppendTo(old)
	}
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), old, 0o600); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, dir)
	if rep.Epochs[0].Chained || !strings.Contains(rep.String(), "not chained") {
		t.Errorf("report %s", rep.String())
	}
	s = mustOpen(t, Options{Dir: dir}) // goes on, chained
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep = wantWhole(t, dir); len(rep.Epochs) != 2 || !rep.Epochs[1].Chained {
		t.Errorf("report %+v", rep)
	}
}

// TestChainFindsARewriter changes lines as somebody would who can compute
// checksums, and chains up to some point.
func TestChainFindsARewriter(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := Options{Dir: dir, Signer: Signer(key, "")}
	for range 2 {
		s := mustOpen(t, o)
		for range 3 {
			tk, _ := mustBegin(t, s)
			mustEnd(t, tk)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	good := segmentLines(t, dir)
	rechain := func(l []Line, epoch string) []Line {
		head := chain.First(epoch)
		for i := range l {
			if l[i].Epoch == epoch {
				head = chain.Next(head, l[i].JSON)
				l[i].Chain = head
			}
		}
		return l
	}
	first, second := good[0].Epoch, good[len(good)-1].Epoch
	alter := func(l []Line, i int) {
		l[i].JSON = bytes.Replace(l[i].JSON, []byte("api.example.com"), []byte("api.example.org"), 1)
	}
	for _, tc := range []struct {
		name string
		edit func(l []Line) []Line
		want string
	}{
		{"changed", func(l []Line) []Line { alter(l, 1); return l }, ProblemChain},
		{"changed, rechained", func(l []Line) []Line { alter(l, 1); return rechain(l, first) }, ProblemSignature},
		{"changed in the last epoch, rechained", func(l []Line) []Line { alter(l, len(l)-7); return rechain(l, second) }, ProblemSignature},
		{"chain taken off", func(l []Line) []Line {
			for i := range l {
				l[i].Chained = false
			}
			return l
		}, ProblemChain},
		{"end of the first epoch cut", func(l []Line) []Line {
			var out []Line
			for i, x := range l {
				if x.Epoch == first && l[i+1].Epoch == second {
					continue
				}
				out = append(out, x)
			}
			return out
		}, ProblemLink},
		{"signature of another key", func(l []Line) []Line {
			last := &l[len(l)-1]
			other := Signer(ed25519.NewKeyFromSeed(make([]byte, 32)), "")
			sig, err := other([]byte("other text"))
			if err != nil {
				t.Fatal(err)
			}
			i := bytes.Index(last.JSON, []byte("-----BEGIN"))
			j := bytes.LastIndex(last.JSON, []byte("-----END"))
			last.JSON = append(append(bytes.Clone(last.JSON[:i]), []byte(strings.ReplaceAll(sig.Certificates[:strings.LastIndex(sig.Certificates, "-----END")], "\n", `\n`))...), last.JSON[j:]...)
			return rechain(l, second)
		}, ProblemSignature},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var copies []Line
			for _, l := range good {
				l.JSON = bytes.Clone(l.JSON)
				copies = append(copies, l)
			}
			var text []byte
			for _, l := range tc.edit(copies) {
				text = l.AppendTo(text)
			}
			bad := t.TempDir()
			if err := os.WriteFile(filepath.Join(bad, segmentName(1)), text, 0o600); err != nil {
				t.Fatal(err)
			}
			rep := mustVerify(t, bad)
			found := false
			for _, p := range rep.Problems {
				found = found || p.Kind == tc.want
			}
			if !found {
				t.Errorf("want %s; %s", tc.want, rep.String())
			}
		})
	}
	rep := wantWhole(t, dir)
	if rep.Epochs[0].SignedBy == "" || rep.Epochs[1].SignedBy != rep.Epochs[0].SignedBy {
		t.Errorf("signed by %+v", rep.Epochs)
	}
}

func TestSignedClose(t *testing.T) {
	for name, signer := range map[string]func([]byte) (Signature, error){
		"ed25519":   Signer(ed25519.NewKeyFromSeed(make([]byte, 32)), ""),
		"no answer": func([]byte) (Signature, error) { return Signature{}, errors.New("the agent is locked") },
	} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, Options{Signer: signer})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			wantWhole(t, s.opts.Dir)
			l := segmentLines(t, s.opts.Dir)
			r, err := l[len(l)-1].Record()
			if err != nil {
				t.Fatal(err)
			}
			key, _, err := VerifyClose(&r)
			if err != nil || (key != nil) != (name == "ed25519") || key == nil && r.Event.Fields["unsigned"] != "the agent is locked" {
				t.Errorf("key %v, %v, fields %v", key, err, r.Event.Fields)
			}
			r.Sequence++
			if _, _, err := VerifyClose(&r); name == "ed25519" && err == nil {
				t.Error("a close that was moved passes")
			}
		})
	}
}

// TestDeletedSegmentsAnchorTheChain deletes shipped segments, and then changes
// the first line that is left.
func TestDeletedSegmentsAnchorTheChain(t *testing.T) {
	o := Options{Dir: t.TempDir(), MaxBytes: 256 << 10, SegmentBytes: 8 << 10}
	s := mustOpen(t, o)
	pinned, _ := mustBegin(t, s)
	for range 40 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	s.SetShipped(s.Durable().Segment + 100)
	if _, err := os.Stat(s.path(1)); err != nil {
		t.Errorf("the segment of an open request is gone: %v", err)
	}
	if _, err := os.Stat(s.path(2)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a shipped segment stays: %v", err)
	}
	mustEnd(t, pinned)
	s.SetShipped(0)
	if _, err := os.Stat(s.path(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the segment of an ended request stays: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, o.Dir)
	if rep.Shipped == "" || s.Stats().Released == 0 {
		t.Errorf("report %s", rep.String())
	}
	s = mustOpen(t, o) // and the next start knows it too
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o.Dir)
	numbers, err := listSegments(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.Dir, segmentName(numbers[0]))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.IndexByte(text, '\n') + 1
	l, err := ParseLine(bytes.Clone(text[:i]))
	if err != nil {
		t.Fatal(err)
	}
	l.JSON = bytes.Replace(l.JSON, []byte(`"time":"2`), []byte(`"time":"3`), 1)
	if err := os.WriteFile(path, append(l.AppendTo(nil), text[i:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if rep = mustVerify(t, o.Dir); rep.OK() || !strings.Contains(rep.String(), "deleted before it") {
		t.Errorf("a changed first line passes: %s", rep.String())
	}
}

func TestKeptSegments(t *testing.T) {
	o := Options{Dir: t.TempDir(), MaxBytes: 128 << 10, SegmentBytes: 8 << 10, Keep: time.Hour, KeepBytes: 64 << 10}
	s := mustOpen(t, o)
	for range 200 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
		s.SetShipped(s.Durable().Segment + 100)
	}
	if size := s.Stats().Size; size > 64<<10 || size < 40<<10 {
		t.Errorf("the spool has %d bytes, want up to keepBytes", size)
	}
	s.opts.KeepBytes = o.MaxBytes // only the want of room deletes now
	for range 200 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
		s.mu.Lock()
		s.shippedTo = s.cur.number
		s.mu.Unlock()
	}
	if st := s.Stats(); st.Refused != 0 || st.Dropped != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, o.Dir)
}

func TestNobodyAcknowledges(t *testing.T) {
	s := mustOpen(t, Options{})
	if _, err := s.BeginDurable(t.Context(), sample(), v1alpha1.DurabilityCollector); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrEnded) {
		t.Errorf("%v, want a refusal before anything is written", err)
	}
}

func TestFollower(t *testing.T) {
	o := Options{Dir: t.TempDir(), SegmentBytes: 8 << 10}
	s := mustOpen(t, o)
	for range 20 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := mustVerify(t, o.Dir).Lines
	f := NewFollower(o.Dir, Position{})
	got, restarted := 0, 0
	for {
		l, damage, err := f.Next(t.Context(), s.Durable(), 3, 1<<20)
		if err != nil || len(damage) != 0 {
			t.Fatal(err, damage)
		}
		if len(l) == 0 {
			break
		}
		for _, x := range l {
			if got++; x.Sequence != uint64(got) {
				t.Fatalf("sequence %d in place %d", x.Sequence, got)
			}
		}
		lines, _ := s.Lag(f.Position())
		if lines != int64(want-got) {
			t.Errorf("lag %d after %d of %d", lines, got, want)
		}
		if got%9 == 0 { // goes on where another one was
			f, restarted = NewFollower(o.Dir, f.Position()), restarted+1
		}
	}
	if got != want || restarted == 0 {
		t.Errorf("%d lines of %d, %d restarts", got, want, restarted)
	}
	// A place that is none begins the segment again.
	f = NewFollower(o.Dir, Position{Segment: 2, Offset: 17, Line: 1})
	if f.Position() != (Position{Segment: 2}) {
		t.Errorf("position %+v", f.Position())
	}
	// Damage is told and left out.
	path := filepath.Join(o.Dir, segmentName(1))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[30] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	l, damage, err := NewFollower(o.Dir, Position{}).Next(t.Context(), s.Durable(), 100, 1<<20)
	if err != nil || len(l) != want-1 || len(damage) != 1 || damage[0].Segment != segmentName(1) || damage[0].Offset != 0 {
		t.Errorf("%d lines, damage %v, %v", len(l), damage, err)
	}
	mustOpen(t, o)
	var found []Record
	err = Read(o.Dir, mustFilter(t, "event:"+EventDamaged), func(r Record) bool { found = append(found, r); return true })
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if len(found) != 1 || found[0].Event.Fields["segment"] != "1" {
		t.Errorf("damage is recorded as %+v", found)
	}
}

func FuzzParseLine(f *testing.F) {
	l := Line{"e", 1, []byte(`{"type":"event","epoch":"e","sequence":1}`), chain.First("e"), true}
	f.Add(l.AppendTo(nil))
	l.Chained = false
	f.Add(l.AppendTo(nil))
	f.Add([]byte("\t\t\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseLine(text)
		if err != nil {
			return
		}
		if got := l.AppendTo(nil); !bytes.Equal(got, append(bytes.TrimSuffix(bytes.Clone(text), []byte("\n")), '\n')) {
			t.Errorf("%q is written as %q", text, got)
		}
	})
}

// TestNewerSchema: lines of a later producer are kept, shipped and chained, and
// told.
func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	head := chain.First("e")
	var text []byte
	for i, body := range []string{
		`{"schema":"attache.audit/v2","type":"epoch.open","id":"a","epoch":"e","sequence":1,"time":"2027-01-01T00:00:00Z"}`,
		`{"schema":"attache.audit/v2","type":"thought","id":"b","epoch":"e","sequence":2,"time":"2027-01-01T00:00:00Z","thought":{"of":1}}`,
	} {
		head = chain.Next(head, []byte(body))
		text = Line{"e", uint64(i) + 1, []byte(body), head, true}.AppendTo(text)
	}
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), text, 0o600); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, dir)
	if rep.Newer != 2 || !rep.Epochs[0].Chained || !strings.Contains(rep.String(), "another version of the schema") {
		t.Errorf("report %s", rep.String())
	}
	l, damage, err := NewFollower(dir, Position{}).Next(t.Context(), Position{Segment: 1, Offset: int64(len(text))}, 10, 1<<20)
	if err != nil || len(l) != 2 || len(damage) != 0 {
		t.Errorf("%d lines, %v, %v", len(l), damage, err)
	}
	s := mustOpen(t, Options{Dir: dir}) // and a producer of now goes on
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir)
}

// TestTenMegabytes: a record that is far too large is cut to its bounds, and a
// line that somebody put there is left out and named.
func TestTenMegabytes(t *testing.T) {
	huge := strings.Repeat("x", 10<<20)
	s := mustOpen(t, Options{})
	r := &Record{Request: &Request{Host: "a.example", Path: huge, UserAgent: huge}, Result: &Result{Outcome: OutcomeDenied}}
	if err := s.Deny(r); err != nil {
		t.Fatal(err)
	}
	if err := s.Event(huge, map[string]string{huge: huge}); err != nil {
		t.Fatal(err)
	}
	if size := s.Stats().Size; size > 32<<10 {
		t.Errorf("they take %d bytes", size)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := wantWhole(t, s.opts.Dir).Lines
	f, err := os.OpenFile(s.path(1), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(huge + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := mustVerify(t, s.opts.Dir); rep.OK() || rep.Problems[0].Kind != ProblemCorrupt || rep.Lines != want {
		t.Errorf("report %s", rep.String())
	}
	l, damage, err := NewFollower(s.opts.Dir, Position{}).Next(t.Context(), Position{Segment: 1, Offset: 1 << 40}, 100, 1<<20)
	if err != nil || len(l) != want || len(damage) != 1 || damage[0].Bytes != 10<<20+1 {
		t.Errorf("%d lines of %d, damage %v, %v", len(l), want, damage, err)
	}
	s = mustOpen(t, Options{Dir: s.opts.Dir}) // cuts it off, and says so
	if cut := events(t, s.opts.Dir, "event:"+EventTailCut); len(cut) != 1 || cut[0].Event.Fields["bytes"] != "10485761" {
		t.Errorf("it is recorded as %+v", cut)
	}
}

func TestEndurance(t *testing.T) {
	for rate, want := range map[int]time.Duration{10: 2*time.Hour + 47*time.Minute, 100: 16 * time.Minute, 1000: time.Minute} {
		if got := Endurance(192<<20, 0, rate); got < want || got > want+time.Minute {
			t.Errorf("192 MiB last %s at %d/s; docs/shipping.md says otherwise", got, rate)
		}
	}
	s := mustOpen(t, Options{})
	if s.PerRequest() != 0 {
		t.Error("an empty spool knows the size of a request")
	}
	for range 200 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if n := s.PerRequest(); n < 500 || n > 4000 {
		t.Errorf("a request takes %d bytes", n)
	}
	if text := s.Lasts(); strings.Count(text, "/s") != 3 {
		t.Errorf("it says %q", text)
	}
}
