package pipeline

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

// ServeHTTP implements [http.Handler]: one request from the front door to its
// finished record.
func (p *Pipeline) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := p.newExchange(r)
	ctx, span := p.trace(r.Context(), x)
	defer span.end(x)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if x.answerKeys(ctx, w) {
		return
	}
	if f := x.decide(); f != nil {
		x.refuse(w, f)
		return
	}
	if x.dest.Host == LocalHost {
		x.serveLocal(ctx, w)
		return
	}
	p.live.add(x, cancel)
	defer p.live.remove(x)
	if x.decision.MaxStream > 0 {
		t := time.AfterFunc(x.decision.MaxStream, func() { cancel(errMaxStream) })
		defer t.Stop()
	}
	x.clean()
	if f := x.taskOpen(); f != nil { // it may have ended before it could cut us
		x.refuse(w, f)
		return
	}
	if x.decision.Grant.AWS != nil {
		defer x.release()
		if f := x.cutSession(ctx, w); f != nil {
			x.abort(w, f)
			return
		}
	}
	if f := x.begin(ctx); f != nil {
		x.abort(w, f)
		return
	}
	resp, f := x.send(ctx, w)
	if f != nil {
		x.abort(w, f)
		return
	}
	x.deliver(ctx, w, resp)
}

// decide checks the request's shape and asks policy. Nothing has left us when
// it refuses.
func (x *exchange) decide() *Refusal {
	if f := x.admit(); f != nil {
		return f
	}
	// Before policy looks: a field that Connection names could fulfil a rule's
	// condition and never reach the origin (rule 3).
	injector.Hygiene(x.req)
	pathErr := destination.CheckPath(x.path)
	if pathErr == nil {
		pathErr = destination.CheckQuery(x.req.URL.RawQuery)
	}
	x.decision = x.state.Policies.Decide(x.policyRequest())
	x.steps.Decided = x.since()
	x.describeDecision()
	if x.decision.Verdict == policy.Deny || x.decision.Verdict == policy.Passthrough {
		x.decision.Verdict = policy.Deny // passthrough was decided before the request; none may reach here
		return &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: x.decision.Reason}
	}
	if x.p.cfg.Keep != nil {
		if f := x.forRelay(); f != nil {
			return f
		}
	}
	if pathErr != nil && !x.decision.RawPaths {
		x.decision.Verdict = policy.Deny
		x.describeDecision()
		return &Refusal{Status: http.StatusBadRequest, Code: CodeBadPath, Reason: pathErr.Error() + "; policy and origin could read this path differently"}
	}
	if pathErr != nil && x.decision.Grant.AWS != nil {
		if f := x.sameDecoded(); f != nil {
			return f
		}
	}
	if strings.HasPrefix(x.path, "//") && x.req.URL.EscapedPath() != x.path {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeBadPath, Reason: "a path that begins with // must be percent-encoded throughout"}
	}
	if x.decision.Verdict == policy.Inject {
		return x.mayInject()
	}
	return nil
}

// admit refuses what needs no policy: strangers, floods, methods that repeat
// the request, unknown tasks.
func (x *exchange) admit() *Refusal {
	if f := x.turnedAway(); f != nil {
		return f
	}
	if f := x.p.limited(); f != nil {
		return f
	}
	if err := injector.CheckMethod(x.req.Method); err != nil {
		return &Refusal{Status: http.StatusMethodNotAllowed, Code: CodeBadRequest, Reason: err.Error()}
	}
	if x.dest.IsZero() {
		return &Refusal{Status: http.StatusBadRequest, Code: CodeBadRequest, Reason: "the request names no destination"}
	}
	w := x.conn.Caller.Workload
	if id := x.req.Header.Get(injector.TaskHeader); id != "" {
		t, err := x.p.cfg.Tasks.Lookup(id, w)
		if err != nil {
			return &Refusal{Status: http.StatusForbidden, Code: CodeTaskUnknown, Reason: "no open task of this workload and run has the id in " + injector.TaskHeader}
		}
		x.task = t
	} else {
		x.task = x.p.cfg.Tasks.Current(w)
	}
	x.describeTask()
	return nil
}

