package export

import (
	"cmp"
	"encoding/csv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attache-dev/attache/audit"
)

// table writes a line a record. No cell can become a formula.
type table struct{ w *csv.Writer }

// columns are only ever added, at the end.
func columns() []string {
	return []string{"time", "id", "outcome", "verdict", "agent", "namespace", "owner", "human", "task", "purpose", "method", "host", "path", "resources", "policy", "rule", "version", "reason",
		"credential", "provider", "status", "bytes_up", "bytes_down", "upstream_request_id", "event", "event_fields", "epoch", "sequence", "protocol", "statement"}
}

// newTable writes the names of the columns.
func newTable(w io.Writer) (*table, error) {
	t := &table{csv.NewWriter(w)}
	return t, t.w.Write(columns())
}

// Write implements Writer.
func (t *table) Write(r *audit.Record) error {
	d, wl, u, q, task, res, ev := or(r.Decision), or(r.Workload), or(r.Credential), or(r.Request), or(r.Task), or(r.Result), or(r.Event)
	h, db, ssh := or(r.Human), or(r.SQL), or(r.SSH)
	cells := []string{
		r.Time.UTC().Format(time.RFC3339Nano), r.ID, outcome(r), d.Verdict, wl.ID, wl.Namespace, r.Owner, cmp.Or(h.Email, h.Subject), task.ID, task.Purpose,
		cmp.Or(ssh.Operation, db.Operation, or(u.AWS).Operation, q.Method), q.Host, q.Path, strings.Join(or(u.AWS).Resources, " "), d.Policy, d.Rule, d.Version, d.Reason,
		cmp.Or(u.Handle, ev.Fields["handle"]), u.Provider, status(res.Status), strconv.FormatInt(res.BytesUp, 10), strconv.FormatInt(res.BytesDown, 10), res.UpstreamRequestID,
		ev.Name, fields(ev.Fields), r.Epoch, strconv.FormatUint(r.Sequence, 10), q.Protocol, cmp.Or(ssh.Command, ssh.Subsystem, ssh.Forward, db.Statement),
	}
	for i := range cells {
		cells[i] = cell(cells[i])
	}
	return t.w.Write(cells)
}

// Flush implements Writer.
func (t *table) Flush() error {
	t.w.Flush()
	return t.w.Error()
}

func outcome(r *audit.Record) string {
	switch {
	case r.Event != nil:
		return "event"
	case r.Result == nil:
		return audit.OutcomeOpen
	}
	return r.Result.Outcome
}

func status(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func fields(m map[string]string) string {
	var l []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != "" {
			l = append(l, k+"="+m[k])
		}
	}
	return strings.Join(l, " ")
}

// cell makes a text harmless for spreadsheets: what they would take for a
// formula gets an apostrophe in front (OWASP, CSV injection), and controls are
// shown as escapes. Where a semicolon is what separates cells, as in spreadsheets
// of many languages, what follows one begins a cell too.
func cell(s string) string {
	s = audit.Safe(s)
	if formula(s) {
		s = "'" + s
	}
	at := strings.IndexByte(s, ';')
	if at < 0 {
		return s
	}
	var b strings.Builder
	for ; at >= 0; at = strings.IndexByte(s, ';') {
		b.WriteString(s[:at+1])
		s = s[at+1:]
		if formula(s) {
			b.WriteByte('\'')
		}
	}
	return b.String() + s
}

// formula reports whether a spreadsheet may calculate what begins so.
func formula(s string) bool {
	r, size := utf8.DecodeRuneInString(strings.TrimLeft(s, ` "`))
	return size > 0 && strings.ContainsRune("=+-@'|%＝＋－＠", r)
}

// or returns *p, or a zero value.
func or[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
