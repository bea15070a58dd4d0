package pipeline

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy"
)

// Passthrough reports whether policy wants c's bytes tunnelled untouched. It
// is asked before any request is seen.
func (p *Pipeline) Passthrough(_ context.Context, c *proxy.Conn) bool {
	if c.Refusal != nil {
		return false
	}
	s := p.state.Load()
	return s.Policies.DecideConn(p.connRequest(c, p.cfg.Tasks.Current(c.Caller.Workload))).Verdict == policy.Passthrough
}

func (p *Pipeline) connRequest(c *proxy.Conn, t *identity.Task) *policy.Request {
	return &policy.Request{
		Host: c.Dest.Host, Port: c.Dest.Port, Scheme: c.Dest.Scheme, Protocol: policy.TLS, Method: http.MethodConnect,
		Workload: c.Caller.Workload, Process: c.Caller.Process, Task: t, Time: p.cfg.Now(),
	}
}

// Tunnel carries a passthrough connection and writes its record. client's
// first read gives the bytes that the front door has already seen. A tunnel
// that carries nothing for limits.tunnelIdleTimeout is cut. An error matches
// [proxy.Refused] where nothing was carried.
func (p *Pipeline) Tunnel(ctx context.Context, c *proxy.Conn, client net.Conn) error {
	x := &exchange{p: p, state: p.state.Load(), conn: c, start: p.cfg.Now(), dest: c.Dest, protocol: policy.TLS}
	if c.Opaque != "" {
		x.protocol = c.Opaque
	}
	if c.Refusal == nil {
		x.task = p.cfg.Tasks.Current(c.Caller.Workload)
		x.decision = x.state.Policies.DecideConn(p.connRequest(c, x.task))
	}
	x.rec = audit.Record{
		ID: newRecordID(), Time: x.start, Unsafe: p.cfg.Unsafe,
		Decision: &audit.Decision{},
		Request:  &audit.Request{Door: c.Door, Scheme: c.Dest.Scheme, Host: c.Dest.Host, Port: c.Dest.Port, Method: http.MethodConnect, Protocol: x.protocol},
	}
	x.describeCaller()
	x.describeTask()
	x.describeDecision()
	x.steps.Decided = x.since()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.live.add(x, cancel)
	defer p.live.remove(x)
	if f := x.mayTunnel(); f != nil {
		x.decision.Verdict = policy.Deny
		x.rec.Decision.Verdict, x.rec.Decision.Code = policy.Deny.String(), f.Code
		x.result.Outcome, x.result.ErrorKind = audit.OutcomeDenied, f.Code
		x.finish()
		return x.refused(f, f)
	}
	if f := x.begin(ctx); f != nil {
		x.endTunnel(f.Code)
		return x.refused(f, f)
	}
	origin, err := p.cfg.Upstream.DialRaw(ctx, c.Dest)
	if err != nil {
		f := x.upstreamRefusal(ctx, err)
		x.endTunnel(f.Code)
		return x.refused(f, err)
	}
	defer origin.Close()
	if x.decision.MaxStream > 0 {
		t := time.AfterFunc(x.decision.MaxStream, func() { cancel(errMaxStream) })
		defer t.Stop()
	}
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = origin.Close() })
	defer stop()
	x.answeredFrom(origin.RemoteAddr().String())
	x.result.BytesUp, x.result.BytesDown, _ = x.splice(client, client, origin, cancel)
	switch context.Cause(ctx) { //nolint:errorlint // our own
	case errIdle:
		x.endTunnel(CodeTunnelIdle)
		return nil
	case errRevoked, errMaxStream:
		x.result.Outcome = audit.OutcomeRevoked
	default:
		x.result.Outcome = audit.OutcomeOK
	}
	x.finish()
	return nil
}

// mayTunnel asks again what only this moment can tell. A tunnel counts as one
// request.
func (x *exchange) mayTunnel() *Refusal {
	if f := x.turnedAway(); f != nil {
		x.rec.Decision.Reason = f.Reason
		return f
	}
	if x.decision.Verdict != policy.Passthrough { // the policy changed since it was asked
		return &Refusal{Status: http.StatusForbidden, Code: CodeDenied, Reason: x.decision.Reason}
	}
	if f := x.p.limited(); f != nil {
		x.rec.Decision.Reason = f.Reason
		return f
	}
	f := x.taskOpen() // it may have ended before it could cut us
	if f != nil {
		x.rec.Decision.Reason = f.Reason
	}
	return f
}

// refused is f for the front door, which answers in the client's protocol.
func (x *exchange) refused(f *Refusal, cause error) error {
	return &proxy.Refused{Record: x.rec.ID, Code: f.Code, Reason: f.Reason, Err: cause}
}

func (x *exchange) endTunnel(code string) {
	x.result.Outcome, x.result.ErrorKind = audit.OutcomeError, code
	x.finish()
}
