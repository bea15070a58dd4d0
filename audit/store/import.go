package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// Imported says what ImportSpool did.
type Imported struct {
	Lines      int // stored
	Duplicates int // that the store had
	// Damaged is lines that are not as they were written, or do not follow from
	// those before them: they are not stored, and sequences show the gap.
	Damaged  int
	Problems []string // what is wrong with those, the first maxProblems
}

const (
	maxProblems = 20
	importLines = 4096
	importBytes = 4 << 20
)

func (i *Imported) problem(n int, text string) {
	i.Damaged += n
	if len(i.Problems) < maxProblems {
		i.Problems = append(i.Problems, text)
	}
}

// spoolState is how far a spool's folder was imported.
type spoolState struct {
	Position audit.Position
	Producer Producer
}

// ImportSpool stores what is new in a spool's folder since the last import. It
// may be called while the spool is written, and again after it was cut short.
func (d *DB) ImportSpool(ctx context.Context, dir string) (Imported, error) {
	var out Imported
	dir, err := filepath.Abs(dir)
	if err != nil {
		return out, fmt.Errorf("import audit spool: %w", err)
	}
	name := "import/" + dir
	var st spoolState
	raw, err := d.State(ctx, name)
	if err != nil {
		return out, err
	}
	if raw != nil {
		if err := json.Unmarshal(raw, &st); err != nil {
			return out, damaged("the state of the import of %s: %v", dir, err)
		}
	}
	if st.Producer.ID == "" {
		sum := sha256.Sum256([]byte(dir))
		st.Producer = Producer{ID: "spool/" + hex.EncodeToString(sum[:8]), Kind: "run"}
	}
	end, err := spoolEnd(dir)
	if err != nil {
		return out, err
	}
	f := audit.NewFollower(dir, st.Position)
	defer f.Close() //nolint:errcheck // read only
	for {
		lines, damage, err := f.Next(ctx, end, importLines, importBytes)
		if err != nil {
			return out, fmt.Errorf("import audit spool %s: %w", dir, err)
		}
		for _, x := range damage {
			out.problem(x.Lines, x.String())
		}
		if len(lines) > 0 {
			if err := d.importLines(ctx, &st, lines, &out); err != nil {
				return out, fmt.Errorf("import audit spool %s: %w", dir, err)
			}
		}
		if f.Position() == st.Position {
			return out, nil
		}
		st.Position = f.Position()
		raw, err := json.Marshal(st)
		if err != nil {
			return out, err
		}
		if err := d.PutState(ctx, name, raw); err != nil {
			return out, err
		}
		if len(lines) == 0 && len(damage) == 0 {
			return out, nil
		}
	}
}

// importLines appends lines of one epoch; those that cannot be stored are left
// out one by one.
func (d *DB) importLines(ctx context.Context, st *spoolState, lines []audit.Line, out *Imported) error {
	p, err := d.spoolProducer(ctx, st, lines[0])
	if err != nil {
		return err
	}
	ack, err := d.Append(ctx, p, lines)
	out.Lines += ack.Stored
	out.Duplicates += ack.Duplicates
	if !errors.Is(err, ErrForged) && !errors.Is(err, ErrBadLine) {
		return err
	}
	if len(lines) == 1 {
		out.problem(1, err.Error())
		return nil
	}
	// Halves, until what is wrong stands alone: an import of damaged lines costs
	// some more, of others nothing.
	half := len(lines) / 2
	for _, part := range [][]audit.Line{lines[:half], lines[half:]} {
		if err := d.importLines(ctx, st, part, out); err != nil {
			return err
		}
	}
	return nil
}

// spoolProducer says who wrote an epoch: what the store knows, what its first
// line says, or the folder.
func (d *DB) spoolProducer(ctx context.Context, st *spoolState, l audit.Line) (Producer, error) {
	h, err := d.Head(ctx, l.Epoch)
	if err == nil {
		return h.Producer, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return Producer{}, err
	}
	r, err := l.Record()
	if err == nil && r.Type == audit.TypeEpochOpen && r.Event != nil {
		if id := r.Event.Fields["producer"]; id != "" && len(id) <= maxName && !strings.ContainsRune(id, 0) {
			st.Producer.ID = id
		}
		if kind := r.Event.Fields["producer_kind"]; kind != "" {
			st.Producer.Kind = plain(kind)
		}
	}
	return st.Producer, nil
}

// spoolEnd returns where the last segment ends by now.
func spoolEnd(dir string) (audit.Position, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return audit.Position{}, fmt.Errorf("import audit spool: %w", err)
	}
	var end audit.Position
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), ".jsonl")
		n, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || n <= end.Segment || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // dropped meanwhile
		}
		if err != nil {
			return end, fmt.Errorf("import audit spool: %w", err)
		}
		end = audit.Position{Segment: n, Offset: fi.Size()}
	}
	return end, nil
}
