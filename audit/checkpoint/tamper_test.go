package checkpoint_test

import (
	"bytes"
	"context"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
)

// snapshot is what a store answers, in the hands of an attacker.
type snapshot struct {
	heads       []store.Head
	removed     []store.Removal
	lines       map[string][]audit.Line
	checkpoints []store.Checkpoint
}

func (s *snapshot) Heads(context.Context) ([]store.Head, error)      { return s.heads, nil }
func (s *snapshot) Removed(context.Context) ([]store.Removal, error) { return s.removed, nil }
func (s *snapshot) Lines(_ context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error] {
	return func(yield func(audit.Line, error) bool) {
		for _, l := range s.lines[epoch] {
			if l.Sequence >= from && !yield(l, nil) {
				return
			}
		}
	}
}

func (s *snapshot) Checkpoints(_ context.Context, from uint64, limit int) ([]store.Checkpoint, error) {
	var l []store.Checkpoint
	for _, c := range s.checkpoints {
		if c.Number >= from && (limit == 0 || len(l) < limit) {
			l = append(l, c)
		}
	}
	return l, nil
}

// take copies a store.
func (w *world) take() *snapshot {
	w.t.Helper()
	s := &snapshot{lines: map[string][]audit.Line{}}
	var err error
	s.heads, err = w.db.Heads(w.t.Context())
	w.must(err)
	s.checkpoints, err = w.db.Checkpoints(w.t.Context(), 1, 0)
	w.must(err)
	for _, h := range s.heads {
		for l, err := range w.db.Lines(w.t.Context(), h.Epoch, 0) {
			w.must(err)
			s.lines[h.Epoch] = append(s.lines[h.Epoch], l)
		}
	}
	return s
}

func (s *snapshot) clone() *snapshot {
	c := &snapshot{heads: slices.Clone(s.heads), removed: slices.Clone(s.removed), checkpoints: slices.Clone(s.checkpoints), lines: map[string][]audit.Line{}}
	for e, l := range s.lines {
		for _, x := range l {
			x.JSON = bytes.Clone(x.JSON)
			c.lines[e] = append(c.lines[e], x)
		}
	}
	for i := range c.checkpoints {
		c.checkpoints[i].Note, c.checkpoints[i].Heads = bytes.Clone(c.checkpoints[i].Note), bytes.Clone(c.checkpoints[i].Heads)
	}
	return c
}

// rechain makes an epoch fit together again: numbers, hashes, and the head.
func (s *snapshot) rechain(epoch string) {
	head := chain.First(epoch)
	for i := range s.lines[epoch] {
		l := &s.lines[epoch][i]
		was := l.Sequence
		l.Sequence = uint64(i) + 1 //nolint:gosec // an index
		if was != l.Sequence {
			l.JSON = bytes.Replace(l.JSON, sequenceField(was), sequenceField(l.Sequence), 1)
		}
		head = chain.Next(head, l.JSON)
		l.Chain = head
	}
	s.rehead(epoch)
}

func sequenceField(n uint64) []byte {
	return []byte(`"sequence":` + chain.FormatRanges([]chain.Range{{From: n, To: n}}))
}

// rehead makes the store's own head fit its lines.
func (s *snapshot) rehead(epoch string) {
	for i := range s.heads {
		if h := &s.heads[i]; h.Epoch == epoch {
			l := s.lines[epoch]
			h.Lines, h.Last, h.Hash = uint64(len(l)), l[len(l)-1].Sequence, l[len(l)-1].Chain
		}
	}
}

// resign makes every checkpoint anew over what the lines now are, with the
// stolen key.
func (s *snapshot) resign(w *world) {
	w.t.Helper()
	var previous *chain.Checkpoint
	for i := range s.checkpoints {
		old, err := chain.ParseUnverified(s.checkpoints[i].Note)
		w.must(err)
		var leaves []chain.Leaf
		for text := range strings.Lines(string(s.checkpoints[i].Heads)) {
			l, err := chain.ParseLeaf(strings.TrimSuffix(text, "\n"))
			w.must(err)
			lines := s.lines[l.Epoch]
			if len(lines) == 0 {
				continue
			}
			at := lines[min(int(l.Last), len(lines))-1] //nolint:gosec // small
			l.Last, l.Head = at.Sequence, at.Chain
			leaves = append(leaves, l)
		}
		chain.SortLeaves(leaves)
		c := *old
		c.Leaves = uint64(len(leaves))
		c.Root, err = chain.Root(leaves)
		w.must(err)
		if previous != nil {
			c.Previous = previous.Digest()
		}
		s.checkpoints[i].Note, err = chain.Sign(&c, w.signer)
		w.must(err)
		var b strings.Builder
		for _, l := range leaves {
			b.WriteString(l.Text() + "\n")
		}
		s.checkpoints[i].Heads = []byte(b.String())
		previous = &c
	}
}

