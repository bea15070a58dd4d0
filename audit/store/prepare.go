package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// prepared is a batch, ready but for what only the store knows: what it has
// already, and the other halves of lines. It is made outside of the transaction.
type prepared struct {
	producer Producer
	lines    []audit.Line
	records  []audit.Record
	blocks   []*block
	data     [][]byte // of blocks, packed
	spots    []spot   // of lines
}

// spot is where a line stands within a batch.
type spot struct {
	block int
	line  uint16
}

// prepare checks and decodes lines. They must be of ascending sequence within
// an epoch.
func (d *DB) prepare(p Producer, lines []audit.Line) (*prepared, error) {
	x := &prepared{producer: p, lines: lines, records: make([]audit.Record, len(lines)), spots: make([]spot, len(lines))}
	seen := map[string]bool{}
	for i := range lines {
		if i == 0 || lines[i].Epoch != lines[i-1].Epoch {
			if seen[lines[i].Epoch] {
				return nil, fmt.Errorf("epoch %q comes twice in a batch: %w", clip(lines[i].Epoch), ErrBadLine)
			}
			seen[lines[i].Epoch] = true
		}
		if err := x.decode(i); err != nil {
			return nil, fmt.Errorf("line %d of epoch %q: %w", lines[i].Sequence, clip(lines[i].Epoch), err)
		}
		if i > 0 && lines[i].Epoch == lines[i-1].Epoch {
			prev := &lines[i-1]
			if lines[i].Sequence <= prev.Sequence {
				return nil, fmt.Errorf("line %d of epoch %s comes after line %d: %w", lines[i].Sequence, lines[i].Epoch, prev.Sequence, ErrBadLine)
			}
			if lines[i].Sequence == prev.Sequence+1 {
				if err := follows(&lines[i], prev.Chain, prev.Chained); err != nil {
					return nil, err
				}
			}
		}
		if lines[i].Sequence == 1 && lines[i].Chained {
			if err := follows(&lines[i], chain.First(lines[i].Epoch), true); err != nil {
				return nil, err
			}
		}
	}
	x.cut()
	for _, b := range x.blocks {
		x.data = append(x.data, d.codec.pack(b))
	}
	return x, nil
}

// follows checks a line against the chain value of the line before it.
func follows(l *audit.Line, prev chain.Hash, chained bool) error {
	if l.Chained != chained {
		return fmt.Errorf("%w: line %d of epoch %s and the line before it are not both chained", ErrForged, l.Sequence, l.Epoch)
	}
	if chained && !l.Follows(prev) {
		return fmt.Errorf("%w: line %d of epoch %s does not follow from the line before it", ErrForged, l.Sequence, l.Epoch)
	}
	return nil
}

func clip(s string) string { return audit.Safe(s[:min(len(s), 80)]) }

// maxEpoch is the spool's own bound of an epoch's name.
const maxEpoch = 64

// decode reads line i and checks that it is what it is said to be.
func (x *prepared) decode(i int) error {
	l := &x.lines[i]
	switch {
	case l.Sequence == 0 || l.Sequence > 1<<62:
		return fmt.Errorf("%w: its sequence must be between 1 and 2^62", ErrBadLine)
	case l.Epoch == "" || len(l.Epoch) > maxEpoch || strings.ContainsFunc(l.Epoch, chain.NotInEpoch):
		return fmt.Errorf("%w: its epoch must be up to %d letters, digits, dots, dashes or underscores", ErrBadLine, maxEpoch)
	case len(l.JSON) > maxLine:
		return fmt.Errorf("%w: has %d bytes; at most %d", ErrBadLine, len(l.JSON), maxLine)
	}
	r, err := l.Record()
	if err != nil {
		if r, err = foreign(l.JSON); err != nil {
			return err
		}
	}
	if r.Epoch != l.Epoch || r.Sequence != l.Sequence {
		return fmt.Errorf("%w: its text says epoch %q, sequence %d", ErrForged, clip(r.Epoch), r.Sequence)
	}
	if r.BeginSequence > 1<<62 || len(r.BeginEpoch) > maxEpoch || strings.ContainsFunc(r.BeginEpoch, chain.NotInEpoch) {
		return fmt.Errorf("%w: it names a begin that cannot be", ErrBadLine)
	}
	x.records[i] = r
	return nil
}

// foreign reads what can be understood of a record of another version of the
// schema: each part that is as this version knows it. The line itself is kept
// whole. What only control tells (events, changes) is left out.
func foreign(text []byte) (audit.Record, error) {
	var h struct {
		Schema, Type, ID, Epoch                                             string
		Sequence                                                            uint64
		Time                                                                time.Time
		Workload, Owner, Human, Task, Request, Decision, Credential, Result json.RawMessage
	}
	if json.Unmarshal(text, &h) != nil || h.Schema == audit.SchemaVersion || h.Schema == "" {
		return audit.Record{}, ErrBadLine
	}
	r := audit.Record{Schema: h.Schema, Type: h.Type, ID: h.ID, Epoch: h.Epoch, Sequence: h.Sequence, Time: h.Time}
	known(h.Workload, &r.Workload)
	known(h.Owner, &r.Owner)
	known(h.Human, &r.Human)
	known(h.Task, &r.Task)
	known(h.Request, &r.Request)
	known(h.Decision, &r.Decision)
	known(h.Credential, &r.Credential)
	known(h.Result, &r.Result)
	return r, nil
}

// known sets to to what raw says, if that can be read whole.
func known[T any](raw json.RawMessage, to *T) {
	var v T
	if len(raw) > 0 && json.Unmarshal(raw, &v) == nil {
		*to = v
	}
}

// cut makes blocks of the lines.
func (x *prepared) cut() {
	var b *block
	size := 0
	for i := range x.lines {
		l := &x.lines[i]
		if b == nil || b.epoch != l.Epoch || b.last()+1 != l.Sequence || b.chained != l.Chained ||
			len(b.lines) == blockLines || size+len(l.JSON) > blockBytes {
			b = &block{epoch: l.Epoch, first: l.Sequence, chained: l.Chained, low: x.records[i].Time.UnixMicro(), hi: x.records[i].Time.UnixMicro()}
			x.blocks = append(x.blocks, b)
			size = 0
		}
		x.spots[i] = spot{len(x.blocks) - 1, uint16(len(b.lines))} //nolint:gosec // at most blockLines
		t := x.records[i].Time.UnixMicro()
		b.lines, b.until, b.low, b.hi = append(b.lines, l.JSON), l.Sequence, min(b.low, t), max(b.hi, t)
		if l.Chained {
			b.chains = append(b.chains, l.Chain)
		}
		size += len(l.JSON)
	}
}

// only returns the batch with just those lines.
func (d *DB) only(x *prepared, keep []bool) *prepared {
	y := &prepared{producer: x.producer}
	for i, k := range keep {
		if k {
			y.lines = append(y.lines, x.lines[i])
			y.records = append(y.records, x.records[i])
		}
	}
	y.spots = make([]spot, len(y.lines))
	y.cut()
	for _, b := range y.blocks {
		y.data = append(y.data, d.codec.pack(b))
	}
	return y
}
