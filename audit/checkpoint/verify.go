package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// Options of [Verify].
type Options struct {
	// Keys must all have signed each of Outside. They come from outside the
	// store too.
	Keys []note.Verifier
	// Outside are checkpoints that are had from outside the store, one at least:
	// what was removed or changed since the newest of them was made is found.
	// The others are found in the store's chain too, so that a newest one that
	// was forged with a stolen key does not stand. Without any only what the
	// store says of itself is checked, and the report says so.
	Outside [][]byte
	// Index, if set, compares what searches find with the lines:
	// [store.DB.VerifyIndex].
	Index func(ctx context.Context, found func(at store.Ref, text string) bool) error
	// Progress, if set, is told now and then how many lines were read.
	Progress func(lines uint64)
}

// Source is what is verified: a [store.DB].
type Source interface {
	Heads(ctx context.Context) ([]store.Head, error)
	Removed(ctx context.Context) ([]store.Removal, error)
	Lines(ctx context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error]
	Checkpoints(ctx context.Context, from uint64, limit int) ([]store.Checkpoint, error)
}

// verifier is the state of one Verify.
type verifier struct {
	*Report
	db      Source
	o       Options
	anchors map[string][]anchor
	newest  map[string]chain.Leaf
	removed map[string]store.Removal // the highest of each epoch
	lines   uint64
}

// anchor is what a checkpoint says of one epoch.
type anchor struct {
	leaf   chain.Leaf
	number uint64
}

// Verify reads every checkpoint and every line of a store and says what is not
// as the newest checkpoint from outside says it was. The error says that the
// store could not be read, or that the outside checkpoint is no good.
func Verify(ctx context.Context, db Source, o Options) (*Report, error) {
	v := &verifier{
		Report: &Report{}, db: db, o: o,
		anchors: map[string][]anchor{}, newest: map[string]chain.Leaf{}, removed: map[string]store.Removal{},
	}
	outside, err := v.readOutside()
	if err != nil {
		return nil, err
	}
	if err := v.checkpoints(ctx, outside); err != nil {
		return nil, err
	}
	if err := v.epochs(ctx); err != nil {
		return nil, err
	}
	if o.Index != nil {
		err := o.Index(ctx, func(r store.Ref, text string) bool {
			v.problem(Problem{Kind: ProblemIndex, Epoch: r.Epoch, From: r.Sequence, To: r.Sequence, Text: text})
			return v.More == 0
		})
		if err != nil {
			return nil, fmt.Errorf("compare what searches find with the lines: %w", err)
		}
	} else {
		v.notCovered("what searches find was not compared with the lines")
	}
	v.Lines = v.lines
	return v.Report, nil
}

// outside is the checkpoints from outside by number, and the highest.
type outside struct {
	digest map[uint64]chain.Hash
	newest uint64
}

// readOutside reads the checkpoints that the store must agree with.
func (v *verifier) readOutside() (*outside, error) {
	o := &outside{digest: map[uint64]chain.Hash{}}
	for _, signed := range v.o.Outside {
		c, err := chain.Parse(signed, v.o.Keys...)
		if err != nil {
			return nil, fmt.Errorf("checkpoint from outside: %w", err)
		}
		if had, ok := o.digest[c.Number]; ok && had != c.Digest() {
			v.problem(Problem{Kind: ProblemCheckpoint, Checkpoint: c.Number, Text: "there are two different ones outside: the key was used for two stores, or to rewrite one"})
		}
		o.digest[c.Number] = c.Digest()
		if c.Number >= o.newest {
			o.newest = c.Number
			v.Outside, v.OutsideTime = c.Number, c.Time
		}
	}
	if o.newest == 0 {
		v.notCovered("no checkpoint from outside the store was given: whoever can write the store and has its key can have changed everything")
	}
	return o, nil
}