// verifyOf compares an attacker's copy with the newest checkpoint outside.
func (w *world) verifyOf(s *snapshot) *checkpoint.Report {
	w.t.Helper()
	if w.notes == nil {
		var err error
		w.notes, err = checkpoint.ReadFiles(w.outside)
		w.must(err)
	}
	r, err := checkpoint.Verify(w.t.Context(), s, checkpoint.Options{Keys: []note.Verifier{w.key}, Outside: w.notes[len(w.notes)-1:]})
	w.must(err)
	return r
}

// tampered is a store with three producers and as many checkpoints, and a gap.
func tampered(t *testing.T) (*world, *snapshot) {
	t.Helper()
	w := newWorld(t)
	w.lines("a", 4)
	w.lines("b", 7)
	w.checkpoint()
	w.lines("a", 3)
	w.lines("c", 2)
	w.checkpoint()
	gone := w.of("c").line(w.now, "never came")
	w.lines("c", 3)
	_ = gone
	w.lines("b", 5)
	w.checkpoint()
	s := w.take()
	if r := w.verifyOf(s); !r.OK() || r.Covered != 24 || r.Gaps != 1 || r.AfterGap != 1 {
		t.Fatalf("the untouched copy:\n%s%+v", r.Text(w.now), r)
	}
	return w, s
}

// evil is another line of the same length in the place of l.
func evil(l audit.Line) []byte {
	return bytes.Replace(l.JSON, []byte("test.line"), []byte("test.evil"), 1)
}

func TestEachBoundaryIsGuarded(t *testing.T) {
	w, base := tampered(t)
	for _, name := range []string{"a", "b", "c"} {
		epoch := w.of(name).epoch
		for i, l := range base.lines[epoch] {
			afterGap := name == "c" && l.Sequence == 4 // what it follows never came: nothing proves its text
			attack := func(what, kind string, at uint64, f func(s *snapshot)) {
				t.Run(what, func(t *testing.T) {
					s := base.clone()
					f(s)
					w := *w
					w.t = t
					w.find(w.verifyOf(s), kind, name, at)
				})
			}
			if !afterGap {
				attack("changed", checkpoint.ProblemChanged, l.Sequence, func(s *snapshot) { s.lines[epoch][i].JSON = evil(l) })
			}
			hashAt := l.Sequence
			if afterGap {
				hashAt++ // seen by what follows it
			}
			attack("its hash changed", checkpoint.ProblemChanged, hashAt, func(s *snapshot) { s.lines[epoch][i].Chain[3] ^= 1 })
			attack("deleted", checkpoint.ProblemDeleted, l.Sequence, func(s *snapshot) {
				s.lines[epoch] = slices.Delete(s.lines[epoch], i, i+1)
			})
			attack("deleted and called a gap", checkpoint.ProblemDeleted, l.Sequence, func(s *snapshot) {
				s.lines[epoch] = slices.Delete(s.lines[epoch], i, i+1)
				for j := range s.heads {
					if s.heads[j].Epoch == epoch {
						s.heads[j].Gaps = append(s.heads[j].Gaps, store.Gap{Epoch: epoch, From: l.Sequence, To: l.Sequence})
						s.heads[j].Lines--
					}
				}
			})
			attack("cut off from here", checkpoint.ProblemDeleted, l.Sequence, func(s *snapshot) {
				s.lines[epoch] = s.lines[epoch][:i]
				if i > 0 {
					s.rehead(epoch)
				}
			})
			attack("taken as if by retention", checkpoint.ProblemDeleted, l.Sequence, func(s *snapshot) {
				s.removed = []store.Removal{{Ref: store.Ref{Epoch: epoch, Sequence: 1}, Last: l.Sequence, After: l.Chain}}
				s.lines[epoch] = s.lines[epoch][i+1:]
			})
			attack("twice", checkpoint.ProblemOrder, l.Sequence, func(s *snapshot) {
				s.lines[epoch] = slices.Insert(s.lines[epoch], i, l)
			})
			if i+1 < len(base.lines[epoch]) {
				next := base.lines[epoch][i+1]
				attack("swapped with the next", checkpoint.ProblemOrder, l.Sequence, func(s *snapshot) {
					x := s.lines[epoch]
					x[i], x[i+1] = x[i+1], x[i]
				})
				attack("text swapped with the next", checkpoint.ProblemOrder, l.Sequence, func(s *snapshot) {
					x := s.lines[epoch]
					x[i].JSON, x[i+1].JSON = next.JSON, l.JSON
				})
			}
			if name == "c" {
				continue // numbers cannot be closed up over the gap
			}
			attack("changed, all behind it made to fit", checkpoint.ProblemForged, l.Sequence, func(s *snapshot) {
				s.lines[epoch][i].JSON = evil(l)
				s.rechain(epoch)
			})
			if i+1 < len(base.lines[epoch]) {
				attack("deleted, all behind it made to fit", "", 0, func(s *snapshot) {
					s.lines[epoch] = slices.Delete(s.lines[epoch], i, i+1)
					s.rechain(epoch)
				})
			}
			attack("forged line put before it, all made to fit", checkpoint.ProblemForged, l.Sequence, func(s *snapshot) {
				x := l
				x.JSON = evil(l)
				s.lines[epoch] = slices.Insert(s.lines[epoch], i, x)
				s.rechain(epoch)
			})
			attack("changed, all made to fit, checkpoints signed anew with the stolen key", checkpoint.ProblemCheckpoint, 0, func(s *snapshot) {
				s.lines[epoch][i].JSON = evil(l)
				s.rechain(epoch)
				s.resign(&world{t: t, signer: w.signer})
			})
		}
	}
}

