package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxGroupKeys bounds the keys of one combination.
const maxGroupKeys = 8

// maxGroups bounds the combinations that one question may make.
const maxGroups = 200_000

// Groups counts what q matches by combinations of the values of keys, most
// frequent first. At most limit groups; 0 means 1000. partial says that the bound
// on work was reached: the newest records are counted.
func (d *DB) Groups(ctx context.Context, q Query, keys []string, limit int) (l []Group, partial bool, err error) {
	l, partial, err = d.groups(ctx, q, keys)
	if err != nil {
		return nil, false, err
	}
	slices.SortFunc(l, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count.Count, a.Count.Count), slices.Compare(a.Values, b.Values))
	})
	return l[:min(len(l), groupLimit(limit))], partial, nil
}

func groupLimit(n int) int {
	if n <= 0 {
		return 1000
	}
	return n
}

// FirstSeen is Groups in the order of when a combination was first seen, the
// newest first. since: chooses combinations that were never seen before it, over
// all that the store has; where not all of it can be looked at it is an error.
func (d *DB) FirstSeen(ctx context.Context, q Query, keys []string, limit int) ([]Group, error) {
	since := q.Filter.Since()
	q.Filter = q.Filter.WithoutSince()
	l, partial, err := d.groups(ctx, q, keys)
	if err == nil && partial {
		err = errors.New("audit query: not all that came before could be looked at, so nothing can be called new; use terms that have an index, or type:end")
	}
	if err != nil {
		return nil, err
	}
	l = slices.DeleteFunc(l, func(g Group) bool { return g.First.Before(since) })
	slices.SortFunc(l, func(a, b Group) int {
		return cmp.Or(b.First.Compare(a.First), slices.Compare(a.Values, b.Values))
	})
	return l[:min(len(l), groupLimit(limit))], nil
}

func (d *DB) groups(ctx context.Context, q Query, keys []string) ([]Group, bool, error) {
	if len(keys) == 0 || len(keys) > maxGroupKeys {
		return nil, false, fmt.Errorf("audit query: %d keys to count by; name one to %d", len(keys), maxGroupKeys)
	}
	if err := d.fewKeys(keys); err != nil {
		return nil, false, err
	}
	all, partial, err := aggregate(ctx, d, &q, func() *groupCounter {
		c := &groupCounter{keys: keys, sums: map[string]sum{}}
		c.byTotals = c.add
		return c
	}, nil)
	if err != nil {
		return nil, false, err
	}
	out := make([]Group, 0, len(all.sums))
	for k, s := range all.sums {
		out = append(out, Group{parseList(k), s.public()})
	}
	return out, partial, all.err()
}

// groupCounter counts by combinations of values of keys.
type groupCounter struct {
	byTotals

	keys []string
	sums map[string]sum // by the list of the values
}

func (c *groupCounter) err() error {
	if len(c.sums) > maxGroups {
		return fmt.Errorf("audit query: more than %d combinations of %s; ask for less time or fewer keys", maxGroups, strings.Join(c.keys, ", "))
	}
	return nil
}

func (c *groupCounter) join(o *groupCounter) {
	for k, s := range o.sums {
		y := c.sums[k]
		y.join(&s)
		c.sums[k] = y
	}
}

func (c *groupCounter) add(ctx context.Context, x *totals) error {
	cols := make([]*fewColumn, len(c.keys))
	values := make([][][]string, len(c.keys)) // by key, code
	for i, k := range c.keys {
		col, err := x.few(ctx, x.f, k)
		if err != nil {
			return err
		}
		if col == nil {
			return nil // of a version that did not know this key
		}
		cols[i] = col
		for _, v := range col.values {
			l := shown(k, parseList(v))
			if len(l) == 0 {
				l = []string{""}
			}
			values[i] = append(values[i], l)
		}
	}
	b, err := x.base(ctx, x.f)
	if err != nil {
		return err
	}
	// What is alike in keys is joined by number first.
	local := map[string]*sum{}
	var key []byte
	sumUp := func(s *sum, code func(*fewColumn) uint32) {
		key = key[:0]
		for _, col := range cols {
			key = binary.LittleEndian.AppendUint32(key, code(col))
		}
		y := local[string(key)]
		if y == nil {
			y = &sum{}
			local[string(key)] = y
		}
		y.join(s)
	}
	if slices.ContainsFunc(c.keys, wide) {
		err = x.eachShape(ctx, true, func(n int, s *sum) {
			sumUp(s, func(col *fewColumn) uint32 { return col.of(b.of, n) })
		})
	} else {
		var sums []sum
		sums, err = x.byBase(ctx)
		for n := range sums {
			if sums[n].count > 0 {
				sumUp(&sums[n], func(col *fewColumn) uint32 { return col.codes[n] })
			}
		}
	}
	if err != nil {
		return err
	}
	combination := make([]string, len(c.keys))
	for k, s := range local {
		var add func(i int)
		add = func(i int) {
			if len(c.sums) > maxGroups {
				return // said below
			}
			if i < len(c.keys) {
				for _, v := range values[i][binary.LittleEndian.Uint32([]byte(k)[4*i:])] {
					combination[i] = v
					add(i + 1)
				}
				return
			}
			name := string(appendList(nil, combination))
			y := c.sums[name]
			y.join(s)
			c.sums[name] = y
		}
		add(0)
	}
	return c.err()
}
