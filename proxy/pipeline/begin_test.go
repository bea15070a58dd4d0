package pipeline_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
)

// serveAs calls the pipeline as a front door does, for a caller that may have
// gone away.
func (r *rig) serveAs(ctx context.Context, path string) *httptest.ResponseRecorder {
	dest, err := destination.Parse("https", "api.test:443", 443)
	if err != nil {
		r.t.Fatal(err)
	}
	conn := &proxy.Conn{Door: "connect", Dest: dest, Caller: identity.Caller{Workload: r.workload, Process: identity.Process{PID: 42}}}
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // http.ErrAbortHandler, as net/http does
		r.ServeHTTP(w, httptest.NewRequestWithContext(proxy.WithConn(ctx, conn), http.MethodGet, "https://api.test"+path, nil))
	}()
	return w
}

// A caller that goes away before its record is begun is not told that the
// spool is broken, and the operator is not alarmed.
func TestCanceledBeforeBegin(t *testing.T) {
	r := newRig(t, settings{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.serveAs(ctx, "/ok")
	rec := r.record()
	if rec.Result.Outcome != audit.OutcomeCanceled || rec.Result.ErrorKind != "canceled" || r.requests.Load() != 0 {
		t.Errorf("got %+v and %d requests, want canceled and none", rec.Result, r.requests.Load())
	}
}

// A caller that goes away while the begin is synced gets one record all the
// same: the spool has ended it.
func TestCanceledWhileSyncing(t *testing.T) {
	r := newRig(t, settings{audit: func(o *audit.Options) { o.Durability = "power" }})
	const calls = 60
	for i := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*40*time.Microsecond)
		r.serveAs(ctx, "/ok")
		cancel()
	}
	r.records(calls) // holds that each is there once, and finished
}