// turnedAway refuses for what is known of the connection, and of us.
func (x *exchange) turnedAway() *Refusal {
	err := x.conn.Refusal
	if unclear, ok := errors.AsType[proxy.Unclear](err); ok {
		return &Refusal{Status: http.StatusMisdirectedRequest, Code: CodeUnclear, Reason: string(unclear)}
	}
	if err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeUnattested, Err: err,
			Reason: "the calling process is not part of the attested workload; start it under attache run"}
	}
	if x.p.cfg.Stale == nil {
		return nil
	}
	if err := x.p.cfg.Stale(); err != nil {
		return &Refusal{Status: http.StatusServiceUnavailable, Code: CodeStale, RetryAfter: 10 * time.Second, Err: err,
			Reason: "the policy in force is too old to decide by: " + err.Error()}
	}
	return nil
}

// limited counts one request and refuses it if there are too many.
func (p *Pipeline) limited() *Refusal {
	if p.rate == nil || p.rate.Allow() {
		return nil
	}
	return &Refusal{Status: http.StatusTooManyRequests, Code: CodeRateLimited, Reason: "the limit maxRequestsPerSec is reached", RetryAfter: time.Second}
}

func (x *exchange) policyRequest() *policy.Request {
	return &policy.Request{
		Host: x.dest.Host, Port: x.dest.Port, Scheme: x.dest.Scheme, Method: x.req.Method, Path: x.path, Query: x.query,
		Header: x.req.Header, Protocol: x.protocol, Workload: x.conn.Caller.Workload, Process: x.conn.Caller.Process,
		Task: x.task, Time: x.start,
	}
}

// sender is for whom the request is sent. One with a credential is reached as
// the credential's provider says, whatever other documents say of the host:
// in a cluster those may be somebody else's.
func (x *exchange) sender() upstream.Who {
	who := upstream.Who{Workload: x.conn.Caller.Workload, Task: x.task}
	if x.provider != nil && x.state.shared {
		who.Routes = x.provider.covers
	}
	return who
}

// mayInject checks everything about an injection that does not need the
// credential.
func (x *exchange) mayInject() *Refusal {
	x.provider = x.state.providers[x.decision.Grant.Provider]
	if x.provider == nil || !x.provider.covers.Covers(x.dest) {
		return &Refusal{Status: http.StatusForbidden, Code: CodeDenied,
			Reason: "the rule's provider does not list this destination; add it to the provider's spec.destinations"}
	}
	if x.dest.Scheme != "https" && (!x.provider.Spec.UnsafeCleartext || x.p.cfg.Upstream.ViaParent(x.dest, x.sender())) {
		return &Refusal{Status: http.StatusForbidden, Code: CodeCleartext,
			Reason: "no credential goes over unencrypted http; use https"}
	}
	x.req.URL.Scheme, x.req.URL.Host = x.dest.Scheme, x.dest.Authority()
	if err := x.provider.injector.Ambient(x.req, x.decision, x.p.cfg.Placeholders); err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeAmbientUse, Reason: err.Error()}
	}
	if x.decision.Grant.AWS != nil {
		return x.readClaim()
	}
	return nil
}

// who is for whom answers are sealed.
func (x *exchange) who() guard.Who {
	w := x.conn.Caller.Workload
	g := guard.Who{Workload: w.ID.String(), Run: w.RunID, Host: x.dest.Host, Cleartext: x.dest.Scheme != "https"}
	if x.task != nil {
		g.Task = x.task.ID
	}
	return g
}

// clean turns the agent's request into ours: nothing of the agent's own
// credentials, nothing that speaks to proxies, sealed handles opened again.
func (x *exchange) clean() {
	r := x.req
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countingBody{ReadCloser: r.Body, n: &x.sent, end: &x.whole}
	}
	x.whole.Store(r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0)
	who := x.who()
	opts := injector.StripOptions{Agent: x.decision.AgentCredentials, Placeholders: x.p.cfg.Placeholders,
		Sealed: func(h string) bool { return x.p.cfg.Vault.Holds(who, h) || x.relayed() && guard.IsHandle(h) }}
	if x.provider != nil {
		opts.Headers, opts.Params = x.provider.injector.Places()
	}
	x.rec.Request.Removed = injector.Strip(r, opts)
	if !x.relayed() { // the relay opens what it sealed
		x.opened = x.p.cfg.Vault.Unseal(r, who)
		x.rec.Request.Removed = append(x.rec.Request.Removed, x.opened.Removed...)
	}
	// Of all upgrades only this one is a protocol that policy knows. After
	// another (h2c above all) the agent could send requests that nobody sees.
	if x.protocol == policy.WebSocket {
		r.Header["Connection"], r.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if len(r.Trailer) > 0 {
		r.Body = &trailerStripper{ReadCloser: r.Body, strip: func() { injector.StripTrailer(r.Trailer, opts) }}
	}
	x.tagRequest()
}

