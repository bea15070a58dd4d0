package store

import (
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// place is where a line stands: the block and its number in it. The zero place
// is none; blocks count from 1.
type place struct {
	block int64
	line  uint16
}

func (p place) before(q place) bool {
	return p.block < q.block || p.block == q.block && p.line < q.line
}

// row is what the index knows of one record.
type row struct {
	time       int64 // microseconds since 1970
	bytes      int64
	few        []string // by layout.few: a list
	texts      []string // by layout.texts: a list, in lower case
	names      []uint32 // hashes, sorted
	begin, end place    // a record of one line has no begin; an open one no end
	partial    bool     // made of the end alone, the begin is gone
}

// layout is which keys the index has columns for.
type layout struct {
	few, texts, names []audit.Key
	textOf            []int // by few: the text whose forms it has; -1: it is none of forms
}

func newLayout() layout {
	var l layout
	for _, k := range audit.Keys() {
		switch k.Spread {
		case audit.Few:
			l.few, l.textOf = append(l.few, k), append(l.textOf, -1)
		case audit.Texts:
			l.few, l.textOf = append(l.few, audit.Key{Name: formPrefix + k.Name, Spread: audit.Few}), append(l.textOf, len(l.texts))
			l.texts = append(l.texts, k)
		case audit.Names:
			l.names = append(l.names, k)
		case audit.Rare: // found by reading records; since and until too
		}
	}
	return l
}

// minName is the shortest value of an event's field that is looked up by name:
// shorter ones are words and numbers.
const (
	minName = 8
	maxName = 256
)

// fill makes the index row of a record.
func (l *layout) fill(r *audit.Record, begin, end place) row {
	x := row{time: r.Time.UnixMicro(), begin: begin, end: end, few: make([]string, len(l.few)), texts: make([]string, len(l.texts))}
	if r.Result != nil {
		x.bytes = r.Result.BytesUp + r.Result.BytesDown
	}
	// All lists are parts of one string: this is done for each record.
	buf, ends := make([]byte, 0, 1<<10), make([]int, 0, len(l.few)+len(l.texts))
	texts := make([][]string, len(l.texts))
	for i := range l.texts {
		texts[i] = l.texts[i].Values(r)
		for j, v := range texts[i] {
			texts[i][j] = strings.ToLower(v) // as it is looked for
		}
	}
	for i := range l.few {
		if n := l.textOf[i]; n >= 0 {
			buf = appendList(buf, forms(texts[n]))
		} else {
			buf = appendList(buf, l.few[i].Values(r))
		}
		ends = append(ends, len(buf))
	}
	for _, values := range texts {
		buf = appendList(buf, values)
		ends = append(ends, len(buf))
	}
	all, from := string(buf), 0
	for i, end := range ends {
		if i < len(l.few) {
			x.few[i] = all[from:end]
		} else {
			x.texts[i-len(l.few)] = all[from:end]
		}
		from = end
	}
	add := func(s string) {
		if s != "" && len(s) <= maxName {
			x.names = append(x.names, nameHash(strings.ToLower(s)))
		}
	}
	for i := range l.names {
		for _, s := range l.names[i].Values(r) {
			add(s)
		}
	}
	if r.Event != nil {
		for _, s := range r.Event.Fields {
			if len(s) >= minName {
				add(s)
			}
		}
	}
	slices.Sort(x.names)
	x.names = slices.Compact(x.names)
	return x
}

// concerns reports whether name is one that r goes by.
func concerns(r *audit.Record, name string) bool {
	is := func(l ...string) bool {
		return slices.ContainsFunc(l, func(s string) bool { return s != "" && strings.EqualFold(s, name) })
	}
	switch {
	case is(r.ID),
		r.Credential != nil && is(r.Credential.Handle),
		r.Task != nil && is(r.Task.ID),
		r.Workload != nil && is(r.Workload.RunID),
		r.Request != nil && is(r.Request.TraceID),
		r.Result != nil && is(r.Result.UpstreamRequestID),
		r.Human != nil && is(r.Human.Subject, r.Human.Email):
		return true
	case r.Event == nil:
		return false
	}
	for _, v := range r.Event.Fields {
		if is(v) {
			return true
		}
	}
	return false
}