func TestRemovedProducer(t *testing.T) {
	w, base := tampered(t)
	for _, name := range []string{"a", "b", "c"} {
		epoch := w.of(name).epoch
		remove := func(s *snapshot) {
			delete(s.lines, epoch)
			s.heads = slices.DeleteFunc(s.heads, func(h store.Head) bool { return h.Epoch == epoch })
		}
		s := base.clone()
		remove(s)
		w.find(w.verifyOf(s), checkpoint.ProblemDeleted, name, 1)
		s.resign(w) // also its leaves are gone
		if r := w.verifyOf(s); r.OK() {
			t.Errorf("producer %s was removed with the stolen key and nothing was found", name)
		}
		s = base.clone()
		for i := range s.heads {
			if s.heads[i].Epoch == epoch {
				s.heads[i].Producer.ID = "somebody else"
			}
		}
		w.find(w.verifyOf(s), checkpoint.ProblemForged, "", 0)
	}
}

func TestRolledBackStore(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 4)
	w.checkpoint()
	old := w.take()
	oldProducer := *w.of("a")
	w.lines("a", 3)
	w.checkpoint()
	w.find(w.verifyOf(old), checkpoint.ProblemCheckpoint, "", 0)
	w.find(w.verifyOf(old), checkpoint.ProblemCheckpoint, "", 0)

	// It goes on from the old state as if nothing had been, with the key.
	l := oldProducer.line(w.now, "evil")
	old.lines[l.Epoch] = append(old.lines[l.Epoch], l)
	old.rehead(l.Epoch)
	second := w.take().checkpoints[1]
	leaf := chain.Leaf{Producer: "a", Epoch: l.Epoch, From: 1, Last: 5, Head: l.Chain, State: chain.Open}
	root, err := chain.Root([]chain.Leaf{leaf})
	w.must(err)
	first, err := chain.ParseUnverified(old.checkpoints[0].Note)
	w.must(err)
	signed, err := chain.Sign(&chain.Checkpoint{Origin: "attache/test", Number: 2, Time: second.Time, Previous: first.Digest(), Leaves: 1, Root: root, Lines: 5}, w.signer)
	w.must(err)
	old.checkpoints = append(old.checkpoints, store.Checkpoint{Number: 2, Time: second.Time, Note: signed, Heads: []byte(leaf.Text() + "\n")})
	r := w.verifyOf(old)
	w.find(r, checkpoint.ProblemCheckpoint, "", 0)

	// With the forged checkpoint laid beside the honest one outside.
	notes, err := checkpoint.ReadFiles(w.outside)
	w.must(err)
	r, err = checkpoint.Verify(t.Context(), old, checkpoint.Options{Keys: []note.Verifier{w.key}, Outside: append(notes, signed)})
	w.must(err)
	w.find(r, checkpoint.ProblemCheckpoint, "", 0)
}

