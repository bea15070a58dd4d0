package audit

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"
)

// ErrDamaged is matched when lines of a spool are not as they were written.
// What could be read has been delivered.
var ErrDamaged = errors.New("audit spool is damaged")

// ErrNotFound is matched by Find.
var ErrNotFound = errors.New("no audit record found")

// cursor follows a spool from segment to segment and joins its lines.
type cursor struct {
	dir     string
	buf     *bufio.Reader
	segment int64
	off     int64
	open    map[lineRef]*pendingBegin
	last    map[string]uint64 // sequence, by epoch
	damaged int
}

type pendingBegin struct {
	rec   Record
	order int
}

func newCursor(dir string) (*cursor, error) {
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = errors.New("is not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("audit directory %s: %w", dir, err)
	}
	return &cursor{dir: dir, buf: bufio.NewReaderSize(nil, maxLine), open: map[lineRef]*pendingBegin{}, last: map[string]uint64{}}, nil
}

// errStop ends a scan that the caller has had enough of.
var errStop = errors.New("stop")

// advance delivers every record that is complete by now. It returns errStop
// when fn answers false.
func (c *cursor) advance(ctx context.Context, fn func(Record) bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := c.nextSegment()
		if err != nil {
			return err
		}
		// The list was read before the rest of this segment: its last lines were
		// written before the next segment was made.
		if err := c.readSegment(fn); err != nil {
			return err
		}
		if next == 0 {
			return nil
		}
		c.segment, c.off = next, 0
	}
}

// nextSegment returns the segment after the present one, or 0.
func (c *cursor) nextSegment() (int64, error) {
	numbers, err := listSegments(c.dir)
	if err != nil {
		return 0, err
	}
	for _, n := range numbers {
		if n > c.segment {
			return n, nil
		}
	}
	return 0, nil
}

func (c *cursor) readSegment(fn func(Record) bool) error {
	if c.segment == 0 {
		return nil
	}
	f, err := os.Open(filepath.Join(c.dir, segmentName(c.segment))) //nolint:gosec // the operator's directory
	if errors.Is(err, os.ErrNotExist) {
		return nil // dropped to make room while we read
	}
	if err != nil {
		return fmt.Errorf("open audit segment: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	end, err := scan(c.buf, f, c.off, func(_ int64, _ []byte, l framed, err error) error {
		if err != nil {
			c.damaged++
			return nil
		}
		r, err := decode(l.json)
		if err != nil || r.Sequence <= c.last[r.Epoch] { // no record, or one that was read before
			c.damaged++
			return nil
		}
		c.last[r.Epoch] = r.Sequence
		if r, ok := c.join(r); ok && !fn(r) {
			return errStop
		}
		return nil
	})
	c.off = end.next
	if err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("read audit segment %s: %w", segmentName(c.segment), err)
	}
	return err
}

// join returns the finished record that a line completes, if it does.
func (c *cursor) join(r Record) (Record, bool) {
	switch {
	case r.Type == TypeBegin:
		c.open[lineRef{r.Epoch, r.Sequence}] = &pendingBegin{r, len(c.open)}
		return r, false
	case r.Type == TypeEnd && r.BeginSequence != 0:
		ref := lineRef{r.BeginEpoch, r.BeginSequence}
		b, ok := c.open[ref]
		if !ok || b.rec.ID != r.ID {
			return r, false // its begin was dropped to make room, or it is a second end
		}
		delete(c.open, ref)
		return joinLines(b.rec, r), true
	default:
		return r, true
	}
}

// rest returns the begins without an end. If no process writes the spool any
// more, nobody will ever know their outcome.
func (c *cursor) rest(alive bool, epoch string) []Record {
	l := make([]*pendingBegin, 0, len(c.open))
	for _, b := range c.open {
		l = append(l, b)
	}
	slices.SortFunc(l, func(a, b *pendingBegin) int {
		return cmp.Or(a.rec.Time.Compare(b.rec.Time), cmp.Compare(a.rec.Sequence, b.rec.Sequence))
	})
	out := make([]Record, len(l))
	for i, b := range l {
		out[i] = b.rec
		out[i].Result = &Result{Outcome: OutcomeUnknown}
		if alive && b.rec.Epoch == epoch {
			out[i].Result.Outcome = OutcomeOpen
		}
	}
	return out
}

