package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
)

// exchange is one request on its way and what is known of it.
type exchange struct {
	p     *Pipeline
	state *State
	conn  *proxy.Conn
	req   *http.Request
	start time.Time

	dest     destination.Destination
	query    url.Values // nil: none
	path     string     // as received, still encoded, without query
	protocol string
	task     *identity.Task
	decision policy.Decision
	provider *Provider
	cred     minting.Credential
	handle   string // of cred; guarded by live.mu

	rec     audit.Record
	steps   audit.Steps
	ticket  audit.Ticket
	begun   bool
	ended   bool         // the spool ended the record by itself
	reached bool         // a connection to the origin was had
	sent    atomic.Int64 // body bytes from the agent
	whole   atomic.Bool  // the agent has sent its body
	result  audit.Result
	extra   *audit.Extra // what the end says beside the result
	opened  guard.Opened // sealed values, and spent credentials, that answers may repeat
	aws     *awsCall     // nil: no call to AWS
}

// newExchange reads what the request says of itself; it decides nothing.
func (p *Pipeline) newExchange(r *http.Request) *exchange {
	x := &exchange{p: p, state: p.state.Load(), conn: proxy.ConnFrom(r.Context()), req: r, start: p.cfg.Now()}
	if x.conn == nil { // a front door's bug: refuse as nobody
		x.conn = &proxy.Conn{Refusal: identity.ErrUnattested}
	}
	x.dest = x.conn.Dest
	x.path = rawPath(r)
	if r.URL.RawQuery != "" {
		x.query = r.URL.Query()
	}
	x.protocol = protocolOf(r)
	x.aws = signedCall(r)
	x.rec = audit.Record{
		ID:   newRecordID(),
		Time: x.start,
		Request: &audit.Request{
			Door: x.conn.Door, Scheme: x.dest.Scheme, Host: x.dest.Host, Port: x.dest.Port,
			Method: r.Method, Path: x.path, QueryKeys: queryKeys(x.query), Protocol: x.protocol,
			HTTPVersion: r.Proto, UserAgent: r.UserAgent(), TraceID: traceID(r.Header.Get("Traceparent")),
		},
		Decision: &audit.Decision{},
		Unsafe:   p.cfg.Unsafe,
	}
	if d := x.conn.Attested.Sub(x.conn.Accepted); d > 0 {
		x.steps.Attested = d.Microseconds()
	}
	if x.conn.Record != "" {
		x.rec.ID = x.conn.Record
	}
	x.describeCaller()
	return x
}

func (x *exchange) describeCaller() {
	c := x.conn.Caller
	if c.Process != (identity.Process{}) {
		x.rec.Process = &audit.Process{PID: c.Process.PID, UID: c.Process.UID, Exe: c.Process.Exe, Digest: c.Process.Digest, Shared: c.Process.Shared}
	}
	if w := c.Workload; w != nil {
		x.rec.Workload = x.p.describe(w)
		x.rec.Owner, x.rec.OwnerSource = w.Owner, w.OwnerSource
	}
}

func (x *exchange) describeTask() {
	if x.task == nil {
		return
	}
	x.rec.Task = &audit.Task{ID: x.task.ID, Purpose: x.task.Purpose, OpenedBy: x.task.OpenedBy}
	if h := x.task.Human; h != nil {
		x.rec.Human = &audit.Human{Subject: h.Subject, Issuer: h.Issuer, Email: h.Email}
	}
	for _, a := range x.task.Actors {
		x.rec.Actors = append(x.rec.Actors, audit.Actor{Subject: a.Subject, Issuer: a.Issuer})
	}
}

// since is the time since the exchange began, in microseconds.
func (x *exchange) since() int64 { return max(1, x.p.cfg.Now().Sub(x.start).Microseconds()) }

// more is what the end of the record says beside the result.
func (x *exchange) more() *audit.Extra {
	if x.extra == nil {
		x.extra = &audit.Extra{}
	}
	return x.extra
}

func (x *exchange) describeDecision() {
	d := &x.decision
	*x.rec.Decision = audit.Decision{Verdict: d.Verdict.String(), Policy: d.Policy, Rule: d.Rule, Version: d.Version, Reason: d.Reason, WouldDeny: d.WouldDeny}
	x.rec.Request.PathTemplate = d.PathTemplate
}

