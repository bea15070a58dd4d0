// Package form turns lines of a spool into what sinks write: OCSF events, ECS
// documents, or the lines themselves.
//
// A request has two lines, and both may come in different batches, hours and
// restarts apart. For OCSF and ECS a begin waits for its end, so that a receiver
// gets one whole event. Begins that wait are in a file, which is on the disk
// before the batch that brought them is answered for.
package form

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ecs"
	"github.com/attache-dev/attache/audit/ocsf"
	"github.com/attache-dev/attache/internal/replace"
)

// Formats.
const (
	OCSF  = "ocsf"  // events of OCSF 1.8.0, a request as one
	ECS   = "ecs"   // documents of the Elastic Common Schema, a request as one
	Lines = "lines" // the spool's lines as they are, with checksum and chain
)

// maxPending and maxPendingBytes bound the begins that wait: they are in memory,
// and in a file that is written anew. The oldest is told as still open when there
// are more; its end then comes alone.
const (
	maxPending      = 20_000
	maxPendingBytes = 64 << 20
)

// key names a line.
type key struct {
	epoch    string
	sequence uint64
}

// Former turns lines into events. It is used by one goroutine at a time.
type Former struct {
	format  string
	path    string // of the begins that wait; empty: in memory only
	pending map[key]audit.Line
	order   []key // of pending, oldest first; may hold some that are gone
}

// Event is one text to write, without a newline.
type Event struct {
	JSON     []byte
	ID       string // of the record
	Epoch    string
	Sequence uint64 // of its last line
	Time     time.Time
	Name     string // of an event; empty for a request
	Failed   bool   // it tells of a denial, an error or an alarm
}

// Formed is what a batch became. Nothing of the former has changed until
// [Formed.Commit].
type Formed struct {
	Events []Event
	// Damaged are lines that are no records; they can never be written.
	Damaged []audit.Line

	f    *Former
	add  []audit.Line
	gone map[key]bool
}

// Open returns a former. path is the file of the begins that wait, made when
// needed; empty: they are lost with the process, and their ends come alone.
func Open(format, path string) (*Former, error) {
	switch format {
	case OCSF, ECS, Lines:
	default:
		return nil, fmt.Errorf("format is %q; must be %s, %s or %s", format, OCSF, ECS, Lines)
	}
	f := &Former{format: format, path: path, pending: map[key]audit.Line{}}
	if path == "" || format == Lines {
		return f, nil
	}
	b, err := os.ReadFile(path) //nolint:gosec // the operator's folder
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open begins that wait for their ends: %w", err)
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		l, err := audit.ParseLine(append(bytes.Clone(s.Bytes()), '\n'))
		if err != nil { // torn or altered: its end comes alone
			continue
		}
		f.keep(l)
	}
	return f, nil
}

func (f *Former) keep(l audit.Line) {
	k := key{l.Epoch, l.Sequence}
	if _, there := f.pending[k]; !there {
		f.order = append(f.order, k)
	}
	f.pending[k] = l
}

// Form turns lines into events.
func (f *Former) Form(lines []audit.Line) (*Formed, error) {
	out := &Formed{f: f, gone: map[key]bool{}}
	here := map[key]audit.Line{}
	for _, l := range lines {
		if f.format == Lines {
			typ, id, at := l.Head()
			text := l.AppendTo(nil)
			e := Event{JSON: bytes.TrimSuffix(text, []byte{'\n'}), ID: id, Epoch: l.Epoch, Sequence: l.Sequence, Time: at}
			if typ != audit.TypeBegin && typ != audit.TypeEnd {
				e.Name = typ
			}
			out.Events = append(out.Events, e)
			continue
		}
		r, err := l.Record()
		if err != nil {
			out.Damaged = append(out.Damaged, l)
			continue
		}
		k := key{l.Epoch, l.Sequence}
		if r.Type == audit.TypeBegin {
			here[k] = l
			out.add = append(out.add, l)
			continue
		}
		if r.BeginSequence != 0 {
			of := key{r.BeginEpoch, r.BeginSequence}
			begin, ok := here[of]
			if !ok {
				begin, ok = f.pending[of]
			}
			if ok {
				// An end may name any begin. That of another record goes on waiting.
				if b, err := begin.Record(); err == nil && b.ID == r.ID {
					r = audit.Join(b, r)
					out.gone[of] = true
				}
			}
		}
		if err := out.tell(&r); err != nil {
			return nil, err
		}
	}
	return out, out.evict()
}

// evict tells the oldest begins as open where too many wait.
func (o *Formed) evict() error {
	n, size := len(o.f.pending)+len(o.add)-len(o.gone)-maxPending, -maxPendingBytes
	for k, l := range o.f.pending {
		if !o.gone[k] {
			size += len(l.JSON)
		}
	}
	for _, l := range o.add {
		if !o.gone[key{l.Epoch, l.Sequence}] {
			size += len(l.JSON)
		}
	}
	for i := 0; (n > 0 || size > 0) && i < len(o.f.order); i++ {
		k := o.f.order[i]
		l, ok := o.f.pending[k]
		if !ok || o.gone[k] {
			continue
		}
		o.gone[k] = true
		n--
		size -= len(l.JSON)
		r, err := l.Record()
		if err != nil {
			continue
		}
		if err := o.tell(&r); err != nil {
			return err
		}
	}
	return nil
}

// tell appends the events of r.
func (o *Formed) tell(r *audit.Record) error {
	e := Event{ID: r.ID, Epoch: r.Epoch, Sequence: r.Sequence, Time: r.Time, Failed: r.Result != nil && r.Result.Outcome != audit.OutcomeOK}
	if r.Event != nil {
		e.Name = r.Event.Name
	}
	if o.f.format == ECS {
		b, err := json.Marshal(ecs.Document(r))
		if err != nil {
			return fmt.Errorf("ecs: record %s: %w", r.ID, err)
		}
		e.JSON = b
		o.Events = append(o.Events, e)
		return nil
	}
	for _, x := range ocsf.Events(r) {
		b, err := json.Marshal(x)
		if err != nil {
			return fmt.Errorf("ocsf: record %s: %w", r.ID, err)
		}
		e.JSON = b
		if n, ok := x["severity_id"].(int); ok && n > 1 {
			e.Failed = true
		}
		o.Events = append(o.Events, e)
	}
	return nil
}

// Commit makes durable which begins wait. It is called after the events are
// durable and before the batch is answered for: killed in between, the batch
// comes again and finds the begins that it found before.
func (o *Formed) Commit() error {
	f := o.f
	changed := false
	for _, l := range o.add {
		if k := (key{l.Epoch, l.Sequence}); !o.gone[k] {
			f.keep(l)
			changed = true
		}
	}
	for k := range o.gone {
		if _, ok := f.pending[k]; ok {
			delete(f.pending, k)
			changed = true
		}
	}
	if len(f.order) > 2*len(f.pending)+64 {
		kept := f.order[:0]
		for _, k := range f.order {
			if _, ok := f.pending[k]; ok {
				kept = append(kept, k)
			}
		}
		f.order = kept
	}
	if !changed || f.path == "" {
		return nil
	}
	return f.save()
}

// save replaces the file of the begins that wait.
func (f *Former) save() error {
	var b []byte
	for _, k := range f.order {
		if l, ok := f.pending[k]; ok {
			b = l.AppendTo(b)
		}
	}
	if err := replace.File(f.path, b, replace.How{Sole: true}); err != nil {
		return fmt.Errorf("keep begins that wait for their ends: %w", err)
	}
	return nil
}