func TestCheckpointLog(t *testing.T) {
	w, base := tampered(t)
	for name, f := range map[string]func(*snapshot){
		"the first dated back": func(s *snapshot) {
			c, err := chain.ParseUnverified(s.checkpoints[0].Note)
			w.must(err)
			c.Time = c.Time.Add(-time.Hour)
			s.checkpoints[0].Note, err = chain.Sign(c, w.signer)
			w.must(err)
		},
		"one removed":       func(s *snapshot) { s.checkpoints = slices.Delete(s.checkpoints, 1, 2) },
		"the first removed": func(s *snapshot) { s.checkpoints = s.checkpoints[1:] },
		"the last removed":  func(s *snapshot) { s.checkpoints = s.checkpoints[:2] },
		"all removed":       func(s *snapshot) { s.checkpoints = nil },
		"two swapped": func(s *snapshot) {
			s.checkpoints[0].Note, s.checkpoints[1].Note = s.checkpoints[1].Note, s.checkpoints[0].Note
		},
		"leaves of another":  func(s *snapshot) { s.checkpoints[0].Heads = s.checkpoints[1].Heads },
		"leaves gone":        func(s *snapshot) { s.checkpoints[1].Heads = nil },
		"signed by somebody": func(s *snapshot) { other, _ := newKey(t, "attache/test"); s.resign(&world{t: t, signer: other}) },
	} {
		s := base.clone()
		f(s)
		if r := w.verifyOf(s); r.OK() {
			t.Errorf("%s: nothing was found:\n%s", name, r.Text(w.now))
		}
	}
}

// more appends a checkpoint with one leaf, signed with the stolen key.
func (s *snapshot) more(w *world, leaf chain.Leaf) []byte {
	w.t.Helper()
	last, err := chain.ParseUnverified(s.checkpoints[len(s.checkpoints)-1].Note)
	w.must(err)
	root, err := chain.Root([]chain.Leaf{leaf})
	w.must(err)
	c := &chain.Checkpoint{Origin: last.Origin, Number: last.Number + 1, Time: last.Time, Previous: last.Digest(), Leaves: 1, Root: root, Lines: last.Lines}
	signed, err := chain.Sign(c, w.signer)
	w.must(err)
	s.checkpoints = append(s.checkpoints, store.Checkpoint{Number: c.Number, Time: c.Time, Note: signed, Heads: []byte(leaf.Text() + "\n")})
	return signed
}

// What the store's owner signs after the newest checkpoint outside excuses
// nothing that was there before it.
func TestLaterCheckpointsExcuseNothing(t *testing.T) {
	w, base := tampered(t)
	epoch := w.of("a").epoch
	cut := base.lines[epoch][2]
	s := base.clone()
	s.lines[epoch] = s.lines[epoch][3:]
	s.removed = []store.Removal{{Ref: store.Ref{Epoch: epoch, Sequence: 1}, Last: cut.Sequence, After: cut.Chain}}
	last := base.lines[epoch][6]
	s.more(w, chain.Leaf{Producer: "a", Epoch: epoch, From: 4, Last: 7, Head: last.Chain, State: chain.Open})
	w.find(w.verifyOf(s), checkpoint.ProblemDeleted, "a", 2)

	// Once that checkpoint is outside too, it was retention.
	w.notes = append(w.notes, s.checkpoints[3].Note)
	if r := w.verifyOf(s); !r.OK() || r.Covered != 21 {
		t.Errorf("what retention took, and a checkpoint says so:\n%s", r.Text(w.now))
	}
}