// tagRequest carries the record id upstream, where access logs keep it.
func (x *exchange) tagRequest() {
	if x.p.cfg.Keep != nil { // the sidecar did
		return
	}
	h := x.req.Header
	if ua := h.Get("User-Agent"); ua != "" {
		h["User-Agent"] = []string{ua + " attache/" + x.rec.ID}
	} else {
		h["User-Agent"] = []string{"attache/" + x.rec.ID}
	}
	if h.Get("X-Request-Id") == "" {
		h["X-Request-Id"] = []string{x.rec.ID}
	}
}

// outURL is the request's URL with the very bytes of the path that policy saw.
func (x *exchange) outURL() *url.URL {
	u := *x.req.URL
	u.Scheme, u.Host, u.User, u.Fragment = x.dest.Scheme, x.dest.Authority(), nil, ""
	if !strings.HasPrefix(x.path, "//") { // which net/url would read as an authority
		u.Opaque = x.path
	}
	return &u
}

// abort answers a failure of a call that was allowed.
func (x *exchange) abort(w http.ResponseWriter, f *Refusal) {
	switch f.Code {
	case CodeRevoked:
		x.result.Outcome = audit.OutcomeRevoked
	case CodeCanceled:
		x.result.Outcome = audit.OutcomeCanceled
	case CodeLeak:
		x.result.Outcome = audit.OutcomeLeak
	}
	x.refuse(w, f)
}

// deliver guards the answer and streams it to the agent.
func (x *exchange) deliver(ctx context.Context, w http.ResponseWriter, resp *http.Response) {
	x.steps.FirstByte = x.since()
	x.result.Status = resp.StatusCode
	x.result.UpstreamRequestID = upstreamID(resp.Header)
	g, err := x.guard(resp)
	if err != nil {
		_ = resp.Body.Close()
		x.abort(w, &Refusal{Status: http.StatusBadGateway, Code: CodeProtocol, Err: err,
			Reason: "the answer cannot be checked for credentials (content coding); ask the origin for gzip or identity"})
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.upgrade(ctx, w, resp, g)
		return
	}
	err = x.answer(ctx, w, resp)
	x.result.GRPCStatus = resp.Trailer.Get("Grpc-Status")
	x.conclude(ctx, g, err)
	if err != nil {
		// The head is out: the only honest end is to break the connection.
		panic(http.ErrAbortHandler)
	}
}

// guard keeps credentials out of resp.
func (x *exchange) guard(resp *http.Response) (*guard.Guarded, error) {
	o := guard.Options{Who: x.who(), Answers: x.decision.Answers}
	if x.decision.Verdict == policy.Inject && !x.relayed() { // the relay has sealed, and opens
		o.Vault = x.p.cfg.Vault
	}
	o.Patterns = x.guardPatterns()
	if x.decision.Grant.AWS != nil {
		o.Members = x.aws.call.Secrets
	}
	if x.storedData(resp) {
		return guardData(resp, o)
	}
	if o.Patterns == nil && o.Vault == nil {
		return nil, nil
	}
	return guard.Response(resp, o)
}

// conclude settles the outcome and ends the record.
func (x *exchange) conclude(ctx context.Context, g *guard.Guarded, err error) {
	if g != nil {
		x.result.Sealed, x.result.Masked = g.Sealed(), g.Masked()
	}
	err = cause(ctx, err)
	switch {
	case err == nil:
		x.result.Outcome = audit.OutcomeOK
	case errors.Is(err, guard.ErrLeak):
		x.result.Outcome, x.result.ErrorKind = audit.OutcomeLeak, CodeLeak
		x.p.leaked(x)
	case errors.Is(err, errRevoked), errors.Is(err, errMaxStream):
		x.result.Outcome, x.result.ErrorKind = audit.OutcomeRevoked, CodeRevoked
	case errors.Is(err, errClient), errors.Is(err, context.Canceled):
		x.result.Outcome, x.result.ErrorKind = audit.OutcomeCanceled, CodeCanceled
	default:
		x.result.Outcome, x.result.ErrorKind = audit.OutcomeError, CodeProtocol
	}
	x.finish()
}

// upstreamID is the request id that the origin gave the call.
func upstreamID(h http.Header) string {
	for _, k := range []string{"X-Request-Id", "Request-Id", "X-Amzn-Requestid", "X-Amz-Request-Id", "X-Github-Request-Id", "X-Ms-Request-Id", "Cf-Ray"} {
		if v := h[k]; len(v) > 0 {
			return v[0]
		}
	}
	return ""
}
