package pipeline

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/upstream"
)

// send mints, injects and sends; once more with a fresh credential where the
// origin calls ours stale and the request can be repeated (rule 9).
func (x *exchange) send(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	if x.decision.Verdict != policy.Inject {
		return x.roundTrip(ctx, w)
	}
	if x.decision.Grant.AWS != nil {
		return x.sendAWS(ctx, w)
	}
	if f := x.mint(ctx); f != nil {
		return nil, f
	}
	if x.relayed() {
		return x.sendRelayed(ctx, w)
	}
	guard.Request(x.req, x.decision.EchoRisk)
	body := x.keepBody()
	resp, f := x.injectAndSend(ctx, w)
	if f != nil {
		return nil, f
	}
	stale, nonce := x.stale(resp)
	if body == nil || !stale && !nonce || stale && !x.mintAnew(ctx) {
		return resp, nil
	}
	x.leave(func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // a short refusal lets the connection be used again
		_ = resp.Body.Close()
	})
	x.result.Retried = true
	x.req.Body = body()
	// The transport may still be writing the first attempt.
	x.req.Header = x.req.Header.Clone()
	return x.injectAndSend(ctx, w)
}

// leave ends an answer. While the request's body is still coming, closing an
// HTTP/2 answer waits for its next byte, which the agent may never send; then
// it is left to end with the exchange's context.
func (x *exchange) leave(end func()) {
	if x.whole.Load() {
		end()
		return
	}
	go end()
}

// stale reports whether the origin refused the credential as such, or asks for
// the same token with a nonce. A stale credential is forgotten even if this
// request cannot be repeated: the next one gets another.
func (x *exchange) stale(resp *http.Response) (stale, nonce bool) {
	if x.cred.Kind == minting.KindDPoP && x.p.cfg.Proofs.Learn(x.req, resp) {
		return false, true
	}
	codes := x.provider.Spec.RetryStatus
	if len(codes) == 0 {
		codes = []int{http.StatusUnauthorized}
	}
	// A credential that was minted for this very call is not stale.
	if !slices.Contains(codes, resp.StatusCode) || !x.cred.Cached {
		return false, false
	}
	x.p.cfg.Minter.Forget(x.cred.Handle)
	return true, false
}

// mintAnew replaces a stale credential. Both are looked for in the answer:
// what one origin calls stale may still open another.
func (x *exchange) mintAnew(ctx context.Context) bool {
	old := x.cred
	if f := x.mint(ctx); f != nil {
		x.cred = old // the answer to it is still to be guarded
		return false
	}
	x.opened.Secrets = append(x.opened.Secrets, x.provider.injector.Secrets(old)...)
	return true
}

// keepBody returns a function that gives the request's body again, or nil if
// it cannot or must not be sent twice.
func (x *exchange) keepBody() func() io.ReadCloser {
	r := x.req
	if !idempotent(r) || x.protocol != policy.HTTP {
		return nil
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return func() io.ReadCloser { return http.NoBody }
	}
	if r.ContentLength < 0 || r.ContentLength > int64(x.p.cfg.Limits.MaxReplayBytes) || r.Header.Get("Expect") != "" {
		return nil
	}
	kept := &keptBody{src: r.Body}
	r.Body = kept.again()
	return kept.again
}

// keptBody is a small body that can be sent twice. An origin need not wait for
// the body to answer, so the transport may still read it for the first attempt
// while the second one begins.
type keptBody struct {
	src  io.Reader
	mu   sync.Mutex    // guards what follows
	more chan struct{} // closed when the read under way ends; nil: none is
	kept []byte
	err  error
}

// again returns a reader of the whole body. Closing it does nothing: the front
// door closes its own body.
func (k *keptBody) again() io.ReadCloser { return io.NopCloser(&keptReader{body: k}) }

type keptReader struct {
	body *keptBody
	at   int
}

// Read gives what was kept, then reads on and keeps that too.
func (r *keptReader) Read(p []byte) (int, error) {
	k := r.body
	for {
		k.mu.Lock()
		switch more := k.more; {
		case r.at < len(k.kept):
			n := copy(p, k.kept[r.at:])
			r.at += n
			k.mu.Unlock()
			return n, nil
		case k.err != nil:
			defer k.mu.Unlock()
			return 0, k.err
		case more != nil: // the other attempt is reading on
			k.mu.Unlock()
			<-more
		default:
			k.more = make(chan struct{})
			k.mu.Unlock()
			n, err := k.src.Read(p)
			r.at += n
			k.mu.Lock()
			defer k.mu.Unlock()
			k.kept, k.err = append(k.kept, p[:n]...), err
			close(k.more)
			k.more = nil
			return n, err
		}
	}
}