// joinLines makes one record of a begin and its end: the begin's facts and
// time, the end's place in the sequence and everything that it adds.
func joinLines(begin, end Record) Record {
	r := begin
	r.Type, r.Epoch, r.Sequence = end.Type, end.Epoch, end.Sequence
	r.BeginEpoch, r.BeginSequence = end.BeginEpoch, end.BeginSequence
	end.Time = begin.Time
	overlay(reflect.ValueOf(&r).Elem(), reflect.ValueOf(end))
	return r
}

// overlay copies the fields of src that are not zero, into structs too.
func overlay(dst, src reflect.Value) {
	for i := range src.NumField() {
		s, d := src.Field(i), dst.Field(i)
		switch {
		case s.IsZero():
		case s.Kind() == reflect.Pointer && !d.IsNil():
			joined := reflect.New(d.Type().Elem())
			joined.Elem().Set(d.Elem())
			overlay(joined.Elem(), s.Elem())
			d.Set(joined)
		default:
			d.Set(s)
		}
	}
}

// Read calls fn with each record in dir that f matches, each request once and
// whole: a begin is joined with its end. Records come in the order in which
// they were finished; last come requests without an end, as TypeBegin with
// outcome open (a process still writes the spool) or unknown. fn stops the
// reading by answering false. The error matches ErrDamaged if lines had to be
// left out.
func Read(dir string, f Filter, fn func(Record) bool) error {
	c, err := newCursor(dir)
	if err != nil {
		return err
	}
	alive := writerAlive(dir)
	var epoch string
	err = c.advance(context.Background(), func(r Record) bool {
		epoch = r.Epoch
		return !f.Match(&r) || fn(r)
	})
	if errors.Is(err, errStop) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range c.rest(alive, epoch) {
		if f.Match(&r) && !fn(r) {
			return nil
		}
	}
	return c.damage()
}

func (c *cursor) damage() error {
	if c.damaged == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d lines left out; attache audit verify says which", ErrDamaged, c.damaged)
}

// pollEvery is how often Tail looks for more. Polling works on every file
// system and sees renames and removals alike.
const pollEvery = 100 * time.Millisecond

// Tail calls fn with the last records in dir that f matches, and then with each
// one as it is finished, until ctx ends (it then returns nil) or fn answers
// false. The directory may be written by another process, or not be written
// yet.
func Tail(ctx context.Context, dir string, f Filter, last int, fn func(Record) bool) error {
	c, err := newCursor(dir)
	if err != nil {
		return err
	}
	var past []Record
	err = c.advance(ctx, func(r Record) bool {
		if last > 0 && f.Match(&r) {
			if len(past) == last {
				past = slices.Delete(past, 0, 1)
			}
			past = append(past, r)
		}
		return true
	})
	for _, r := range past {
		if !fn(r) {
			return nil
		}
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			err = c.advance(ctx, func(r Record) bool { return !f.Match(&r) || fn(r) })
		}
	}
	if errors.Is(err, errStop) || ctx.Err() != nil {
		return nil
	}
	return err
}

// Find returns what is known under a record id, a credential handle, a task id
// or a run id: requests and events, in their order. It matches ErrNotFound if
// there is nothing.
func Find(dir, name string) ([]Record, error) {
	var l []Record
	err := Read(dir, Filter{}, func(r Record) bool {
		if r.concerns(name) {
			l = append(l, r)
		}
		return true
	})
	if len(l) == 0 && (err == nil || errors.Is(err, ErrDamaged)) {
		return nil, errors.Join(fmt.Errorf("%w: %q is no record id, credential handle, task or run in %s", ErrNotFound, clamp(name, maxWord), dir), err)
	}
	return l, err
}

// concerns reports whether name is one of the names that r goes by.
func (r *Record) concerns(name string) bool {
	switch {
	case name == "":
		return false
	case r.ID == name,
		r.Credential != nil && r.Credential.Handle == name,
		r.Task != nil && r.Task.ID == name,
		r.Workload != nil && r.Workload.RunID == name:
		return true
	case r.Event == nil:
		return false
	}
	for _, v := range r.Event.Fields {
		if v == name {
			return true
		}
	}
	return false
}
