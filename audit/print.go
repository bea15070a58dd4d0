package audit

import (
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Printer writes records for people or as JSON lines. Everything that comes
// from a record is made safe for terminals. It is not safe for concurrent use.
type Printer struct {
	w     io.Writer
	color bool
	json  bool
	loc   *time.Location
}

// PrinterOptions of [NewPrinter]. The zero value prints for people, without
// colour, in UTC.
type PrinterOptions struct {
	Color    bool // see WantColor
	JSON     bool // one JSON object a line, without the spool's checksum
	Location *time.Location
}

// NewPrinter returns a Printer to w.
func NewPrinter(w io.Writer, o PrinterOptions) *Printer {
	if o.Location == nil {
		o.Location = time.UTC
	}
	return &Printer{w: w, color: o.Color && !o.JSON, json: o.JSON, loc: o.Location}
}

// WantColor reports whether w is a terminal that shows colour and the
// environment does not object (https://no-color.org).
func WantColor(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	return ok && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) //nolint:gosec // a descriptor
}

// Terminal colours, ECMA-48 section 8.3.117.
const (
	reset  = "\x1b[0m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
)

func (p *Printer) paint(color, s string) string {
	if !p.color || s == "" {
		return s
	}
	return color + s + reset
}

// Safe returns s with everything escaped that a terminal would not show as a
// character: controls, bidirectional and zero-width marks, invalid UTF-8.
func Safe(s string) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= 0x20 && s[i] < 0x7f
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += size
	}
	return b.String()
}

// Print writes one record on one line.
func (p *Printer) Print(r Record) error {
	if p.json {
		_, err := p.w.Write(append(r.AppendJSON(nil), '\n'))
		return err
	}
	line := p.requestLine
	if r.Event != nil {
		line = p.eventLine
	}
	_, err := io.WriteString(p.w, line(&r)+"\n")
	return err
}

// requestLine is: time outcome verdict who for-whom what why with-what answer.
func (p *Printer) requestLine(r *Record) string {
	parts := []string{p.paint(dim, r.Time.In(p.loc).Format("15:04:05.000")), p.outcome(r)}
	add := func(color, s string) {
		if s != "" {
			parts = append(parts, p.paint(color, Safe(s)))
		}
	}
	add("", fromDecision(r, func(d *Decision) string { return fmt.Sprintf("%-11s", d.Verdict) }))
	add("", who(r))
	if h := r.Human; h != nil {
		add(blue, "for "+first(h.Email, h.Subject))
	}
	add(bold, target(r.Request))
	if rule := fromDecision(r, ruleName); rule != "" {
		add(dim, "rule "+rule)
	}
	if r.Credential != nil {
		add(yellow, credential(r.Credential))
	}
	add("", answer(r))
	if r.Decision != nil && r.Decision.Reason != "" && (r.Decision.Verdict == "deny" || r.Decision.WouldDeny) {
		add(red, r.Decision.Reason)
	}
	add(dim, r.ID)
	return strings.Join(parts, "  ")
}

func (p *Printer) outcome(r *Record) string {
	word, color := OutcomeOpen, yellow
	if r.Result != nil {
		word = r.Result.Outcome
	}
	switch word {
	case OutcomeOK:
		color = green
	case OutcomeDenied, OutcomeLeak, OutcomeError:
		color = red
	default: // the rest is neither good nor bad by itself
	}
	return p.paint(color, Safe(fmt.Sprintf("%-8s", word)))
}

// who names the workload and its process: demo/python3.12[4242].
func who(r *Record) string {
	if r.Workload == nil {
		return ""
	}
	s := r.Workload.ID
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		s = s[i+1:]
	}
	if r.Process != nil && r.Process.Exe != "" {
		s += "/" + path.Base(r.Process.Exe) + "[" + strconv.Itoa(r.Process.PID) + "]"
	}
	return s
}

// target is: GET api.example.com/v1/x.
func target(q *Request) string {
	if q == nil {
		return ""
	}
	host := q.Host
	if q.Port != 0 && q.Port != 443 && q.Port != 80 {
		host += ":" + strconv.Itoa(q.Port)
	}
	s := strings.TrimSpace(q.Method + " " + host + q.Path)
	if len(q.QueryKeys) > 0 {
		s += "?" + strings.Join(q.QueryKeys, "&")
	}
	return s
}

func fromDecision(r *Record, f func(*Decision) string) string {
	if r.Decision == nil {
		return ""
	}
	return f(r.Decision)
}

func ruleName(d *Decision) string {
	if d.Policy == "" {
		return d.Rule
	}
	return d.Policy + "/" + d.Rule
}

func first(l ...string) string {
	for _, s := range l {
		if s != "" {
			return s
		}
	}
	return ""
}

// credential is: cred_0123… [scope scope] ttl 5m0s. Of AWS it shows operation
// and resources in place of the scope: cred_0123… s3:GetObject [arn…].
func credential(u *Use) string {
	scope := u.ScopeGranted
	if len(scope) == 0 {
		scope = u.ScopeAsked
	}
	s := u.Handle
	if a := u.AWS; a != nil {
		s += " " + a.Service + ":" + a.Operation
		scope = a.Resources
		if a.Scope != "request" {
			s += " (" + a.Scope + ")"
		}
	}
	if len(scope) > 0 {
		s += " [" + strings.Join(scope, " ") + "]"
	}
	if u.Handle == "" { // none was had
		s = "asked" + s
	}
	if u.TTLSeconds > 0 {
		s += " ttl " + (time.Duration(u.TTLSeconds) * time.Second).String()
	}
	if u.Cached {
		s += " cached"
	}
	return s
}

// answer is: 200 12.3ms.
func answer(r *Record) string {
	var l []string
	if r.Result != nil {
		if r.Result.Status != 0 {
			l = append(l, strconv.Itoa(r.Result.Status))
		}
		if r.Result.GRPCStatus != "" {
			l = append(l, "grpc "+r.Result.GRPCStatus)
		}
		if r.Result.ErrorKind != "" {
			l = append(l, r.Result.ErrorKind)
		}
	}
	if r.Steps != nil && r.Steps.Ended > 0 {
		l = append(l, micros(r.Steps.Ended))
	}
	return strings.Join(l, " ")
}

func micros(us int64) string {
	return (time.Duration(us) * time.Microsecond).Round(10 * time.Microsecond).String()
}

// eventLine is: time event name key=value…
func (p *Printer) eventLine(r *Record) string {
	parts := []string{p.paint(dim, r.Time.In(p.loc).Format("15:04:05.000")), p.paint(blue, fmt.Sprintf("%-8s", "event")), Safe(r.Event.Name)}
	for _, k := range sortedKeys(r.Event.Fields) {
		switch k {
		case "certificate", "issuers", "signature": // for programs; the key's id stays
			continue
		}
		if v := r.Event.Fields[k]; v != "" {
			parts = append(parts, p.paint(dim, Safe(k)+"=")+Safe(v))
		}
	}
	return strings.Join(parts, "  ")
}
