package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// groupLines is how many lines one commit takes at most, if that many wait.
const groupLines = 16 << 10

// job is a batch that waits for its commit.
type job struct {
	x    *prepared
	ack  Ack
	err  error
	done chan struct{}
}

// Append stores lines of one producer, ascending within an epoch. It returns
// when they are durable. It is idempotent by epoch and sequence: what the store
// has already is compared and left. The whole batch is stored, or nothing of it.
// Errors match ErrForged or ErrBadLine if the batch must not be sent again.
// After ctx ends the batch may still be stored.
func (d *DB) Append(ctx context.Context, p Producer, lines []audit.Line) (Ack, error) {
	if d.o.ReadOnly {
		return Ack{}, ErrReadOnly
	}
	if len(lines) == 0 {
		return Ack{}, nil
	}
	if p.ID == "" || len(p.ID) > maxName || strings.ContainsRune(p.ID, 0) {
		return Ack{}, fmt.Errorf("%w: its producer has no usable id", ErrBadLine)
	}
	x, err := d.prepare(p, lines)
	if err != nil {
		return Ack{}, err
	}
	j := &job{x: x, done: make(chan struct{})}
	select {
	case d.jobs <- j:
	case <-d.closing:
		return Ack{}, errClosed
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
	select {
	case <-j.done:
		return j.ack, j.err
	case <-d.finished: // it may have been committed last
		select {
		case <-j.done:
			return j.ack, j.err
		default:
			return Ack{}, errClosed
		}
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
}

var errClosed = errors.New("audit store is closed")

// commits takes what waits, commits it together, and goes on until closing.
func (d *DB) commits(ctx context.Context) {
	defer d.stopped.Done()
	defer close(d.finished)
	for {
		select {
		case j := <-d.jobs:
			d.group(ctx, j)
		case <-d.closing:
			for { // those that were taken before Close
				select {
				case j := <-d.jobs:
					d.group(ctx, j)
				default:
					return
				}
			}
		}
	}
}

func (d *DB) group(ctx context.Context, first *job) {
	l := []*job{first}
	lines := len(first.x.lines)
	for more := true; more && lines < groupLines; {
		select {
		case j := <-d.jobs:
			l = append(l, j)
			lines += len(j.x.lines)
		default:
			more = false
		}
	}
	err := d.engine.writing(ctx, func(t *tx) error { return d.commit(ctx, t, l) })
	for _, j := range l {
		if err != nil && j.err == nil {
			j.ack, j.err = Ack{}, fmt.Errorf("store audit lines: %w", err)
		}
		close(j.done)
	}
	if err == nil {
		d.kick()
	}
}

// commit stores all jobs that can be stored; what is wrong with one is its err
// alone. The error is the database's.
func (d *DB) commit(ctx context.Context, t *tx, l []*job) error {
	c, err := d.newCommit(ctx, t)
	if err != nil {
		return err
	}
	if err := c.readEpochs(ctx, l); err != nil {
		return err
	}
	if err := c.readHalves(ctx, l); err != nil {
		return err
	}
	for _, j := range l {
		err := c.job(ctx, j)
		if errors.Is(err, ErrForged) || errors.Is(err, ErrBadLine) {
			j.err = err
			continue
		}
		if err != nil {
			return err
		}
	}
	return c.finish(ctx)
}

// commit is one transaction's state.
type commit struct {
	d        *DB
	t        *tx
	now      int64 // microseconds
	counters counters
	epochs   map[string]*epochState // of all that the lines name; nil: not in the store
	halves   halves
	b        *builder
	blocks   [][]any         // rows of the table that are not written yet
	touched  map[string]bool // epochs to save
	wrote    bool
}

func (d *DB) newCommit(ctx context.Context, t *tx) (*commit, error) {
	c := &commit{d: d, t: t, now: d.o.Now().UnixMicro(), epochs: map[string]*epochState{},
		b: newBuilder(&d.layout), touched: map[string]bool{}}
	var err error
	if c.counters, err = t.counters(ctx); err != nil {
		return nil, err
	}
	if day := c.now / microsPerDay; day > dayOf(c.counters.Block) { // else the clock went back, or it is the same day
		c.counters.Block = day << dayBits
		c.counters.Segment = max(c.counters.Segment, day<<dayBits)
		if err := t.makeDay(ctx, day); err != nil {
			return nil, err
		}
	}
	return c, nil
}

const microsPerDay = 24 * 60 * 60 * 1e6

// job checks a batch against what is stored and adds it.
func (c *commit) job(ctx context.Context, j *job) error {
	x := j.x
	states := map[string]*epochState{}
	keep := make([]bool, len(x.lines))
	var doubles []audit.Line
	var gaps []Gap
	for i := range x.lines {
		l := &x.lines[i]
		e := states[l.Epoch]
		if e == nil {
			var err error
			if e, err = c.own(c.epochs[l.Epoch], l, x.producer); err != nil {
				return err
			}
			states[l.Epoch] = e
		}
		if e.has(l.Sequence) {
			doubles = append(doubles, *l)
			continue
		}
		checked := i > 0 && keep[i-1] && x.lines[i-1].Epoch == l.Epoch && x.lines[i-1].Sequence+1 == l.Sequence
		if err := c.check(ctx, e, l, checked); err != nil {
			return err
		}
		if l.Sequence > e.last+1 {
			gaps = append(gaps, Gap{l.Epoch, e.last + 1, l.Sequence - 1})
		}
		if err := e.take(l, &x.records[i]); err != nil {
			return err
		}
		keep[i] = true
	}
	if err := c.compare(ctx, doubles); err != nil {
		return err
	}
	j.ack = Ack{Stored: len(x.lines) - len(doubles), Duplicates: len(doubles), Gaps: gaps}
	if j.ack.Stored == 0 {
		return nil
	}
	if len(doubles) > 0 {
		x = c.d.only(x, keep)
	}
	for name, e := range states {
		e.stored = c.now
		c.epochs[name] = e
		c.touched[name] = true
	}
	return c.add(ctx, x)
}

// own returns a copy of an epoch's state, a new one if it is nil, and refuses
// an epoch of another producer.
func (c *commit) own(old *epochState, l *audit.Line, p Producer) (*epochState, error) {
	if old == nil {
		c.counters.Epoch++
		return &epochState{id: c.counters.Epoch, name: l.Epoch, producer: p, chained: l.Chained, gaps: []Gap{}}, nil
	}
	if old.producer.ID != p.ID {
		return nil, fmt.Errorf("%w: epoch %s is of producer %s, not of %s", ErrForged, l.Epoch, clip(old.producer.ID), clip(p.ID))
	}
	e := *old
	if e.producer.Pod == "" { // who was not known by name when it began
		e.producer.Pod = p.Pod
	}
	e.gaps = append([]Gap{}, old.gaps...)
	return &e, nil
}

// check compares a new line with its neighbours.
func (c *commit) check(ctx context.Context, e *epochState, l *audit.Line, checked bool) error {
	if e.lines > 0 && l.Chained != e.chained {
		return fmt.Errorf("%w: line %d of epoch %s is not chained as the others are", ErrForged, l.Sequence, l.Epoch)
	}
	if !l.Chained {
		return nil
	}
	if l.Sequence == e.last+1 && e.last > 0 {
		if checked {
			return nil
		}
		return follows(l, e.head, true)
	}
	if l.Sequence > e.last {
		return nil // behind a gap: what it follows is not known
	}
	if !checked && e.has(l.Sequence-1) {
		prev, err := c.stored(ctx, e, l.Sequence-1)
		if err != nil {
			return err
		}
		if err := follows(l, prev.Chain, prev.Chained); err != nil {
			return err
		}
	}
	if e.has(l.Sequence + 1) {
		next, err := c.stored(ctx, e, l.Sequence+1)
		if err != nil {
			return err
		}
		return follows(&next, l.Chain, true)
	}
	return nil
}

// stored reads one line that the epoch has.
func (c *commit) stored(ctx context.Context, e *epochState, n uint64) (audit.Line, error) {
	var found audit.Line
	if err := c.saveBlocks(ctx); err != nil { // it may be there
		return found, err
	}
	err := c.d.eachLine(ctx, c.t, e.id, e.name, n, n, func(l audit.Line) error {
		found = l
		return nil
	})
	if err == nil && found.Sequence != n {
		err = fmt.Errorf("%w: line %d of epoch %s is of this very batch and not in order", ErrBadLine, n, e.name)
	}
	return found, err
}

// compare checks that lines which came again are those that are stored. What
// retention removed cannot be compared any more.
func (c *commit) compare(ctx context.Context, l []audit.Line) error {
	if len(l) > 0 { // they may be of this very commit
		if err := c.saveBlocks(ctx); err != nil {
			return err
		}
	}
	for len(l) > 0 {
		n := 1
		for n < len(l) && l[n].Epoch == l[0].Epoch {
			n++
		}
		part := l[:n]
		l = l[n:]
		e := c.epochs[part[0].Epoch]
		if e == nil {
			return fmt.Errorf("%w: epoch %s has a line twice", ErrBadLine, part[0].Epoch)
		}
		i := 0
		err := c.d.eachLine(ctx, c.t, e.id, e.name, part[0].Sequence, part[n-1].Sequence, func(s audit.Line) error {
			for i < n && part[i].Sequence < s.Sequence {
				i++
			}
			if i == n || part[i].Sequence != s.Sequence {
				return nil
			}
			if string(part[i].JSON) != string(s.JSON) || part[i].Chained != s.Chained || part[i].Chain != s.Chain {
				return fmt.Errorf("%w: line %d of epoch %s is stored with another text", ErrForged, s.Sequence, s.Epoch)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
