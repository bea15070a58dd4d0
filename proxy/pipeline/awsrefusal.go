package pipeline

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy/awsscope"
)

// awsRefusal says why a call to AWS is not made. The texts of these errors are
// written for the agent's developer. It returns nil for no error.
func awsRefusal(err error) *Refusal {
	if err == nil {
		return nil
	}
	f := &Refusal{Status: http.StatusBadRequest, Code: CodeAWSCall, Reason: clip(err.Error())}
	switch {
	case errors.Is(err, sigv4.ErrUnsigned), errors.Is(err, injector.ErrNoPlaceholder):
		f.Status, f.Code = http.StatusForbidden, CodeAmbientUse
	case errors.Is(err, sigv4.ErrExpired), errors.Is(err, awsscope.ErrMismatch):
		f.Status = http.StatusForbidden
	case errors.Is(err, sigv4.ErrTooLarge):
		f.Status = http.StatusRequestEntityTooLarge
	case errors.Is(err, awsscope.ErrTooLarge):
		f.Status, f.Code = http.StatusForbidden, CodeAWSScope
		f.Reason += "; ask for less in one call, or the rule may say credential.aws.onTooLarge"
	case errors.Is(err, awsscope.ErrNotAllowed), errors.Is(err, awsscope.ErrPolicy), errors.Is(err, awsscope.ErrEscape):
		f.Status, f.Code = http.StatusForbidden, CodeAWSScope
	}
	return f
}

// recordAsked says in the record of a refused call what it asked of AWS, where
// that was understood. Nothing was minted for it, so that it has no handle.
func (x *exchange) recordAsked() {
	a := x.aws
	if a == nil || a.call.Operation == "" || x.rec.Credential != nil {
		return
	}
	if a.scope == "" {
		a.scope = string(a.call.ScopeKind)
	}
	x.rec.Credential = &audit.Use{Provider: x.decision.Grant.Provider, Kind: minting.KindAWS}
	a.describe(x.rec.Credential)
}

// maxReason bounds, in bytes, a reason that repeats what the agent sent.
const maxReason = 1000

func clip(s string) string {
	if len(s) > maxReason {
		return s[:maxReason] + "…"
	}
	return s
}

// writeAWS answers in the form of the service that was called, so that its SDK
// prints the reason, and does not try again where that is of no use.
func (f *Refusal) writeAWS(w http.ResponseWriter, x *exchange, message string) {
	p := sigv4.ProtocolOf(x.req, x.aws.service)
	code, id := f.AWSCode, x.result.UpstreamRequestID
	if code == "" {
		code = awsCode(p, f.Status)
	}
	if id == "" {
		id = x.rec.ID
	}
	contentType, body := sigv4.ErrorBody(p, code, message+" [record "+x.rec.ID+"]", id)
	h := w.Header()
	for k, v := range sigv4.ErrorHeader(p, code, id) {
		h[k] = v
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Status)
	if x.req.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// awsCode is what a service would call a failure of this status. SDKs try again
// after the codes of 429 and of 500 and above, and after no other.
func awsCode(p sigv4.Protocol, status int) string {
	var c struct{ denied, invalid, large, busy, down string }
	switch p {
	case sigv4.S3XML:
		c.denied, c.invalid, c.large, c.busy, c.down = "AccessDenied", "InvalidRequest", "EntityTooLarge", "SlowDown", "ServiceUnavailable"
	case sigv4.EC2XML:
		c.denied, c.invalid, c.large, c.busy, c.down = "UnauthorizedOperation", "InvalidRequest", "InvalidRequest", "RequestLimitExceeded", "Unavailable"
	case sigv4.QueryXML, sigv4.RESTXML:
		c.denied, c.invalid, c.large, c.busy, c.down = "AccessDenied", "ValidationError", "ValidationError", "Throttling", "ServiceUnavailable"
	default:
		c.denied, c.invalid, c.large, c.busy, c.down = "AccessDeniedException", "ValidationException", "ValidationException", "ThrottlingException", "ServiceUnavailableException"
	}
	switch {
	case status == http.StatusForbidden:
		return c.denied
	case status == http.StatusRequestEntityTooLarge:
		return c.large
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return c.busy
	case status < http.StatusInternalServerError:
		return c.invalid
	}
	return c.down
}