// begin writes the intent; afterwards the exchange may leave this process.
func (x *exchange) begin(ctx context.Context) *Refusal {
	var err error
	if x.p.cfg.Keep != nil {
		err = x.keep(ctx, false)
	} else {
		x.ticket, err = x.p.cfg.Spool.BeginDurable(ctx, &x.rec, x.decision.Durability)
	}
	if err != nil {
		x.ended = errors.Is(err, audit.ErrEnded)
		if ctx.Err() != nil {
			return x.upstreamRefusal(ctx, err)
		}
		return &Refusal{Status: http.StatusServiceUnavailable, Code: CodeAuditFull, Err: err, RetryAfter: 10 * time.Second,
			Reason: "the record of this call cannot be written, so the call is not made; the operator must look at the audit spool"}
	}
	x.begun = true
	x.steps.Begun = x.since()
	return nil
}

// newRecordID returns "rec_" and 128 random bits.
func newRecordID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand.Read
	var s [36]byte
	copy(s[:], "rec_")
	hex.Encode(s[4:], b[:])
	return string(s[:])
}

// rawPath is the path as the client wrote it: what we check, what policy
// sees and what the origin gets (rule 3).
func rawPath(r *http.Request) string {
	s := r.RequestURI
	if s == "" {
		s = r.URL.EscapedPath()
	}
	if i := strings.Index(s, "://"); i > 0 && !strings.HasPrefix(s, "/") { // absolute-form
		s = s[i+3:]
		if j := strings.IndexAny(s, "/?"); j >= 0 {
			s = s[j:]
		} else {
			s = "/"
		}
	}
	if i := strings.IndexByte(s, '?'); i >= 0 {
		s = s[:i]
	}
	if s == "" {
		s = "/"
	}
	return s
}

func protocolOf(r *http.Request) string {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return policy.GRPC
	}
	if isUpgrade(r) && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return policy.WebSocket
	}
	return policy.HTTP
}

// isUpgrade reports whether r asks to switch protocols (RFC 9110 section 7.8).
func isUpgrade(r *http.Request) bool {
	if r.ProtoMajor != 1 || r.Header.Get("Upgrade") == "" {
		return false
	}
	for _, v := range r.Header["Connection"] {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), "upgrade") {
				return true
			}
		}
	}
	return false
}

// queryKeys names the parameters, never their values.
func queryKeys(q url.Values) []string {
	if q == nil {
		return nil
	}
	const maxKeys = 32
	keys := make([]string, 0, len(q))
	for k := range q {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	if len(keys) > maxKeys {
		keys = keys[:maxKeys]
	}
	return keys
}

// traceID is the trace-id of a W3C traceparent, or empty.
func traceID(tp string) string {
	if len(tp) >= 55 && tp[2] == '-' && tp[35] == '-' {
		return tp[3:35]
	}
	return ""
}

// refuse finishes the exchange with a refusal: the record first, the answer
// after it.
func (x *exchange) refuse(w http.ResponseWriter, f *Refusal) {
	x.result.Status, x.result.ErrorKind = f.Status, f.Code
	if x.result.Outcome == "" {
		x.result.Outcome = audit.OutcomeDenied
		if x.begun {
			x.result.Outcome = audit.OutcomeError
		}
	}
	if x.begun {
		d := *x.rec.Decision
		d.Code = f.Code
		x.more().Decision = &d
	} else { // nothing was sent: whatever policy said, the call is denied
		x.decision.Verdict = policy.Deny
		x.rec.Decision.Verdict, x.rec.Decision.Code, x.rec.Decision.Reason = policy.Deny.String(), f.Code, f.Reason
	}
	x.recordAsked()
	x.finish()
	if f.Err != nil {
		level := slog.LevelWarn
		if f.Code == CodeCanceled { // the caller's own doing, and at its own rate
			level = slog.LevelDebug
		}
		x.p.cfg.Log.Log(context.Background(), level, "call refused", "record", x.rec.ID, "code", f.Code, "host", x.dest.Host, "cause", f.Err)
	}
	f.write(w, x)
}

// finish writes the end of the record; a refusal before Begin is one whole
// record. Failing to write it is logged: the begin already stands, and a
// missing end reads as unknown.
func (x *exchange) finish() {
	x.steps.Ended = x.since()
	x.result.BytesUp = max(x.result.BytesUp, x.sent.Load())
	x.rec.Steps = &x.steps
	x.rec.Result = &x.result
	x.p.cfg.Metrics.done(x)
	var err error
	switch {
	case x.ended:
	case x.p.cfg.Keep != nil:
		err = x.keep(context.WithoutCancel(x.req.Context()), true) // also where the caller went away
	case x.begun:
		err = x.ticket.End(&x.result, x.rec.Credential, &x.steps, x.extra)
	default:
		err = x.p.cfg.Spool.Write(&x.rec)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		x.p.cfg.Log.Error("record not written", "record", x.rec.ID, "cause", err)
	}
}
