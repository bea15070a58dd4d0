package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Report is what Verify found.
type Report struct {
	Segments int           `json:"segments"`
	Lines    int           `json:"lines"`    // whole ones, of every type
	Requests int           `json:"requests"` // begun, or written in one line
	Finished int           `json:"finished"` // of these
	Unknown  int           `json:"unknown"`  // of the finished, by recovery
	Open     int           `json:"open"`     // begun and not ended
	Running  bool          `json:"running"`  // a process writes the spool
	Epochs   []EpochReport `json:"epochs"`
	Dropped  string        `json:"dropped,omitempty"` // segments deleted to make room, recorded
	Shipped  string        `json:"shipped,omitempty"` // segments deleted after every sink had them, recorded
	Cut      int           `json:"cut,omitempty"`     // torn tails that were cut and recorded
	Newer    int           `json:"newer,omitempty"`   // lines of another version of the schema
	Problems []Problem     `json:"problems,omitempty"`
	More     int           `json:"more_problems,omitempty"` // beyond maxProblems
}

// EpochReport is one start of a producer.
type EpochReport struct {
	ID     string    `json:"id"`
	First  uint64    `json:"first"` // sequence
	Last   uint64    `json:"last"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Closed bool      `json:"closed"` // it ended in good order
	// Chained says that each line holds the hash over all before it; Head is
	// the last one.
	Chained bool   `json:"chained"`
	Head    string `json:"head,omitempty"`
	// Producer is who wrote the epoch, as it says itself.
	Producer string `json:"producer,omitempty"`
	// SignedBy names the key that signed the epoch's end: a SPIFFE ID, or the
	// key's id. Whether that key is to be trusted is not said here.
	SignedBy string `json:"signed_by,omitempty"`
}

// Kinds of [Problem].
const (
	ProblemGap       = "gap"       // sequence numbers are missing
	ProblemDuplicate = "duplicate" // a sequence number or an end stands twice
	ProblemCorrupt   = "corrupt"   // a line is not as it was written
	ProblemTruncated = "truncated" // the last line is torn
	ProblemMissing   = "missing"   // a segment is gone and no record says why
	ProblemOrphan    = "orphan"    // an end without its begin
	ProblemOpen      = "open"      // a begin without its end, and nobody to write it
	ProblemChain     = "chain"     // a line is not chained to the one before it
	ProblemLink      = "link"      // an epoch does not go on where the one before it ended
	ProblemSignature = "signature" // the signature of an epoch's end does not hold
)

// Problem is something that is not as the spool was written.
type Problem struct {
	Kind    string `json:"kind"`
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Text    string `json:"text"`
}

// String formats p as segment:offset: kind: text.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", p.Segment, p.Offset, p.Kind, p.Text)
}

// maxProblems bounds a report; the rest is counted.
const maxProblems = 1000

// OK reports whether the spool is whole.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Chained counts the epochs whose lines are chained, and those whose end is
// signed.
func (r *Report) Chained() (chained, signed int) {
	for _, e := range r.Epochs {
		if e.Chained {
			chained++
		}
		if e.SignedBy != "" {
			signed++
		}
	}
	return chained, signed
}

// String tells the report in lines for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d segments, %d lines, %d epochs\n", r.Segments, r.Lines, len(r.Epochs))
	fmt.Fprintf(&b, "%d requests: %d finished (%d of them unknown), %d open\n", r.Requests, r.Finished, r.Unknown, r.Open)
	if r.Dropped != "" {
		fmt.Fprintf(&b, "segments dropped to make room: %s\n", Safe(r.Dropped))
	}
	if r.Shipped != "" {
		fmt.Fprintf(&b, "segments deleted after they were shipped: %s\n", Safe(r.Shipped))
	}
	chained, signed := r.Chained()
	if chained < len(r.Epochs) {
		fmt.Fprintf(&b, "not chained (written by an earlier version): %d epochs\n", len(r.Epochs)-chained)
	}
	fmt.Fprintf(&b, "%d epochs chained, %d with a signed end\n", chained, signed)
	if r.Newer > 0 {
		fmt.Fprintf(&b, "lines of another version of the schema than %s: %d; they are there and chained, this version does not read all of them\n", SchemaVersion, r.Newer)
	}
	if r.Cut > 0 {
		fmt.Fprintf(&b, "torn tails cut: %d\n", r.Cut)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s\n", Safe(p.String()))
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d more problems\n", r.More)
	}
	if r.OK() {
		b.WriteString("whole: no line is missing, doubled or altered\n")
	}
	return b.String()
}

// verifier is the state of one Verify.
type verifier struct {
	Report
	epochs  map[string]*epochState
	order   []string
	open    map[lineRef]string // begin → id
	dropped ranges
	shipped ranges
	gone    ranges // dropped or shipped
	links   links
	before  string               // the chain's value before the present line; empty: not known
	anchors map[lineRef]anchor   // ends of deleted segments
	loose   map[lineRef]anchored // lines whose predecessor is not there
	opens   []opened
	skipped ranges // segments that are not there
	orphans []orphan
	last    *epochState
	segment int64
}

type epochState struct {
	EpochReport
	lastSegment int64
	gaps        []gap
}

// gap is judged at the end: the record that explains it comes later.
type gap struct {
	from, to     uint64
	after, until int64 // segments around it
	at           Problem
}

type orphan struct {
	ref lineRef
	at  Problem
}

// Verify reads every line in dir and says whether the spool is as it was
// written: no line missing, doubled, altered or torn, but for what the spool
// itself recorded as dropped or cut. The error says that it could not be read.
func Verify(dir string) (Report, error) {
	v := &verifier{epochs: map[string]*epochState{}, open: map[lineRef]string{}, anchors: map[lineRef]anchor{}, loose: map[lineRef]anchored{}}
	if _, err := os.Stat(dir); err != nil {
		return v.Report, fmt.Errorf("audit directory: %w", err)
	}
	v.Running = writerAlive(dir)
	numbers, err := listSegments(dir)
	if err != nil {
		return v.Report, err
	}
	buf := bufio.NewReaderSize(nil, maxLine)
	expect := int64(1)
	for i, n := range numbers {
		if expect < n {
			v.skipped = append(v.skipped, [2]int64{expect, n - 1})
		}
		expect = n + 1
		if err := v.readSegment(buf, dir, n, i == len(numbers)-1); err != nil {
			return v.Report, err
		}
	}
	v.judge()
	return v.Report, nil
}

func (v *verifier) readSegment(buf *bufio.Reader, dir string, n int64, last bool) error {
	f, err := os.Open(filepath.Join(dir, segmentName(n))) //nolint:gosec // the operator's directory
	if errors.Is(err, os.ErrNotExist) && v.Running {
		v.skipped.add(n)
		return nil // dropped to make room while we read
	}
	if err != nil {
		return fmt.Errorf("open audit segment: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	v.Segments++
	v.segment = n
	end, err := scan(buf, f, 0, func(off int64, line []byte, l framed, err error) error {
		if err != nil {
			v.problem(ProblemCorrupt, off, "%d bytes do not match their checksum", len(line))
			return nil
		}
		v.line(off, l)
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read audit segment %s: %w", segmentName(n), err)
	}
	if end.size > end.next && (!last || !v.Running) { // a running process may be writing it
		v.problem(ProblemTruncated, end.next, "%d bytes of a torn line", end.size-end.next)
	}
	return nil
}

func (v *verifier) at(kind string, off int64, format string, args ...any) Problem {
	return Problem{kind, segmentName(v.segment), off, fmt.Sprintf(format, args...)}
}

func (v *verifier) problem(kind string, off int64, format string, args ...any) {
	v.add(v.at(kind, off, format, args...))
}

func (v *verifier) add(p Problem) {
	if len(v.Problems) == maxProblems {
		v.More++
		return
	}
	v.Problems = append(v.Problems, p)
}

// line takes up one whole line.
func (v *verifier) line(off int64, l framed) {
	b := l.json
	h, err := parseHead(b)
	if err != nil || h.Epoch == "" || h.Sequence == 0 {
		v.problem(ProblemCorrupt, off, "is no audit record")
		return
	}
	v.Lines++
	if h.Schema != SchemaVersion {
		v.Newer++
	}
	e, fresh := v.sequence(h, off)
	if !fresh {
		return
	}
	v.chain(e, h, l, off)
	switch h.Type {
	case TypeBegin:
		v.Requests++
		v.open[lineRef{h.Epoch, h.Sequence}] = h.ID
	case TypeEnd:
		v.end(h, off)
	case TypeEpochEnd:
		e.Closed = true
		v.event(e, b, off)
	case TypeEpochOpen, TypeEvent, TypeHeartbeat:
		v.event(e, b, off)
	default:
		if h.Schema == SchemaVersion {
			v.problem(ProblemCorrupt, off, "type %q is unknown", clamp(h.Type, maxWord))
		}
	}
}

// sequence checks the line's place in its epoch, and whether it comes for the
// first time.
func (v *verifier) sequence(h head, off int64) (*epochState, bool) {
	e := v.epochs[h.Epoch]
	switch {
	case e == nil:
		e = &epochState{EpochReport: EpochReport{ID: h.Epoch, First: h.Sequence}}
		v.epochs[h.Epoch] = e
		v.order = append(v.order, h.Epoch)
		if h.Sequence > 1 {
			e.gaps = append(e.gaps, gap{1, h.Sequence - 1, 0, v.segment, v.at(ProblemGap, off, "")})
		}
	case h.Sequence <= e.Last:
		v.problem(ProblemDuplicate, off, "sequence %d of epoch %s comes again, after %d", h.Sequence, h.Epoch, e.Last)
		return e, false
	case h.Sequence > e.Last+1:
		e.gaps = append(e.gaps, gap{e.Last + 1, h.Sequence - 1, e.lastSegment, v.segment, v.at(ProblemGap, off, "")})
	}
	if v.last != nil && v.last != e && e.Last != 0 {
		v.problem(ProblemDuplicate, off, "epoch %s goes on after another one began", h.Epoch)
	}
	e.Last, e.lastSegment, v.last = h.Sequence, v.segment, e
	return e, true
}

func (v *verifier) end(h head, off int64) {
	if h.BeginSequence == 0 {
		v.Requests++
		v.Finished++
		return
	}
	ref := lineRef{h.BeginEpoch, h.BeginSequence}
	id, ok := v.open[ref]
	if !ok || id != h.ID {
		v.orphans = append(v.orphans, orphan{ref, v.at(ProblemOrphan, off, "end of %s, whose begin (epoch %s, sequence %d) is not open", h.ID, ref.epoch, ref.seq)})
		return
	}
	delete(v.open, ref)
	v.Finished++
	if h.BeginEpoch != h.Epoch {
		v.Unknown++
	}
}

// event reads the times of an epoch and what the spool says of itself.
func (v *verifier) event(e *epochState, b []byte, off int64) {
	r, err := decode(b)
	if err != nil {
		return
	}
	if e.From.IsZero() {
		e.From = r.Time
	}
	e.To = r.Time
	if r.Event != nil {
		v.ends(e, &r, off)
	}
	if r.Type != TypeEvent || r.Event == nil {
		return
	}
	switch r.Event.Name {
	case EventDropped:
		v.dropped = parseRanges(r.Event.Fields["missing"])
		v.anchor(r.Event.Fields)
	case EventShipped:
		v.shipped = parseRanges(r.Event.Fields["shipped"])
		v.anchor(r.Event.Fields)
	case EventTailCut:
		v.Cut++
	}
}

// judge weighs gaps, orphans and open begins once everything is known.
func (v *verifier) judge() {
	v.Dropped, v.Shipped = v.dropped.String(), v.shipped.String()
	v.gone = slices.Clone(v.dropped)
	for _, x := range v.shipped {
		for n := x[0]; n <= x[1]; n++ {
			v.gone.add(n)
		}
	}
	v.judgeLinks()
	for _, x := range v.skipped.without(v.gone) {
		v.add(Problem{ProblemMissing, segmentName(x[0]), 0, fmt.Sprintf("segments %s are not there and no record says that they were dropped", ranges{x})})
	}
	for _, id := range v.order {
		e := v.epochs[id]
		for _, g := range e.gaps {
			if v.explained(g.after, g.until) {
				continue
			}
			g.at.Text = fmt.Sprintf("sequence %d to %d of epoch %s are missing", g.from, g.to, id)
			v.add(g.at)
		}
		v.Epochs = append(v.Epochs, e.EpochReport)
	}
	for _, o := range v.orphans {
		if !v.lost(o.ref) {
			v.add(o.at)
		}
	}
	v.Open = len(v.open)
	for ref, id := range v.open {
		if !v.Running || v.last == nil || ref.epoch != v.last.ID {
			v.add(Problem{ProblemOpen, "", 0, fmt.Sprintf("request %s (epoch %s, sequence %d) has no end; the next start of the producer writes it", id, ref.epoch, ref.seq)})
		}
	}
}

// explained reports whether a dropped segment lay between the two.
func (v *verifier) explained(after, until int64) bool {
	return v.gone.overlaps(after+1, until-1)
}

// lost reports whether a line went with a dropped segment.
func (v *verifier) lost(ref lineRef) bool {
	e := v.epochs[ref.epoch]
	if e == nil { // the whole epoch is gone
		return len(v.gone) > 0
	}
	for _, g := range e.gaps {
		if g.from <= ref.seq && ref.seq <= g.to {
			return v.explained(g.after, g.until)
		}
	}
	return false
}
