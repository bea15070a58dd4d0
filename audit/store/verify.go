package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/attache-dev/attache/audit"
)

// VerifyIndex makes the index anew from the lines and calls fn with each record
// of which the stored index says something else, or nothing: answers are read
// from the index, so one who changes only that could hide a record without
// touching a line. fn stops it by answering false. A part that cannot be read is
// told with an empty Ref.
func (d *DB) VerifyIndex(ctx context.Context, fn func(Ref, string) bool) error {
	v := &indexCheck{d: d, fn: fn, seen: map[int64][]bool{}, told: map[string]bool{}}
	// A snapshot, but without the bound on questions: it reads everything.
	err := d.engine.reading(ctx, func(t *tx) error {
		v.t, v.lines = t, d.newLineReader(t)
		for _, step := range []func(context.Context) error{v.removals, v.blocks, v.segments, v.halves, v.missing, v.documents} {
			if err := step(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

type indexCheck struct {
	removed []Removal

	d     *DB
	t     *tx
	lines *lineReader
	fn    func(Ref, string) bool
	seen  map[int64][]bool // by block: which lines the index has
	told  map[string]bool  // records that tell of documents
}

func (v *indexCheck) tell(r Ref, format string, args ...any) error {
	if !v.fn(r, fmt.Sprintf(format, args...)) {
		return errEnough
	}
	return nil
}

// removals notes what retention took.
func (v *indexCheck) removals(ctx context.Context) (err error) {
	v.removed, err = v.t.removed(ctx)
	return err
}

// wasRemoved reports whether retention took a line.
func (v *indexCheck) wasRemoved(epoch string, n uint64) bool {
	return n > 0 && slices.ContainsFunc(v.removed, func(r Removal) bool { return r.Epoch == epoch && r.Sequence <= n && n <= r.Last })
}

// blocks notes what lines there are.
func (v *indexCheck) blocks(ctx context.Context) error {
	return v.t.each(ctx, func(scan func(...any) error) error {
		var id, first, last int64
		if err := scan(&id, &first, &last); err != nil {
			return err
		}
		v.seen[id] = make([]bool, min(max(last-first+1, 0), blockLines))
		return nil
	}, "SELECT id, first, last FROM block ORDER BY id")
}

// mark notes that the index has a line, and whether it had it before.
func (v *indexCheck) mark(p place) (there, twice bool) {
	l := v.seen[p.block]
	if int(p.line) >= len(l) {
		return false, false
	}
	twice = l[p.line]
	l[p.line] = true
	return true, twice
}

func (v *indexCheck) segments(ctx context.Context) error {
	infos, err := v.t.segmentList(ctx, "ORDER BY id")
	if err != nil {
		return err
	}
	for _, i := range infos {
		if err := v.segment(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// segment compares a segment with one that is made anew of the lines that its
// rows name.
func (v *indexCheck) segment(ctx context.Context, i segmentInfo) error {
	x := newView(i)
	s, err := x.load(ctx, v.t.fetch, &v.d.layout)
	switch {
	case errors.Is(err, errOtherLayout):
		return v.tell(Ref{}, "segment %d was written by another version and cannot be compared", i.id)
	case errors.Is(err, ErrCorrupt):
		return v.tell(Ref{}, "segment %d: %v", i.id, err)
	case err != nil:
		return err
	}
	if what, err := s.misfiled(ctx, v.t.fetch, x); err != nil {
		return err
	} else if what != "" {
		if err := v.tell(Ref{}, "segment %d has %s", i.id, what); err != nil {
			return err
		}
	}
	names := make([][]uint32, len(s.time))
	for _, n := range s.names {
		names[n.row] = append(names[n.row], n.hash)
	}
	order := make([]int, len(s.time))
	for n := range order {
		order[n] = n
	}
	slices.SortFunc(order, func(a, b int) int { return comparePlaces(s.end[a], s.end[b]) }) // each block is read once
	sums := make([]tally, len(s.shapes))
	for _, n := range order {
		sums[s.shape[n]].add(s.time[n], s.size[n])
		ref, want, err := v.row(ctx, s.begin[n], s.end[n])
		if err != nil {
			return err
		}
		if want == nil {
			continue // told
		}
		if what := v.differs(s, n, names[n], want); what != "" {
			if err := v.tell(ref, "the index has another %s", what); err != nil {
				return err
			}
		}
	}
	if !slices.Equal(sums, s.shapes) {
		return v.tell(Ref{}, "segment %d has sums that are not those of its rows", i.id)
	}
	if low, high := s.blocks(); len(s.time) != i.rows || s.time[0] != i.low || s.time[len(s.time)-1] != i.high || low != i.blow || high != i.bhi {
		return v.tell(Ref{}, "segment %d says that it covers other records than it does", i.id)
	}
	return nil
}

// misfiled says what of a segment leads questions past its rows, though the rows
// are right.
func (s *segment) misfiled(ctx context.Context, f fetcher, v *view) (string, error) {
	m, err := v.marks(ctx, f)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return "", err
	}
	for n := 1; n < len(s.time); n++ {
		a, b := uint32(n-1), uint32(n) //nolint:gosec // rows
		if s.time[a] > s.time[b] || s.time[a] == s.time[b] && s.first(b).before(s.first(a)) {
			return "rows that are not in the order of time", nil
		}
	}
	if err != nil || !reflect.DeepEqual(m, newMarks(s.time)) {
		return "marks that are not those of its times", nil
	}
	totals, err := v.totals(ctx, f)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return "", err
	}
	if err != nil || !slices.Equal(totals, s.totals()) {
		return "sums of bases that are not those of their shapes", nil
	}
	for _, c := range s.texts {
		values := c.values
		for drawer, n := range c.counts {
			for _, text := range values[:n] {
				if len(c.counts) > 1 && drawerOf(formOf(text), len(c.counts)) != drawer {
					return "texts where nobody looks for them", nil
				}
			}
			values = values[n:]
		}
	}
	return "", nil
}

// row makes the index row of the lines at two places; nil if it was told that
// there is none.
func (v *indexCheck) row(ctx context.Context, begin, end place) (Ref, *row, error) {
	for _, p := range []place{begin, end} {
		if p.block == 0 {
			continue
		}
		there, twice := v.mark(p)
		if p == begin && !there {
			continue // retention took it, which Removed says
		}
		if !there {
			return Ref{}, nil, v.tell(Ref{}, "the index names line %d of block %d, which is not there", p.line, p.block)
		}
		if twice {
			return Ref{}, nil, v.tell(Ref{}, "the index has line %d of block %d twice", p.line, p.block)
		}
	}
	if end.block == 0 {
		return Ref{}, nil, v.tell(Ref{}, "the index has a row that ends nowhere")
	}
	r, b, err := v.lines.record(ctx, end)
	if errors.Is(err, ErrCorrupt) {
		return Ref{}, nil, v.tell(Ref{}, "block %d: %v", end.block, err)
	}
	if err != nil {
		return Ref{}, nil, err
	}
	ref := Ref{b.epoch.name, b.first + uint64(end.line)}
	if begin.block == 0 {
		x := v.d.layout.fill(&r, begin, end)
		return ref, &x, v.documented(ctx, ref, &r, b.epoch)
	}
	first, fb, err := v.lines.record(ctx, begin)
	switch {
	case errors.Is(err, errNoBlock):
		if !v.wasRemoved(r.BeginEpoch, r.BeginSequence) {
			return ref, nil, v.tell(ref, "the index joins it with a begin that is not there")
		}
		x := v.d.layout.fill(&r, begin, end)
		x.partial = true // what the begin said cannot be made anew
		return ref, &x, nil
	case errors.Is(err, ErrCorrupt):
		return ref, nil, v.tell(ref, "block %d: %v", begin.block, err)
	case err != nil:
		return ref, nil, err
	}
	if r.BeginEpoch != fb.epoch.name || r.BeginSequence != fb.first+uint64(begin.line) || first.ID != r.ID {
		return ref, nil, v.tell(ref, "the index joins it with another begin")
	}
	whole := audit.Join(first, r)
	x := v.d.layout.fill(&whole, begin, end)
	return ref, &x, nil
}

// differs says in what row n of a segment is not as it should be.
func (v *indexCheck) differs(s *segment, n int, names []uint32, want *row) string {
	if want.partial {
		return s.differsInPart(n, names, want)
	}
	if s.time[n] != want.time {
		return "time"
	}
	if s.size[n] != want.bytes {
		return "number of bytes"
	}
	for i := range s.few {
		c := &s.few[i]
		got := c.values[c.of(s.base, int(s.shape[n]))]
		if got != want.few[i] && !(isForm(c.key) && got == anyForm) { // a form that says nothing hides nothing
			return c.key
		}
	}
	for i := range s.texts {
		if c := &s.texts[i]; c.values[c.codes[n]] != want.texts[i] {
			return c.key
		}
	}
	if !slices.Equal(names, want.names) {
		return "set of names"
	}
	return ""
}

// differsInPart is differs for a record of which only the end is left: what the
// end says must be there.
func (s *segment) differsInPart(n int, names []uint32, want *row) string {
	for i := range s.few {
		c := &s.few[i]
		got := parseList(c.values[c.of(s.base, int(s.shape[n]))])
		switch c.key {
		case "type", "outcome", "status", "error":
			for _, v := range parseList(want.few[i]) {
				if v != "" && !slices.Contains(got, v) {
					return c.key
				}
			}
		}
	}
	for _, h := range want.names {
		if !slices.Contains(names, h) {
			return "set of names"
		}
	}
	return ""
}

// documented compares the version of a document with the record that tells of it.
func (v *indexCheck) documented(ctx context.Context, ref Ref, r *audit.Record, e *epochState) error {
	if e.producer.Kind == kindSidecar {
		return nil
	}
	if r.Change != nil {
		doc, ok := documentOf(r)
		if !ok {
			return nil
		}
		want, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		v.told[plain(r.ID)] = true
		var got []byte
		var digest, kind, namespace, name string
		var at int64
		there, err := v.t.one(ctx, "SELECT digest, kind, namespace, name, time, body FROM document WHERE record = ?", []any{plain(r.ID)}, &digest, &kind, &namespace, &name, &at, &got)
		if err != nil {
			return err
		}
		if !there || string(got) != string(want) || at != r.Time.UnixMicro() ||
			digest != plain(doc.Digest) || kind != plain(doc.Kind) || namespace != plain(doc.Namespace) || name != plain(doc.Name) {
			return v.tell(ref, "the history of documents says something else")
		}
		return nil
	}
	for _, x := range bundleOf(r) {
		var n int
		if _, err := v.t.one(ctx, "SELECT count(*) FROM bundle WHERE version = ? AND digest = ?", []any{x[0], x[1]}, &n); err != nil {
			return err
		}
		if n == 0 {
			return v.tell(ref, "the list of a policy set's documents lacks one")
		}
	}
	return nil
}

// documents tells the versions of documents of which no record tells. Where
// retention took records it cannot know.
func (v *indexCheck) documents(ctx context.Context) error {
	if len(v.removed) > 0 {
		return nil
	}
	var l []string
	err := v.t.each(ctx, func(scan func(...any) error) error {
		var record string
		err := scan(&record)
		if !v.told[record] {
			l = append(l, record)
		}
		return err
	}, "SELECT record FROM document ORDER BY number")
	if err != nil {
		return err
	}
	for _, record := range l {
		if err := v.tell(Ref{}, "the history of documents has a version of record %s, which does not tell of it", clip(record)); err != nil {
			return err
		}
	}
	return nil
}

// halves compares the lines that wait for another one.
func (v *indexCheck) halves(ctx context.Context) error {
	type half struct {
		epoch, producer string
		seq, time       int64
		ending          int
		at              place
		spaces          string
		json            []byte
	}
	var l []half
	err := v.t.each(ctx, func(scan func(...any) error) error {
		var h half
		err := scan(&h.epoch, &h.seq, &h.ending, &h.producer, &h.time, &h.spaces, &h.at.block, &h.at.line, &h.json)
		l = append(l, h)
		return err
	}, "SELECT epoch, sequence, ending, producer, time, namespaces, block, line, json FROM half ORDER BY block, line")
	if err != nil {
		return err
	}
	for _, h := range l {
		there, twice := v.mark(h.at)
		if !there || twice {
			if err := v.tell(Ref{}, "the list of open requests names line %d of block %d, which is not there or is no open one", h.at.line, h.at.block); err != nil {
				return err
			}
			continue
		}
		b, err := v.lines.block(ctx, h.at.block)
		if errors.Is(err, ErrCorrupt) {
			continue // told by Lines
		}
		if err != nil {
			return err
		}
		what := ""
		r, err := decodeLine(h.json)
		epoch, seq := r.Epoch, r.Sequence
		if h.ending != 0 {
			epoch, seq = r.BeginEpoch, r.BeginSequence
		}
		switch {
		case int(h.at.line) >= len(b.lines), string(b.lines[h.at.line]) != string(h.json):
			what = "text"
		case err != nil, h.epoch != epoch, h.seq != int64(seq), (h.ending != 0) != (r.Type == audit.TypeEnd): //nolint:gosec // at most 2^62
			what = "place"
		case h.time != r.Time.UnixMicro():
			what = "time"
		case h.spaces != spaced(audit.Namespaces(&r)):
			what = "namespace"
		case h.producer != b.epoch.producer.ID:
			what = "producer"
		}
		if what != "" {
			if err := v.tell(Ref{b.epoch.name, b.first + uint64(h.at.line)}, "the list of open requests has another %s", what); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing tells the lines that no row names.
func (v *indexCheck) missing(ctx context.Context) error {
	for _, id := range slices.Sorted(maps.Keys(v.seen)) {
		if !slices.Contains(v.seen[id], false) {
			continue
		}
		b, err := v.lines.block(ctx, id)
		if errors.Is(err, ErrCorrupt) {
			continue // told by Lines
		}
		if err != nil {
			return err
		}
		for n, seen := range v.seen[id] {
			if seen {
				continue
			}
			if err := v.tell(Ref{b.epoch.name, b.first + uint64(n)}, "the index does not have it"); err != nil { //nolint:gosec // an index
				return err
			}
		}
	}
	return nil
}