// idempotent as RFC 9110 section 9.2.2 has it, or made so by a key
// (draft-ietf-httpapi-idempotency-key-header).
func idempotent(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get("Idempotency-Key") != ""
}

// mint gets the credential that the decision grants.
func (x *exchange) mint(ctx context.Context) *Refusal {
	w, g := x.conn.Caller.Workload, &x.decision.Grant
	req := minting.Request{
		Provider: g.Provider, Generation: x.provider.Generation,
		WorkloadID: w.ID.String(), PostureDigest: x.rec.Workload.PostureDigest, RunID: w.RunID, Caller: x.conn.Caller.Process.Digest,
		Destination: x.dest.Scheme + "://" + x.dest.HostPort(), Audience: g.Audience, Resources: g.Resources, Role: g.Role, Scope: g.Scope,
		AuthorizationDetails: g.AuthorizationDetails, TTL: x.ttl(), Actor: w.ID.String(),
	}
	if t := x.task; t != nil {
		req.TaskID = t.ID
		if t.Human != nil {
			req.Subject, req.SubjectToken = t.Human.Issuer+"|"+t.Human.Subject, t.SubjectToken.Fingerprint()
		}
	}
	if g.AWS != nil {
		x.aws.session(&req)
	}
	e := minting.Evidence{Workload: w, Task: x.task, Source: x.p.cfg.Source, Call: minting.Call{
		Scheme: x.dest.Scheme, Host: x.dest.Host, Port: x.dest.Port, Method: x.req.Method, Path: x.path, Protocol: x.protocol, Record: x.rec.ID,
	}}
	c, err := x.p.cfg.Minter.Mint(ctx, req, e)
	if errors.Is(err, minting.ErrPolicyTooLarge) && x.coarser() {
		x.aws.session(&req)
		c, err = x.p.cfg.Minter.Mint(ctx, req, e)
	}
	x.steps.Minted = x.since()
	if err != nil {
		return x.mintRefusal(ctx, err)
	}
	x.cred = c
	if !x.p.live.holds(x, c.Handle) {
		return &Refusal{Status: http.StatusForbidden, Code: CodeRevoked, Reason: "the credential was revoked before the call was made"}
	}
	if f := x.taskOpen(); f != nil { // it may have ended while the issuer was asked
		return f
	}
	asked := g.Scope
	x.rec.Credential = &audit.Use{Handle: c.Handle, Provider: c.Provider, Kind: c.Kind, ScopeAsked: asked, ScopeGranted: c.Scope,
		ScopeSource: g.ScopeSource, Static: !c.Derived, Expires: c.Expires, Cached: c.Cached, PublicID: c.PublicID()}
	if strings.HasSuffix(c.Role, "/"+c.Handle) { // MinIO answers without a session's name
		x.rec.Credential.Session = c.Role
	}
	if g.AWS != nil {
		x.aws.describe(x.rec.Credential)
	}
	if !c.Expires.IsZero() {
		x.rec.Credential.TTLSeconds = int64(c.Expires.Sub(x.start).Seconds())
	}
	return nil
}

// taskOpen refuses a call whose task has ended since it was looked up.
func (x *exchange) taskOpen() *Refusal {
	if x.task == nil {
		return nil
	}
	if _, err := x.p.cfg.Tasks.Lookup(x.task.ID, x.conn.Caller.Workload); err != nil {
		return &Refusal{Status: http.StatusForbidden, Code: CodeRevoked, Err: err, Reason: "the task ended before the call was made"}
	}
	return nil
}

// ttl is the rule's wish within the provider's bound.
func (x *exchange) ttl() time.Duration {
	ttl, bound := x.decision.Grant.TTL, x.provider.Spec.TTL.D()
	if bound <= 0 {
		bound = 5 * time.Minute
	}
	if ttl <= 0 || ttl > bound {
		return bound
	}
	return ttl
}