// checkpoints checks that the store's own are a chain in which those from
// outside stand, and takes their leaves.
func (v *verifier) checkpoints(ctx context.Context, out *outside) error {
	var previous *chain.Checkpoint
	err := eachCheckpoint(ctx, v.db, 1, func(s store.Checkpoint) error {
		c, leaves, bad := v.checkpoint(s, previous)
		if bad != nil {
			v.problem(Problem{Kind: ProblemCheckpoint, Checkpoint: s.Number, Text: bad.Error()})
		}
		if c == nil {
			return nil
		}
		previous = c
		v.Checkpoints++
		v.Newest = c.Number
		if want, ok := out.digest[c.Number]; ok {
			delete(out.digest, c.Number)
			if c.Digest() != want {
				v.problem(Problem{Kind: ProblemCheckpoint, Checkpoint: c.Number, Text: "the store's is another one than the one from outside: the store was rewritten"})
			}
		}
		if out.newest > 0 && c.Number > out.newest {
			return nil // its leaves prove nothing against who has the key
		}
		for _, l := range leaves {
			v.anchor(l, c.Number)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(out.digest)) {
		v.problem(Problem{Kind: ProblemCheckpoint, Checkpoint: n, Text: "the store does not have this one from outside: it was rolled back to an older state, or is another store"})
	}
	return nil
}

// checkpoint checks one against the one before it. The checkpoint is nil where
// it cannot be read at all.
func (v *verifier) checkpoint(s store.Checkpoint, previous *chain.Checkpoint) (*chain.Checkpoint, []chain.Leaf, error) {
	c, err := chain.ParseUnverified(s.Note)
	if err != nil {
		return nil, nil, err
	}
	if len(v.o.Keys) > 0 {
		if err := signedByOne(s.Note, v.o.Keys); err != nil {
			return c, nil, err
		}
	}
	switch {
	case c.Number != s.Number:
		return c, nil, fmt.Errorf("it says that it is number %d", c.Number)
	case previous == nil && c.Number != 1:
		return c, nil, errors.New("those before it are missing")
	case previous != nil && c.Number != previous.Number+1:
		return c, nil, fmt.Errorf("%d to %d are missing", previous.Number+1, c.Number-1)
	case previous != nil && c.Previous != previous.Digest():
		return c, nil, errors.New("it was made after another one than the one before it: one of them was changed")
	}
	leaves, err := decodeLeaves(s.Heads)
	if err != nil {
		return c, nil, err
	}
	root, err := chain.Root(leaves)
	if err != nil {
		return c, nil, err
	}
	if root != c.Root || uint64(len(leaves)) != c.Leaves {
		return c, nil, errors.New("its leaves are not those that it was made over: one was removed or changed")
	}
	return c, leaves, nil
}

// signedByOne is for the store's own copies, to which a second signer's
// signature was never brought back.
func signedByOne(signed []byte, keys []note.Verifier) error {
	var err error
	for _, k := range keys {
		if _, err = chain.Parse(signed, k); err == nil {
			return nil
		}
	}
	return err
}

// anchor takes up what a checkpoint says of an epoch.
func (v *verifier) anchor(l chain.Leaf, number uint64) {
	had, ok := v.newest[l.Epoch]
	if ok && (l.Last < had.Last || l.From < had.From || l.Producer != had.Producer) {
		v.problem(Problem{Kind: ProblemCheckpoint, Checkpoint: number, Epoch: l.Epoch, From: l.Last, To: had.Last, Text: "the epoch went back behind an earlier checkpoint: the store had been rolled back then"})
	}
	if ok {
		v.excused(had, l, number)
	}
	v.newest[l.Epoch] = l
	v.anchors[l.Epoch] = append(v.anchors[l.Epoch], anchor{l, number})
}

// excused finds lines that an earlier checkpoint had, and a later one says never
// came: a gap may be filled, and never grows.
func (v *verifier) excused(had, now chain.Leaf, number uint64) {
	if had.Missing == now.Missing {
		return
	}
	before, err1 := chain.ParseRanges(had.Missing)
	after, err2 := chain.ParseRanges(now.Missing)
	if err1 != nil || err2 != nil {
		return // leaves are checked when they are read
	}
	for _, r := range after {
		r.To = min(r.To, had.Last)
		if r.From > r.To {
			break
		}
		for _, x := range subtract(r, before) {
			v.problem(Problem{Kind: ProblemDeleted, Checkpoint: number, Epoch: now.Epoch, From: x.From, To: x.To, Text: "the checkpoint says that they never came, and an earlier one was made over them"})
		}
	}
}

// epochs reads the lines of every epoch that the store or a checkpoint knows.
func (v *verifier) epochs(ctx context.Context) error {
	heads, err := v.db.Heads(ctx)
	if err != nil {
		return fmt.Errorf("read the heads of the audit store: %w", err)
	}
	removed, err := v.db.Removed(ctx)
	if err != nil {
		return fmt.Errorf("read what retention took: %w", err)
	}
	for _, r := range removed {
		if r.Last >= v.removed[r.Epoch].Last {
			v.removed[r.Epoch] = r
		}
	}
	there := map[string]store.Head{}
	for _, h := range heads {
		there[h.Epoch] = h
	}
	for _, e := range slices.Sorted(maps.Keys(v.newest)) {
		if _, ok := there[e]; !ok {
			there[e] = store.Head{Epoch: e}
		}
	}
	for _, e := range slices.Sorted(maps.Keys(there)) {
		if err := v.epoch(ctx, there[e]); err != nil {
			return err
		}
	}
	return nil
}

// walk is the state of reading one epoch.
type walk struct {
	*verifier
	leaf    chain.Leaf // newest anchor; Last 0: none
	anchors []anchor   // not reached yet
	next    uint64     // sequence expected
	head    chain.Hash // after the line before next
	proven  bool       // head follows from what is known
	from    uint64     // first line since the last good anchor
	gaps    []chain.Range
	bad     bool
}

func (v *verifier) epoch(ctx context.Context, h store.Head) error {
	v.Epochs++
	w := &walk{verifier: v, leaf: v.newest[h.Epoch], anchors: v.anchors[h.Epoch], next: 1, head: chain.First(h.Epoch), proven: true, from: 1}
	if w.leaf.Last > 0 {
		gaps, err := chain.ParseRanges(w.leaf.Missing)
		if err != nil {
			return err
		}
		w.gaps = gaps
		if h.Producer.ID != "" && h.Producer.ID != w.leaf.Producer {
			v.problem(Problem{Kind: ProblemForged, Epoch: h.Epoch, Text: fmt.Sprintf("is said to be of %q; the checkpoint says %q", h.Producer.ID, w.leaf.Producer)})
		}
	}
	w.startAfterRetention(h.Epoch)
	for line, err := range v.db.Lines(ctx, h.Epoch, 0) {
		if bad := (*store.DamageError)(nil); errors.As(err, &bad) {
			v.problem(Problem{Kind: ProblemChanged, Epoch: h.Epoch, From: bad.From, To: bad.To, Text: bad.Err.Error()})
			w.next, w.proven, w.bad = bad.To+1, false, true
			continue
		}
		if err != nil {
			return fmt.Errorf("read the lines of epoch %s: %w", h.Epoch, err)
		}
		w.line(line)
		if v.lines++; v.o.Progress != nil && v.lines%(1<<16) == 0 {
			v.o.Progress(v.lines)
		}
	}
	w.end(h)
	return nil
}

// startAfterRetention begins behind what retention took, as far as a checkpoint
// knows of it.
func (w *walk) startAfterRetention(epoch string) {
	r, ok := w.removed[epoch]
	if !ok {
		return
	}
	w.next, w.from = r.Last+1, r.Last+1
	// The hash is the store's own word; it is proven by the anchors behind it.
	w.head = r.After
	if w.leaf.Last > 0 && r.Last+1 > w.leaf.From {
		w.problem(Problem{
			Kind: ProblemDeleted, Epoch: epoch, From: w.leaf.From, To: min(r.Last, w.leaf.Last),
			Text: "the store says that retention took them, and no checkpoint does; if it was since, a newer checkpoint from outside says so",
		})
	}
}

func (w *walk) line(l audit.Line) {
	switch {
	case l.Sequence < w.next:
		w.problem(Problem{Kind: ProblemOrder, Epoch: l.Epoch, From: l.Sequence, To: l.Sequence, Record: recordID(l.JSON), Text: "comes again, or after a later one"})
		return
	case l.Sequence > w.next:
		w.hole(l.Epoch, w.next, l.Sequence-1)
	}
	if !says(l.JSON, l.Epoch, l.Sequence) {
		w.bad = true
		w.problem(Problem{Kind: ProblemOrder, Epoch: l.Epoch, From: l.Sequence, To: l.Sequence, Record: recordID(l.JSON), Text: "the line says that it is another one: it was moved or its place was changed"})
	}
	switch {
	case !l.Chained:
		w.Unchained++
		w.proven = false
		if l.Sequence <= w.leaf.Last { // checkpoints speak of chained epochs only, and those are so from end to end
			w.bad = true
			w.problem(Problem{Kind: ProblemChanged, Epoch: l.Epoch, From: l.Sequence, To: l.Sequence, Record: recordID(l.JSON), Text: "the line has no hash, and had one when the checkpoint was made"})
		}
	case !w.proven:
		w.AfterGap++ // what it follows is not there: its own text is not proven
		w.proven = true
	case chain.Next(w.head, l.JSON) != l.Chain:
		w.bad = true
		w.problem(Problem{Kind: ProblemChanged, Epoch: l.Epoch, From: l.Sequence, To: l.Sequence, Record: recordID(l.JSON), Text: "the line is not the one that was written, or follows another one"})
	}
	w.head, w.next = l.Chain, l.Sequence+1
	if l.Sequence > w.leaf.Last {
		w.Uncovered++
		return
	}
	w.Covered++
	w.reach(l)
}

// reach compares with the checkpoints that end at this line.
func (w *walk) reach(l audit.Line) {
	for len(w.anchors) > 0 && w.anchors[0].leaf.Last <= l.Sequence {
		a := w.anchors[0]
		w.anchors = w.anchors[1:]
		if a.leaf.Last < l.Sequence {
			continue // its last line is gone, which is a problem of its own
		}
		if a.leaf.Head != l.Chain {
			w.problem(Problem{
				Kind: ProblemForged, Epoch: l.Epoch, From: w.from, To: l.Sequence, Checkpoint: a.number,
				Text: "the lines fit together, but are not those that the checkpoint was made over",
			})
		}
		w.from = l.Sequence + 1
	}
}

// hole is sequences that are not there.
func (w *walk) hole(epoch string, from, to uint64) {
	w.proven = false
	for _, r := range subtract(chain.Range{From: from, To: to}, w.gaps) {
		switch {
		case r.From > w.leaf.Last:
			w.notCovered(fmt.Sprintf("epoch %s: %s are missing, behind the checkpoint", epoch, sequences(r.From, r.To)))
		default:
			w.problem(Problem{Kind: ProblemDeleted, Epoch: epoch, From: r.From, To: min(r.To, w.leaf.Last), Text: "they were there when the checkpoint was made"})
		}
	}
	for range overlap(chain.Range{From: from, To: to}, w.gaps) {
		w.Gaps++
	}
}

// end judges what should have come behind the last line.
func (w *walk) end(h store.Head) {
	if w.leaf.Last >= w.next {
		w.hole(h.Epoch, w.next, w.leaf.Last)
	}
	if w.leaf.Last == 0 {
		w.EpochsUncovered++
	}
	// The store's own head must be what its lines say.
	if h.Chained && h.Last > 0 && h.Last+1 == w.next && h.Hash != w.head && !w.bad {
		w.problem(Problem{Kind: ProblemChanged, Epoch: h.Epoch, From: h.Last, To: h.Last, Text: "the head that the store keeps is not that of its lines"})
	}
	if h.Last+1 > w.next && h.Last > w.leaf.Last && h.Last > 0 {
		w.problem(Problem{Kind: ProblemDeleted, Epoch: h.Epoch, From: max(w.next, w.leaf.Last+1), To: h.Last, Text: "the store's head knows of them"})
	}
}

// says reports whether a line's text names its place. Our own spools write it
// where it is found at once; others may write their members in any order, and
// would else raise an alarm at each verification.
func says(text []byte, epoch string, sequence uint64) bool {
	want := append(append(append([]byte(`,"epoch":"`), epoch...), `","sequence":`...), strconv.FormatUint(sequence, 10)...)
	if i := bytes.Index(text[:min(len(text), 512)], want); i >= 0 && i+len(want) < len(text) {
		if c := text[i+len(want)]; c == ',' || c == '}' {
			return true
		}
	}
	var place struct {
		Epoch    string
		Sequence uint64
	}
	return json.Unmarshal(text, &place) == nil && place.Epoch == epoch && place.Sequence == sequence
}

// recordID names the record for people; "" if the text has none.
func recordID(json []byte) string {
	r, err := audit.Line{JSON: json}.Record()
	if err != nil {
		return ""
	}
	return r.ID
}

// subtract returns what of r is in none of gaps, which ascend.
func subtract(r chain.Range, gaps []chain.Range) []chain.Range {
	var l []chain.Range
	for _, g := range gaps {
		if g.To < r.From || g.From > r.To {
			continue
		}
		if g.From > r.From {
			l = append(l, chain.Range{From: r.From, To: g.From - 1})
		}
		if g.To >= r.To {
			return l
		}
		r.From = g.To + 1
	}
	return append(l, r)
}

func overlap(r chain.Range, gaps []chain.Range) []chain.Range {
	return slices.DeleteFunc(slices.Clone(gaps), func(g chain.Range) bool { return g.To < r.From || g.From > r.To })
}

func sequences(from, to uint64) string {
	if from == to {
		return "sequence " + strconv.FormatUint(from, 10)
	}
	return fmt.Sprintf("sequences %d to %d", from, to)
}

// age says how old the checkpoint from outside is.
func (r *Report) age(now time.Time) time.Duration { return now.Sub(r.OutsideTime).Round(time.Second) }
