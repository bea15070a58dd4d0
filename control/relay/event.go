package relay

import (
	"context"
	"time"

	"github.com/attache-dev/attache/proxy/pipeline"
)

// Results of an [Event].
const (
	resultSent   = "sent"
	resultEnded  = "ended"
	resultDenied = "denied"
)

// Event is one step of a call through the relay: who, for whom, why, and what
// came of it. It holds no secret. Sent and ended are two events of one call,
// known by Record.
type Event struct {
	Time      time.Time `json:"time"`   // when the call came in
	Result    string    `json:"result"` // sent, ended or denied
	PodUID    string    `json:"pod_uid"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Workload  string    `json:"workload"` // SPIFFE ID
	Owner     string    `json:"owner,omitempty"`
	Provider  string    `json:"provider,omitempty"`
	// Of the call. Record and Handle are the sidecar's words.
	Destination string `json:"destination,omitempty"`
	Method      string `json:"method,omitempty"`
	Path        string `json:"path,omitempty"` // the rule's template
	Record      string `json:"record,omitempty"`
	Handle      string `json:"handle,omitempty"`
	Policy      string `json:"policy,omitempty"`
	Rule        string `json:"rule,omitempty"`
	Version     string `json:"version,omitempty"` // of the policy
	// Root names the Secret, as NAMESPACE/NAME.
	Root string `json:"root,omitempty"`
	// Of the end.
	Address   string `json:"address,omitempty"` // of the origin
	Status    int    `json:"status,omitempty"`
	Outcome   string `json:"outcome,omitempty"`
	BytesUp   int64  `json:"bytes_up,omitempty"`
	BytesDown int64  `json:"bytes_down,omitempty"`
	Code      string `json:"code,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Unrecorded is how many like it the relay has counted since the last event
	// that stood for them. Counted says that it does: each such event counts.
	Unrecorded int  `json:"unrecorded,omitempty"`
	Counted    bool `json:"-"`
}

// keep is what the pipelines tell of their exchanges. The credential's real
// handle stays here: the sidecar's is in all records.
func (s *Server) keep(ctx context.Context, k pipeline.Kept) error {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return errNoCall
	}
	r := k.Record
	e := c.Event
	e.Path, e.Policy, e.Rule, e.Version = r.Request.PathTemplate, r.Decision.Policy, r.Decision.Rule, r.Decision.Version
	if !k.Done {
		e.Result = resultSent
		s.sent(c, k.Provider)
	} else {
		e.Result, e.Address = resultEnded, k.Address
		e.Status, e.Outcome, e.BytesUp, e.BytesDown, e.Code = r.Result.Status, r.Result.Outcome, r.Result.BytesUp, r.Result.BytesDown, r.Result.ErrorKind
		if !k.Begun {
			e.Result, e.Reason = resultDenied, r.Decision.Reason
		}
		s.c.Metrics.calls.WithLabelValues(e.Result).Inc()
		s.c.Metrics.latency.Observe(s.c.Now().Sub(c.Time).Seconds())
	}
	if e.Provider = k.Provider; e.Provider != "" {
		e.Root = c.set.roots[e.Provider]
	}
	return s.c.Record(ctx, e)
}

// sent notes the provider, for revocations.
func (s *Server) sent(c *call, provider string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.provider = provider
}
