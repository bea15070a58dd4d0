package pipeline_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/minting"
)

// Invariants 4 and 6: when the origin hears of a call, the intent is in the
// spool, and so is the handle by which its credential can be revoked.
func TestIntentAndHandleAreWrittenBeforeTheSend(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		r := newRig(t, settings{})
		r.serve(func(_ http.ResponseWriter, q *http.Request) {
			var begun, minted bool
			if err := audit.Read(r.spoolDir, audit.Filter{}, func(rec audit.Record) bool {
				begun = begun || rec.Type == audit.TypeBegin && rec.ID == q.Header.Get("X-Request-Id")
				if e := rec.Event; e != nil && e.Name == minting.EventMinted {
					live := r.cache.Live()
					minted = len(live) == 1 && e.Fields["handle"] == live[0].Handle
				}
				return true
			}); err != nil {
				t.Error(err)
			}
			if !begun || !minted {
				t.Errorf("the origin was called first: begin written %v, handle written %v", begun, minted)
			}
		})
		r.do(r.client(h2), http.MethodGet, "https://api.test/", nil)
		if rec := r.record(); rec.Result.Outcome != audit.OutcomeOK || !strings.HasPrefix(rec.Credential.Handle, "cred_") {
			t.Errorf("record %+v", rec)
		}
	}
}
