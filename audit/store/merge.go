package store

import (
	"context"
	"errors"
	"slices"
)

// Segments are merged when there are mergeAt of about one size, so that a
// question looks at some dozen of them. Each class of size is mergeAt times the
// one before, so a record is written anew once a class, however small the
// batches are in which records come.
const mergeAt = 8

// tier returns the size class of a segment; -1: it is not merged any more.
func tier(rows int) int {
	if rows >= maxRows/2 {
		return -1
	}
	t := 0
	for n := mergeAt; rows >= n; n *= mergeAt {
		t++
	}
	return t
}

// kick says that there may be something to merge.
func (d *DB) kick() {
	select {
	case d.merge <- struct{}{}:
	default:
	}
}

func (d *DB) merges(ctx context.Context) {
	defer d.stopped.Done()
	other := map[int64]bool{} // segments with other columns
	for {
		select {
		case <-d.closing:
			return
		case <-d.merge:
		}
		for more := true; more; {
			var err error
			more, err = d.mergeOnce(ctx, other)
			if err != nil {
				d.o.Logger.WarnContext(ctx, "audit segments were not merged", "error", err)
			}
			select {
			case <-d.closing:
				return
			default:
			}
		}
	}
}

// mergeOnce merges one run of segments, if there is one; other are those that
// cannot be merged.
func (d *DB) mergeOnce(ctx context.Context, other map[int64]bool) (bool, error) {
	var l []segmentInfo
	var s *segment
	err := d.engine.reading(ctx, func(t *tx) error {
		all, err := t.segmentList(ctx, "ORDER BY id")
		if err != nil {
			return err
		}
		l = chooseMerge(slices.DeleteFunc(all, func(i segmentInfo) bool { return other[i.id] }))
		if len(l) == 0 {
			return nil
		}
		b := newBuilder(&d.layout)
		texts, largest, large := 0, 0, int64(0)
		for n, i := range l {
			x, err := newView(i).load(ctx, t.fetch, &d.layout)
			if errors.Is(err, errOtherLayout) {
				other[i.id] = true // of an older version: stays as it is
			}
			if err != nil {
				return err
			}
			size := x.textBytes()
			if size > largest {
				largest, large = size, i.id
			}
			if texts += size; n > 0 && texts > maxTexts {
				l = l[:n]
				break
			}
			b.merge(x)
		}
		if len(l) == 1 { // the first two are too many
			other[large] = true
			return errLarge
		}
		s = b.finish()
		return nil
	})
	if errors.Is(err, errOtherLayout) || errors.Is(err, errLarge) {
		return true, nil
	}
	if err != nil || len(l) == 0 {
		return false, err
	}
	x := newStoredSegment(s)
	ids := make([]int64, len(l))
	for i := range l {
		ids[i] = l[i].id
	}
	err = d.engine.writing(ctx, func(t *tx) error {
		next, err := t.nextSegment(ctx, dayOf(ids[0]))
		if err != nil {
			return err
		}
		for _, id := range ids {
			n, err := t.exec(ctx, "DELETE FROM segment WHERE id = ?", id)
			if err != nil {
				return err
			}
			if n != 1 {
				return errMerged
			}
			if _, err := t.exec(ctx, "DELETE FROM part WHERE segment = ?", id); err != nil {
				return err
			}
		}
		return t.saveParts(ctx, next, x)
	})
	if errors.Is(err, errMerged) {
		return true, nil
	}
	if err == nil {
		d.views.forget(ids)
	}
	return err == nil, err
}

// maxTexts bounds the texts of a segment that is made of others, in bytes: an agent
// that makes up long paths must not fill the memory, nor a drawer that is too large
// to be read.
const maxTexts = 64 << 20

// errLarge says that a segment has too many texts to be merged.
var errLarge = errors.New("segment has many texts")

func (s *segment) textBytes() int {
	n := 0
	for i := range s.texts {
		for _, v := range s.texts[i].values {
			n += len(v)
		}
	}
	return n
}

// nextSegment gives a number that no segment of the day ever had, for others
// may remember those by their numbers: the greatest is there, or was replaced by
// a greater one.
func (t *tx) nextSegment(ctx context.Context, day int64) (int64, error) {
	c, err := t.counters(ctx)
	if err != nil {
		return 0, err
	}
	if day == dayOf(c.Segment) {
		c.Segment++
		return c.Segment, t.saveCounters(ctx, c)
	}
	var id int64
	_, err = t.one(ctx, "SELECT max(id) FROM segment WHERE id < ?", []any{(day + 1) << dayBits}, &id)
	return id + 1, err
}

// errMerged says that somebody else merged or removed a segment meanwhile.
var errMerged = errors.New("segment was merged by another process")

// chooseMerge returns segments of one day and one tier that are worth to be
// merged. On a day that is over, all that fit go together.
func chooseMerge(all []segmentInfo) []segmentInfo {
	if len(all) == 0 {
		return nil
	}
	today := dayOf(all[len(all)-1].id)
	type class struct {
		day  int64
		tier int
	}
	m := map[class][]segmentInfo{}
	rows := map[class]int{}
	for _, i := range all {
		k := class{dayOf(i.id), tier(i.rows)}
		if k.tier < 0 {
			continue
		}
		need := mergeAt
		if k.day < today {
			k.tier, need = 0, 2
		}
		if rows[k]+i.rows > maxRows {
			if len(m[k]) > 1 {
				return m[k]
			}
			m[k], rows[k] = nil, 0
		}
		m[k] = append(m[k], i)
		rows[k] += i.rows
		if k.day == today && len(m[k]) == need {
			return m[k]
		}
	}
	for k, l := range m {
		if k.day < today && len(l) > 1 {
			return l
		}
	}
	return nil
}

// Settle merges what there is to merge and returns when that is done.
func (d *DB) Settle(ctx context.Context) error {
	other := map[int64]bool{}
	for {
		more, err := d.mergeOnce(ctx, other)
		if err != nil || !more {
			return err
		}
	}
}

// Segments returns how many segments the index has.
func (d *DB) Segments(ctx context.Context) (int, error) {
	var n int
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.one(ctx, "SELECT count(*) FROM segment", nil, &n)
		return err
	})
	return n, err
}
