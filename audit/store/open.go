package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"sync"

	"github.com/attache-dev/attache/audit"
)

// maxHalves and maxHalvesBytes bound the requests without an end that a question
// looks at; the newest count. The bytes are those of JSON: lines of 1 MiB, which
// no spool of ours writes, must not fill the memory.
const (
	maxHalves      = 20_000
	maxHalvesBytes = 32 << 20
)

// openLine is a line whose other half has not come.
type openLine struct {
	epoch  string
	ending bool
	at     place
	json   []byte // nil: not read
	openRow
}

// openRow is what the index would know of such a line.
type openRow struct {
	row     row
	size    int    // bytes of its text
	outcome string // that a begin has so far; an end has its own
	made    bool
}

// openRows keeps the rows of open requests between questions: to make them of JSON
// takes a second for as many as a question looks at.
type openRows struct {
	mu   sync.Mutex // guards what follows
	rows map[place]openRow
	size int // of rows
}

// find gives those of l that are kept their rows. It returns how many of the first
// of l have all that lack one.
func (o *openRows) find(l []openLine) (until int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range l {
		if x, ok := o.rows[l[i].at]; ok && x.outcome == l[i].outcome {
			l[i].openRow = x
		} else {
			until = i + 1
		}
	}
	return until
}

// keep keeps the rows of l, and those of other questions if there is room.
func (o *openRows) keep(l []openLine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.add(l); len(o.rows) > maxHalves || o.size > maxHalvesBytes {
		o.rows = nil // a question's own are within the bounds
		o.add(l)
	}
}

func (o *openRows) add(l []openLine) {
	if o.rows == nil {
		o.rows, o.size = make(map[place]openRow, len(l)), 0
	}
	for i := range l {
		o.size += l[i].size - o.rows[l[i].at].size
		o.rows[l[i].at] = l[i].openRow
	}
}

// openRequests returns a view of the lines whose other half has not come; nil if
// there are none that the plan may look at. If there are more than that, those that
// came last are there, and cut is the newest microsecond of one that is not.
func (d *DB) openRequests(ctx context.Context, t *tx, p *plan) (v *view, cut *int64, err error) {
	l, cut, err := t.openLines(ctx, p)
	if err != nil || len(l) == 0 {
		return nil, nil, err
	}
	if err := d.outcomes(ctx, t, l); err != nil {
		return nil, nil, err
	}
	if until := d.opens.find(l); until > 0 {
		if err := t.readOpen(ctx, p, l[:until]); err != nil {
			return nil, nil, err
		}
		// One batch for each worker would wait for the slowest.
		const batch = 64
		err := each(ctx, parallel(), (until+batch-1)/batch, func(_ context.Context, _, n int) error {
			for i := n * batch; i < min((n+1)*batch, until); i++ {
				if err := l[i].make(&d.layout); err != nil {
					return err
				}
			}
			return nil
		}, func(int) {})
		if err != nil {
			return nil, nil, err
		}
		d.opens.keep(l)
	}
	b := newBuilder(&d.layout)
	for i := range l {
		b.add(l[i].row)
	}
	return memoryView(b.finish()), cut, nil
}

// make makes the row of a line that was read.
func (x *openLine) make(l *layout) error {
	if x.made {
		return nil
	}
	r, err := decodeLine(x.json)
	if err != nil {
		return err
	}
	if x.ending {
		x.row = l.fill(&r, place{}, x.at)
	} else {
		r.Result = &audit.Result{Outcome: x.outcome}
		x.row = l.fill(&r, x.at, place{})
	}
	x.json, x.made = nil, true
	return nil
}