// Whoever has the key may not say afterwards that a line never came.
func TestALaterGapExcusesNoLine(t *testing.T) {
	w, base := tampered(t)
	epoch := w.of("a").epoch
	s := base.clone()
	s.lines[epoch] = slices.Delete(s.lines[epoch], 2, 3)
	last := base.lines[epoch][6]
	w.notes = append(w.notes, s.more(w, chain.Leaf{Producer: "a", Epoch: epoch, From: 1, Last: 7, Head: last.Chain, Missing: "3", State: chain.Open}))
	w.find(w.verifyOf(s), checkpoint.ProblemDeleted, "a", 3)
}

// A line cannot get out of the chain by losing its hash.
func TestALineThatLostItsHashIsFound(t *testing.T) {
	w, base := tampered(t)
	for n := range base.lines[w.of("b").epoch] {
		s := base.clone()
		l := &s.lines[w.of("b").epoch][n]
		l.JSON, l.Chain, l.Chained = evil(*l), chain.Hash{}, false
		w.find(w.verifyOf(s), checkpoint.ProblemChanged, "b", l.Sequence)
	}
}

func TestAnEpochThatWentBackIsFound(t *testing.T) {
	w, base := tampered(t)
	epoch := w.of("a").epoch
	for name, leaf := range map[string]chain.Leaf{
		"fewer lines":      {Producer: "a", Epoch: epoch, From: 1, Last: 5, Head: base.lines[epoch][4].Chain, State: chain.Open},
		"another producer": {Producer: "b", Epoch: epoch, From: 1, Last: 7, Head: base.lines[epoch][6].Chain, State: chain.Open},
	} {
		s := base.clone()
		w.notes = append(w.notes[:3:3], s.more(w, leaf))
		if r := w.verifyOf(s); !slices.ContainsFunc(r.Problems, func(p checkpoint.Problem) bool { return p.Kind == checkpoint.ProblemCheckpoint && p.Epoch == epoch }) {
			t.Errorf("%s:\n%s", name, r.Text(w.now))
		}
	}
}

func TestTheStoresOwnHeadIsCompared(t *testing.T) {
	w, base := tampered(t)
	s := base.clone()
	s.heads[0].Hash[0] ^= 1
	w.find(w.verifyOf(s), checkpoint.ProblemChanged, "", 0)
	s = base.clone()
	s.heads[0].Last += 2
	w.find(w.verifyOf(s), checkpoint.ProblemDeleted, "", 0)
}

// Every byte of every line, hash, note and leaf counts.
func TestRandomBytes(t *testing.T) {
	w, base := tampered(t)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a repeatable choice
	turns := 300
	if os.Getenv("AUDIT_FULL") != "" {
		turns = 20_000
	}
	for range turns {
		s := base.clone()
		var where string
		flip := func(b []byte, what string) {
			i := random.IntN(len(b))
			b[i] ^= byte(1 + random.IntN(255)) //nolint:gosec // a byte
			where = what
		}
		e := w.of([]string{"a", "b", "c"}[random.IntN(3)]).epoch
		l := &s.lines[e][random.IntN(len(s.lines[e]))]
		c := &s.checkpoints[random.IntN(len(s.checkpoints))]
		switch random.IntN(4) {
		case 0:
			if l.Sequence == 4 && e == w.of("c").epoch {
				continue // behind the gap
			}
			flip(l.JSON, "line")
		case 1:
			flip(l.Chain[:], "hash")
		case 2:
			flip(c.Heads, "leaves")
		case 3:
			// Behind the text stand signatures, which the outside copy has too.
			flip(c.Note[:bytes.Index(c.Note, []byte("\n\n"))], "note")
		}
		if r := w.verifyOf(s); r.OK() {
			t.Fatalf("a changed byte of a %s was not found", where)
		}
	}
}

func TestVerifyNeedsSomethingFromOutside(t *testing.T) {
	w, base := tampered(t)
	r, err := checkpoint.Verify(t.Context(), base, checkpoint.Options{})
	w.must(err)
	if !r.OK() || len(r.NotCovered) == 0 || strings.Contains(r.Text(w.now), "whole:") {
		t.Errorf("without a checkpoint from outside:\n%s", r.Text(w.now))
	}
	notes, err := checkpoint.ReadFiles(w.outside)
	w.must(err)
	_, other := newKey(t, "attache/test")
	if _, err := checkpoint.Verify(t.Context(), base, checkpoint.Options{Keys: []note.Verifier{other}, Outside: notes}); err == nil {
		t.Error("a checkpoint outside that another key signed was taken")
	}
}