func (x *exchange) mintRefusal(ctx context.Context, err error) *Refusal {
	wait, _ := minting.RetryAfter(err)
	who := "provider " + x.decision.Grant.Provider
	switch {
	case ctx.Err() != nil:
		return x.upstreamRefusal(ctx, err)
	case errors.Is(err, minting.ErrPolicyTooLarge):
		return &Refusal{Status: http.StatusForbidden, Code: CodeAWSScope, Err: err,
			Reason: who + ": the session policy of this call is larger than STS takes; ask for less in one call, or the rule may say credential.aws.onTooLarge"}
	case errors.Is(err, minting.ErrDenied):
		return &Refusal{Status: http.StatusForbidden, Code: CodeMintDenied, Err: err,
			Reason: who + ": the issuer refused the credential; the operator finds its answer in Attaché's log under this record"}
	case errors.Is(err, identity.ErrUnavailable):
		return &Refusal{Status: http.StatusServiceUnavailable, Code: CodeNoIdentity, Err: err, RetryAfter: max(wait, time.Second),
			Reason: who + ": the workload's identity is not available now"}
	default:
		return &Refusal{Status: http.StatusServiceUnavailable, Code: CodeMintUnavailable, Err: err, RetryAfter: max(wait, time.Second),
			Reason: who + ": no credential can be had now; the operator finds the cause in Attaché's log under this record"}
	}
}

func (x *exchange) injectAndSend(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	x.req.URL.Scheme, x.req.URL.Host = x.dest.Scheme, x.dest.Authority()
	if err := x.provider.injector.Apply(x.req, x.cred); err != nil {
		return nil, &Refusal{Status: http.StatusBadGateway, Code: CodeInject, Err: err,
			Reason: "the credential cannot be put on this request; the operator finds the cause in Attaché's log under this record"}
	}
	x.steps.Injected = x.since()
	return x.roundTrip(ctx, w)
}

// roundTrip sends x.req as it stands.
func (x *exchange) roundTrip(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	resp, err := x.sendBy(ctx, w, x.answeredFrom, func(r *http.Request) (*http.Response, error) {
		return x.p.cfg.Upstream.Send(r, x.dest, x.sender())
	})
	if err != nil {
		return nil, x.upstreamRefusal(ctx, err)
	}
	return resp, nil
}

// sendBy makes the request that leaves of x.req as it stands, and sends it.
// connected is told where it goes.
func (x *exchange) sendBy(ctx context.Context, w http.ResponseWriter, connected func(address string), send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	in := x.req
	plain := http.Request{ // on the stack: WithContext makes the copy that is sent
		Method: in.Method, URL: x.outURL(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: in.Header, Host: x.dest.Authority(), ContentLength: in.ContentLength, Trailer: in.Trailer,
	}
	if in.Body != nil && in.Body != http.NoBody && (in.ContentLength != 0) {
		plain.Body = in.Body
	}
	// A 1xx answer may arrive while a failure is already being written.
	var mu sync.Mutex // guards over
	over := false
	out := plain.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { connected(i.Conn.RemoteAddr().String()) },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			if !over {
				x.informational(w, code, http.Header(h))
			}
			return nil
		},
	}))
	defer func() { mu.Lock(); over = true; mu.Unlock() }()
	return send(out)
}

// answeredFrom notes the address that was dialled.
func (x *exchange) answeredFrom(addr string) {
	x.reached = true
	at := x.p.reached.Load() // the last one is most often the same
	if at == nil || at.Address != addr {
		at = &audit.Request{Address: addr}
		x.p.reached.Store(at)
	}
	x.more().Request = at // readers lay it over the begin; never written to
}

// informational passes 1xx answers such as 103 Early Hints on; 100 is the
// front door's own business and 101 ends the exchange.
func (x *exchange) informational(w http.ResponseWriter, code int, h http.Header) {
	if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return
	}
	// Its header is guarded as that of the final answer is.
	early := &http.Response{StatusCode: code, Header: h.Clone()}
	if _, err := x.guard(early); err != nil {
		return
	}
	h = early.Header
	dropConnectionNamed(h)
	for _, k := range strippedAnswer {
		delete(h, k)
	}
	to := w.Header()
	for k, v := range h {
		to[k] = v
	}
	w.WriteHeader(code)
	clear(to)
}

