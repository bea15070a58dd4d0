package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// awsBodyBytes bounds a body that must be read before the call is understood:
// those of services whose operation or resource stands in it. It is what
// DynamoDB takes in one batch; Kinesis takes 10 MiB, the others less.
const awsBodyBytes = 16 << 20

// readBody reads the whole body. Those bytes are what is understood, signed
// and sent.
func (x *exchange) readBody(ctx context.Context, w http.ResponseWriter) *Refusal {
	tooLarge := &Refusal{Status: http.StatusRequestEntityTooLarge, Code: CodeAWSCall,
		Reason: fmt.Sprintf("what this call asks for stands in its body, of which at most %d bytes are read; send smaller batches", awsBodyBytes)}
	r := x.req
	if f := x.hold(ctx, awsBodyBytes); f != nil {
		return f
	}
	stop := cutReads(ctx, w)
	var buf bytes.Buffer
	if n := min(r.ContentLength, awsBodyBytes); n > 0 {
		buf.Grow(int(n) + bytes.MinRead) // else it is copied as it grows
	}
	_, err := buf.ReadFrom(io.LimitReader(r.Body, awsBodyBytes+1))
	stop()
	b := buf.Bytes()
	if ctx.Err() != nil {
		return x.upstreamRefusal(ctx, ctx.Err())
	}
	if err != nil {
		return &Refusal{Status: 499, Code: CodeCanceled, Err: err, Reason: "the request's body broke off"}
	}
	if len(b) > awsBodyBytes {
		return tooLarge
	}
	x.aws.body = b
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	r.Header.Del("Expect") // it has been met
	return nil
}

// heldBytes bounds the memory for bodies that are read before they are sent, of
// all exchanges together; more wait.
const heldBytes = 64 << 20

// hold reserves memory for a body, of the length that it declares or of most
// bytes.
func (x *exchange) hold(ctx context.Context, most int64) *Refusal {
	if n := x.req.ContentLength; n >= 0 && n < most {
		most = n
	}
	if err := x.p.held.Acquire(ctx, most); err != nil {
		return x.upstreamRefusal(ctx, err)
	}
	x.aws.held += most
	return nil
}

// release gives back what hold reserved.
func (x *exchange) release() { x.p.held.Release(x.aws.held) }

// cutReads ends a read from the agent once ctx does: the end of a task must not
// wait for an agent that sends nothing. The caller calls what it returns when
// it has read.
func cutReads(ctx context.Context, w http.ResponseWriter) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) })
}

// hasBody reports whether anything follows r's head.
func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}
