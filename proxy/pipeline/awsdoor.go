package pipeline

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/awsdoor"
)

// answerKeys answers what asks Attaché itself for AWS keys: requests at the
// AWS door's port or the address of the instance metadata service, and calls of
// STS that would hand out credentials. It reports
// whether it did. Policy is not asked, because nothing leaves us and
// placeholders are worth nothing; the caller is attested and the answer recorded
// like every other.
func (x *exchange) answerKeys(ctx context.Context, w http.ResponseWriter) bool {
	door := x.p.cfg.AWSDoor
	local := x.conn.Door == proxy.DoorAWS || door != nil && door.Metadata(x.dest)
	switch {
	case local && door == nil:
		x.refuse(w, &Refusal{Status: http.StatusNotFound, Code: CodeBadRequest, Reason: "this door is not open"})
		return true
	case !local && (door == nil || x.conn.Refusal != nil || !door.Asks(x.dest, x.req)): // of strangers not even a body is read
		return false
	}
	var a awsdoor.Answer
	if !local {
		body, ok := x.peekBody(awsdoor.STSBody)
		if ok {
			a, ok = door.STS(body, x.req.Header, x.rec.ID)
		}
		if !ok {
			return false
		}
		x.sent.Store(int64(len(body)))
	}
	if f := x.admit(); f != nil {
		x.refuse(w, f)
		return true
	}
	if local {
		a = door.Local(x.req)
	}
	x.giveKeys(ctx, w, door, a)
	return true
}

// peekBody reads a body of at most limit bytes and puts it back. ok is false
// if there is more, or an error, which the next reader meets again.
func (x *exchange) peekBody(limit int64) (body []byte, ok bool) {
	old := x.req.Body
	if old == nil {
		return nil, true
	}
	body, err := io.ReadAll(io.LimitReader(old, limit+1))
	x.req.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), old), old}
	return body, err == nil && int64(len(body)) <= limit
}

// giveKeys records the answer, then sends it.
func (x *exchange) giveKeys(ctx context.Context, w http.ResponseWriter, door *awsdoor.Door, a awsdoor.Answer) {
	x.decision = policy.Decision{Verdict: policy.Allow, Reason: a.Operation + ": answered by Attaché with placeholder keys of provider " + door.Provider()}
	x.describeDecision()
	x.result.Status, x.result.Outcome = a.Status, audit.OutcomeOK
	if a.Reason != "" {
		code := CodeBadRequest
		switch {
		case a.Ambient:
			code = CodeAmbientUse
		case a.Status == http.StatusForbidden:
			code = CodeDenied
		}
		x.decision.Verdict, x.result.Outcome, x.result.ErrorKind = policy.Deny, audit.OutcomeDenied, code
		*x.rec.Decision = audit.Decision{Verdict: policy.Deny.String(), Code: code, Reason: a.Operation + ": " + a.Reason}
	} else if f := x.begin(ctx); f != nil { // no record, no answer
		x.refuse(w, f)
		return
	}
	x.result.BytesDown = int64(len(a.Body))
	x.finish()
	h := w.Header()
	for name, v := range a.Header {
		h[name] = v
	}
	h.Set("Attache-Record", x.rec.ID)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", a.Type)
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	if x.req.Method != http.MethodHead {
		_, _ = w.Write(a.Body) // the client may be gone; the record is written
	}
}