// guardPatterns are the secrets of this exchange: the injected credential's,
// those of sealed values that were opened for this request, and a stale one's.
func (x *exchange) guardPatterns() *guard.Patterns {
	if len(x.opened.Secrets) > 0 {
		all := x.opened.Secrets
		if x.cred.Handle != "" && !x.relayed() {
			all = append(slices.Clip(all), x.provider.injector.Secrets(x.cred)...)
		}
		return guard.NewPatterns(all...)
	}
	if x.cred.Handle == "" || x.relayed() {
		return nil
	}
	return x.p.patterns.Get(x.cred.Handle, func() []secret.Value { return x.provider.injector.Secrets(x.cred) })
}

// upstreamRefusal names what went wrong between us and the origin. The text
// of err may hold addresses and is kept for the operator.
func (x *exchange) upstreamRefusal(ctx context.Context, err error) *Refusal {
	err = cause(ctx, err)
	f := &Refusal{Status: http.StatusBadGateway, Code: CodeUnreachable, Err: err, Reason: x.dest.Host + " cannot be reached"}
	if x.reached {
		f.Code, f.Reason = CodeProtocol, x.dest.Host+" broke off the call, or its answer is not valid HTTP"
	}
	var (
		certErr *tls.CertificateVerificationError
		recErr  tls.RecordHeaderError
		hostErr x509.HostnameError
		netErr  net.Error
		alert   tls.AlertError
	)
	switch {
	case errors.Is(err, errRevoked), errors.Is(err, errMaxStream):
		f.Status, f.Code, f.Reason = http.StatusForbidden, CodeRevoked, "the task or credential of this call was ended: "+err.Error()
	case errors.Is(err, context.Canceled):
		f.Status, f.Code, f.Reason = 499, CodeCanceled, "the caller went away"
	case errors.Is(err, upstream.ErrAddress):
		f.Status, f.Code = http.StatusForbidden, CodeAddress
		f.Reason = x.dest.Host + " points at a private, loopback or metadata address; the operator can pin it in spec.destinations[].addresses"
	case errors.Is(err, upstream.ErrLoop):
		f.Status, f.Code, f.Reason = http.StatusLoopDetected, CodeLoop, upstream.ErrLoop.Error()
	case errors.As(err, &certErr), errors.As(err, &hostErr), errors.As(err, &recErr), errors.As(err, &alert):
		f.Code, f.Reason = CodeUpstreamTLS, "the certificate or TLS of "+x.dest.Host+" does not verify: "+tlsCause(err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		f.Status, f.Code, f.Reason = http.StatusGatewayTimeout, CodeTimeout, x.dest.Host+" did not answer in time"
	}
	return f
}

// tlsCause is the part of a certificate error that an agent may see.
func tlsCause(err error) string {
	var (
		invalid x509.CertificateInvalidError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "it has expired or is not yet valid"
	case errors.As(err, &invalid):
		return "it is not valid"
	case errors.As(err, &unknown):
		return "its authority is unknown; set caFile on the destination if it is private"
	case errors.As(err, &host):
		return "it is for another name"
	}
	return "the handshake failed"
}

// leaked ends a credential that came back in an answer, which cuts whatever
// else uses it (invariant 6). A static key has no end that we could bring
// about, and every caller of its provider shares it: to stop them would only
// let one answer end the others' calls. There the answer alone is cut.
func (p *Pipeline) leaked(x *exchange) {
	if x.cred.Kind == minting.KindAPIKey {
		p.cfg.Log.Error("origin repeated a static key; the answer is cut, replace the key if it went elsewhere too", "record", x.rec.ID, "host", x.dest.Host, "handle", x.cred.Handle)
		return
	}
	p.cfg.Log.Error("origin repeated the credential; it is revoked", "record", x.rec.ID, "host", x.dest.Host, "handle", x.cred.Handle)
	if p.cfg.Revoke != nil && x.cred.Handle != "" { // what leaked may be an opened handle's value
		go p.cfg.Revoke(x.cred.Handle)
	}
}

// countingBody counts what the agent sends.
type countingBody struct {
	io.ReadCloser
	n   *atomic.Int64
	end *atomic.Bool // set when it has been read, or failed
}

// Read implements io.Reader.
func (c *countingBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	if err != nil {
		c.end.Store(true)
	}
	return n, err
}

// trailerStripper cleans request trailers once they are known.
type trailerStripper struct {
	io.ReadCloser
	strip func()
}

// Read implements io.Reader.
func (t *trailerStripper) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF {
		t.strip()
	}
	return n, err
}
