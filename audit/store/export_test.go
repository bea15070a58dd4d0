package store

import (
	"context"
	"slices"
)

// Tamper writes each segment anew as somebody would who wants to hide the record
// with an id and changes the index alone; how names the way.
func Tamper(ctx context.Context, d *DB, id, how string) error {
	return d.engine.writing(ctx, func(t *tx) error {
		l, err := t.segmentList(ctx, "ORDER BY id")
		if err != nil {
			return err
		}
		lines := d.newLineReader(t)
		for _, i := range l {
			s, err := newView(i).load(ctx, t.fetch, &d.layout)
			if err != nil {
				return err
			}
			hidden := -1
			for n := range s.time {
				r, _, err := lines.record(ctx, s.end[n])
				if err != nil {
					return err
				}
				if r.ID == id {
					hidden = n
				}
			}
			if hidden < 0 {
				continue
			}
			switch how {
			case "ghost":
				s = s.ghost(&d.layout, hidden)
			case "nowhere":
				s.end[hidden] = place{}
			case "order":
				s.move(hidden, len(s.time)/2)
			case "texts": // of another row
				for k := range s.texts {
					s.texts[k].codes[hidden] = s.texts[k].codes[0]
				}
			case "names":
				slices.SortFunc(s.names, func(x, y nameAt) int {
					if x.hash != y.hash {
						return int(int64(x.hash) - int64(y.hash))
					}
					return int(y.row) - int(x.row)
				})
			}
			for _, q := range []string{"DELETE FROM segment WHERE id = ?", "DELETE FROM part WHERE segment = ?"} {
				if _, err := t.exec(ctx, q, i.id); err != nil {
					return err
				}
			}
			if err := t.saveParts(ctx, i.id, newStoredSegment(s)); err != nil {
				return err
			}
		}
		return nil
	})
}

// ghost makes of a record of one line the end of a request whose begin is not
// there, and of a type that no question asks for.
func (s *segment) ghost(l *layout, hidden int) *segment {
	b := newBuilder(l)
	names := make([][]uint32, len(s.time))
	for _, n := range s.names {
		names[n.row] = append(names[n.row], n.hash)
	}
	for n := range s.time {
		r := row{time: s.time[n], bytes: s.size[n], begin: s.begin[n], end: s.end[n], names: names[n]}
		for k := range s.few {
			v := s.few[k].values[s.few[k].of(s.base, int(s.shape[n]))]
			if n == hidden && s.few[k].key == "type" {
				v = string(appendList(nil, []string{"epoch", "all"}))
			}
			r.few = append(r.few, v)
		}
		for k := range s.texts {
			r.texts = append(r.texts, s.texts[k].values[s.texts[k].codes[n]])
		}
		if n == hidden {
			r.begin, r.names = place{1, 0}, nil
		}
		b.add(r)
	}
	return b.finish()
}

// move puts a row where its time does not belong.
func (s *segment) move(from, to int) {
	order := make([]uint32, len(s.time))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // a row
	}
	order = slices.Insert(slices.Delete(order, from, from+1), to, uint32(from)) //nolint:gosec // a row
	at := make([]uint32, len(order))
	for i, o := range order {
		at[o] = uint32(i) //nolint:gosec // a row
	}
	s.time, s.shape, s.size = pick(s.time, order), pick(s.shape, order), pick(s.size, order)
	s.begin, s.end = pick(s.begin, order), pick(s.end, order)
	for k := range s.texts {
		s.texts[k].codes = pick(s.texts[k].codes, order)
	}
	for k := range s.names {
		s.names[k].row = at[s.names[k].row]
	}
	slices.SortFunc(s.names, func(x, y nameAt) int {
		if x.hash != y.hash {
			return int(int64(x.hash) - int64(y.hash))
		}
		return int(x.row) - int(y.row)
	})
}
