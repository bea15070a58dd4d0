package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// maxGroupKeys bounds the keys of one combination.
const maxGroupKeys = 8

// maxGroups bounds the combinations that one question may make.
const maxGroups = 200_000

// Groups counts what q matches by combinations of the values of keys, most
// frequent first. At most limit groups; 0 means 1000.
func (d *DB) Groups(ctx context.Context, q Query, keys []string, limit int) ([]Group, error) {
	l, err := d.groups(ctx, q, keys)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(l, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count.Count, a.Count.Count), slices.Compare(a.Values, b.Values))
	})
	return l[:min(len(l), groupLimit(limit))], nil
}

func groupLimit(n int) int {
	if n <= 0 {
		return 1000
	}
	return n
}

// FirstSeen is Groups in the order of when a combination was first seen, the
// newest first. since: chooses combinations that were never seen before it, over
// all that the store has.
func (d *DB) FirstSeen(ctx context.Context, q Query, keys []string, limit int) ([]Group, error) {
	since := q.Filter.Since()
	q.Filter = q.Filter.WithoutSince()
	l, err := d.groups(ctx, q, keys)
	if err != nil {
		return nil, err
	}
	l = slices.DeleteFunc(l, func(g Group) bool { return g.First.Before(since) })
	slices.SortFunc(l, func(a, b Group) int {
		return cmp.Or(b.First.Compare(a.First), slices.Compare(a.Values, b.Values))
	})
	return l[:min(len(l), groupLimit(limit))], nil
}

func (d *DB) groups(ctx context.Context, q Query, keys []string) ([]Group, error) {
	if len(keys) == 0 || len(keys) > maxGroupKeys {
		return nil, fmt.Errorf("audit query: %d keys to count by; name one to %d", len(keys), maxGroupKeys)
	}
	if err := d.fewKeys(keys); err != nil {
		return nil, err
	}
	sums := map[string]sum{}
	_, err := d.aggregate(ctx, &q, func(ctx context.Context, x *tallied) error { return x.byValues(ctx, keys, sums) }, nil, nil)
	if err != nil {
		return nil, err
	}
	out := make([]Group, 0, len(sums))
	for k, s := range sums {
		out = append(out, Group{parseList(k), s.public()})
	}
	return out, nil
}

// byValues adds the sums of each combination of values of keys.
func (x *tallied) byValues(ctx context.Context, keys []string, sums map[string]sum) error {
	cols := make([]*fewColumn, len(keys))
	values := make([][][]string, len(keys)) // by key, code
	for i, k := range keys {
		c, err := x.v.few(ctx, x.f, k)
		if err != nil {
			return err
		}
		if c == nil {
			return nil // of a version that did not know this key
		}
		cols[i] = c
		for _, v := range c.values {
			l := shown(k, parseList(v))
			if len(l) == 0 {
				l = []string{""}
			}
			values[i] = append(values[i], l)
		}
	}
	// Shapes that are alike in keys are joined by number first.
	local := map[string]sum{}
	var key []byte
	for n, s := range x.sums {
		if s.count == 0 {
			continue
		}
		key = key[:0]
		for _, c := range cols {
			key = append(key, byte(c.codes[n]), byte(c.codes[n]>>8), byte(c.codes[n]>>16), byte(c.codes[n]>>24))
		}
		y := local[string(key)]
		y.join(s)
		local[string(key)] = y
	}
	combination := make([]string, len(keys))
	for k, s := range local {
		var add func(i int)
		add = func(i int) {
			if len(sums) > maxGroups {
				return // said below
			}
			if i < len(keys) {
				code := int(k[4*i]) | int(k[4*i+1])<<8 | int(k[4*i+2])<<16 | int(k[4*i+3])<<24
				for _, v := range values[i][code] {
					combination[i] = v
					add(i + 1)
				}
				return
			}
			name := string(appendList(nil, combination))
			y := sums[name]
			y.join(s)
			sums[name] = y
		}
		add(0)
		if len(sums) > maxGroups {
			return fmt.Errorf("audit query: more than %d combinations of %s; ask for less time or fewer keys", maxGroups, strings.Join(keys, ", "))
		}
	}
	return nil
}
