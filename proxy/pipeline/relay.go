package pipeline

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/relay"
)

// ErrRevoked is a cause with which a context ends the exchanges under it as
// revoked.
var ErrRevoked = errRevoked

// Relay sends requests by way of a relay of the control plane, which puts the
// credential on: *relay.Client. It is safe for concurrent use.
type Relay interface {
	Send(r *http.Request, c relay.Call) (*http.Response, error)
}

// Kept is what a relay keeps of an exchange. The record belongs to the
// pipeline, and is the receiver's during the call only.
type Kept struct {
	Record   *audit.Record
	Provider string // whose credential a rule gives; empty: none
	Address  string // of the origin; empty: none was reached
	Done     bool   // false: it is about to be sent
	Begun    bool   // of a Done one: it was told of before
}

// keep tells of an exchange of a relay.
func (x *exchange) keep(ctx context.Context, done bool) error {
	return x.p.cfg.Keep(ctx, Kept{Record: &x.rec, Provider: x.decision.Grant.Provider, Address: x.address(), Done: done, Begun: x.begun})
}

// address is the origin's, once it is known.
func (x *exchange) address() string {
	if x.extra == nil || x.extra.Request == nil {
		return ""
	}
	return x.extra.Request.Address
}

// sayAddress lets the sidecar record where its call went.
func (x *exchange) sayAddress(h http.Header) {
	if a := x.address(); a != "" && x.p.cfg.Keep != nil {
		h[relay.HeaderAddress] = []string{a}
	}
}

// forRelay refuses what no relay is for: it must not lend its place in the
// network to calls without a credential of its own.
func (x *exchange) forRelay() *Refusal {
	p := x.state.providers[x.decision.Grant.Provider]
	if x.decision.Verdict == policy.Inject && p != nil && api.ByRelay(&p.Spec) {
		return nil
	}
	x.decision.Verdict = policy.Deny
	return &Refusal{Status: http.StatusForbidden, Code: CodeDenied,
		Reason: "by the control plane's own view no rule gives this call a credential that a relay puts on (" + x.decision.Reason + ")"}
}

// relayed reports whether the credential is put on beyond us.
func (x *exchange) relayed() bool { return x.cred.Kind == minting.KindRelay || x.toRelay() }

// toRelay reports it before there is a credential.
func (x *exchange) toRelay() bool {
	return x.p.cfg.Keep == nil && x.provider != nil && api.ByRelay(&x.provider.Spec)
}

// sendRelayed sends x.req by way of the relay.
func (x *exchange) sendRelayed(ctx context.Context, w http.ResponseWriter) (*http.Response, *Refusal) {
	if x.p.cfg.Relay == nil || x.cred.Kind != minting.KindRelay {
		return nil, &Refusal{Status: http.StatusServiceUnavailable, Code: CodeRelay, RetryAfter: 10 * time.Second,
			Reason: "the credential of provider " + x.decision.Grant.Provider + " is put on by a relay of the control plane, and there is none"}
	}
	x.steps.Injected = x.since()
	call := relay.Call{To: x.dest, Handle: x.cred.Handle, Record: x.rec.ID}
	resp, err := x.sendBy(ctx, w, func(string) {}, func(r *http.Request) (*http.Response, error) {
		return x.p.cfg.Relay.Send(r, call)
	})
	if err != nil {
		return nil, x.relayLost(ctx, err)
	}
	if f := relay.ReadRefusal(resp); f != nil {
		return nil, x.relayRefusal(f)
	}
	if a := resp.Header.Get(relay.HeaderAddress); a != "" {
		x.answeredFrom(a)
	}
	resp.Header.Del(relay.HeaderAddress)
	return resp, nil
}

// relayLost is a call whose relay gave no answer. What became of it beyond the
// relay, if anything, is in the control plane's records.
func (x *exchange) relayLost(ctx context.Context, err error) *Refusal {
	err = cause(ctx, err)
	var netErr net.Error
	switch {
	case errors.Is(err, errRevoked), errors.Is(err, errMaxStream), errors.Is(err, context.Canceled):
		return x.upstreamRefusal(ctx, err)
	case errors.As(err, &netErr) && netErr.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return &Refusal{Status: http.StatusGatewayTimeout, Code: CodeTimeout, Err: err, Reason: "the relay, or " + x.dest.Host + " behind it, did not answer in time"}
	}
	return &Refusal{Status: http.StatusServiceUnavailable, Code: CodeRelay, Err: err, RetryAfter: 2 * time.Second,
		Reason: "the relay that puts on the credential of provider " + x.decision.Grant.Provider + " cannot be reached, or broke off; the operator finds the cause in Attaché's log under this record"}
}

// relayRefusal words the relay's refusal for the agent. What it says of the
// origin and of revocations is told as if it were ours; else the two of us
// disagree, which is an operator's business.
func (x *exchange) relayRefusal(f *relay.Refusal) *Refusal {
	out := &Refusal{Status: f.Status, Code: f.Code, Reason: f.Reason, RetryAfter: f.RetryAfter, Err: errors.New("the relay: " + f.Code + ": " + f.Reason)}
	switch f.Code {
	case CodeMintDenied, CodeMintUnavailable, CodeInject, CodeUnreachable, CodeUpstreamTLS, CodeAddress, CodeLoop, CodeTimeout, CodeProtocol,
		CodeLeak, CodeRevoked, CodeRateLimited, CodeRelay:
	case CodeAuditFull:
		out.Code, out.Reason = CodeRelay, "the relay cannot record this call, so it is not made"
	default:
		out.Status, out.Code = http.StatusForbidden, CodeRelayDenied
		out.Reason = "the relay, which decides by itself, refused: " + f.Reason
	}
	return out
}