// where is the condition on the table for what a plan may look at, but for what
// only the record tells.
func (p *plan) where(postgres bool) (string, []any, error) {
	q, args := "time >= ? AND time < ?", []any{p.low, p.high}
	if p.q.Namespaces == nil {
		return q, args, nil
	}
	l := make([]string, len(p.spaces))
	for i, s := range p.spaces {
		l[i] = spaced([]string{s})
	}
	if postgres {
		return q + " AND EXISTS (SELECT FROM unnest(?::text[]) AS n WHERE strpos(namespaces, n) > 0)", append(args, l), nil
	}
	list, err := json.Marshal(l)
	return q + " AND EXISTS (SELECT 1 FROM json_each(?) AS n WHERE instr(namespaces, n.value) > 0)", append(args, string(list)), err
}

// maxSpace bounds a namespace in the table of halves, in bytes; Kubernetes has 63.
const maxSpace = 256

// spaced writes namespaces for the table of halves, each between spaces. What
// is in no namespace's name is written alike: the record tells then.
func spaced(namespaces []string) string {
	var b strings.Builder
	b.WriteByte(' ')
	for _, s := range namespaces {
		s = strings.ToLower(s)
		for i := range min(len(s), maxSpace) {
			if c := s[i]; c > ' ' && c < 0x7f {
				b.WriteByte(c)
			} else {
				b.WriteByte('_')
			}
		}
		b.WriteByte(' ')
	}
	return b.String()
}

// openLines lists what a plan may look at, the newest first, without its text.
func (t *tx) openLines(ctx context.Context, p *plan) (l []openLine, cut *int64, err error) {
	where, args, err := p.where(t.e.postgres)
	if err != nil {
		return nil, nil, err
	}
	size := 0
	err = t.each(ctx, func(scan func(...any) error) error {
		if len(l) == maxHalves {
			return errEnough
		}
		var x openLine
		var ending int
		err := scan(&x.epoch, &ending, &x.at.block, &x.at.line, &x.size)
		x.ending = ending != 0
		if size += x.size; err == nil && size > maxHalvesBytes {
			return errEnough
		}
		l = append(l, x)
		return err
	}, "SELECT epoch, ending, block, line, length(json) FROM half WHERE "+where+" ORDER BY block DESC, line DESC LIMIT ?", append(args, maxHalves+1)...)
	if errors.Is(err, errEnough) && len(l) > 0 {
		at := l[len(l)-1].at
		cut = new(int64)
		_, err = t.one(ctx, "SELECT time FROM half WHERE "+where+" AND (block < ? OR block = ? AND line < ?) ORDER BY time DESC LIMIT 1", append(args, at.block, at.block, int(at.line)), cut)
	}
	return l, cut, err
}

// readOpen reads the texts of those of l that have no row, which are the first
// that the plan may look at.
func (t *tx) readOpen(ctx context.Context, p *plan, l []openLine) error {
	where, args, err := p.where(t.e.postgres)
	if err != nil {
		return err
	}
	n := 0
	err = t.each(ctx, func(scan func(...any) error) error {
		var at place
		var text sql.RawBytes
		if err := scan(&at.block, &at.line, &text); err != nil {
			return err
		}
		if n == len(l) || at != l[n].at {
			return damaged("the list of open requests has another order in its index")
		}
		if !l[n].made {
			l[n].json = bytes.Clone(text)
		}
		n++
		return nil
	}, "SELECT block, line, json FROM half WHERE "+where+" ORDER BY block DESC, line DESC LIMIT ?", append(args, len(l))...)
	if err == nil && n < len(l) {
		err = damaged("the list of open requests ends early")
	}
	return err
}

// outcomes says how the begins of l have ended so far.
func (d *DB) outcomes(ctx context.Context, t *tx, l []openLine) error {
	reader := d.newLineReader(t)
	known := map[string]string{}
	for i := range l {
		x := &l[i]
		if x.ending {
			continue
		}
		outcome, ok := known[x.epoch]
		if !ok {
			e, err := t.epoch(ctx, x.epoch)
			if err != nil {
				return err
			}
			if e == nil {
				return damaged("epoch %s is not there", x.epoch)
			}
			if outcome, err = reader.open(ctx, e); err != nil {
				return err
			}
			known[x.epoch] = outcome
		}
		x.outcome = outcome
	}
	return nil
}
