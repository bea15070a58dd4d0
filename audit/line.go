package audit

import (
	"bytes"
	"time"

	"github.com/attache-dev/attache/audit/chain"
)

// Line is one line of a spool as it was written. It is shipped, stored and
// verified byte for byte: nobody encodes JSON anew on its way.
type Line struct {
	Epoch    string // one start of the producer
	Sequence uint64 // place in the epoch, from 1
	JSON     []byte
	// Chain is the hash over JSON and every line of the epoch before it; the
	// zero hash where Chained is false.
	Chain chain.Hash
	// Chained is false for a line of a spool that was written before lines had
	// a hash.
	Chained bool
}

// ParseLine takes a line of a segment apart, with or without its NEWLINE. The
// error says that it is not as it was written, or no audit record. JSON points
// into text.
func ParseLine(text []byte) (Line, error) {
	if !bytes.HasSuffix(text, []byte{'\n'}) {
		text = append(bytes.Clone(text), '\n')
	}
	f, err := unframe(text)
	if err != nil {
		return Line{}, err
	}
	h, err := parseHead(f.json)
	if err != nil {
		return Line{}, err
	}
	if h.Epoch == "" || h.Sequence == 0 {
		return Line{}, errFrame
	}
	return Line{h.Epoch, h.Sequence, f.json, f.chain, f.chained}, nil
}

// AppendTo appends the line as it stands in a segment, with its NEWLINE.
func (l Line) AppendTo(b []byte) []byte {
	from := len(b)
	b = append(b, l.JSON...)
	if !l.Chained {
		return appendTrailer(b, from)
	}
	return appendChained(b, from, l.Chain)
}

// Record decodes the line: a begin or an end by itself, not joined. Fields that
// this version does not know are left out.
func (l Line) Record() (Record, error) { return decode(l.JSON) }

// Follows reports whether l's hash is that of a line which follows prev, the
// hash of the line before it in the epoch; of the first line, chain.First.
func (l Line) Follows(prev chain.Hash) bool {
	return l.Chained && chain.Next(prev, l.JSON) == l.Chain
}

// Head returns what every line says first: its type, its record's id, and when
// it was written (zero if that is not legible).
func (l Line) Head() (typ, id string, at time.Time) {
	h, err := parseHead(l.JSON)
	if err != nil {
		return "", "", time.Time{}
	}
	const key = `,"time":"`
	if _, rest, ok := bytes.Cut(l.JSON, []byte(key)); ok {
		if text, _, ok := bytes.Cut(rest, []byte(`"`)); ok {
			at, _ = time.Parse(time.RFC3339Nano, string(text))
		}
	}
	return h.Type, h.ID, at
}
