package relay

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/sweep"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/pipeline"
	wire "github.com/attache-dev/attache/proxy/relay"
)

// call is one call under way.
type call struct {
	Event
	call     wire.Call
	workload *identity.Workload
	set      *set
	cancel   context.CancelCauseFunc
	provider string // as policies name it: NAME; guarded by Server.mu
}

type callKey struct{}

// begin counts a call in, unless it is revoked or there are too many of its
// pod.
func (s *Server) begin(c *call) *pipeline.Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.revoked, func(r *controlpb.Revocation) bool {
		return r.GetHandle() != "" && r.GetHandle() == c.Handle && s.concerns(r, c)
	}) {
		return &pipeline.Refusal{Status: http.StatusForbidden, Code: pipeline.CodeRevoked, Reason: "the credential was revoked"}
	}
	if s.pods[c.PodUID] >= maxPerPod {
		return &pipeline.Refusal{Status: http.StatusTooManyRequests, Code: pipeline.CodeRateLimited, Reason: "too many calls of this pod are under way at the relay", RetryAfter: time.Second}
	}
	s.pods[c.PodUID]++
	s.live[c] = struct{}{}
	s.c.Metrics.live.Inc()
	return nil
}

// allowance is what one pod may call.
type allowance struct {
	*rate.Limiter
	told   time.Time // when it was last recorded that there was none
	untold int       // refusals since
	last   Event     // the last of those
}

// often refuses a call of a pod that makes too many, before anything else is
// done for it. tell says whether to record that: once in a while, with the
// number of those that were not, which c then has.
func (s *Server) often(c *call) (f *pipeline.Refusal, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.rates.Get(c.PodUID)
	if !ok {
		a = &allowance{Limiter: rate.NewLimiter(rate.Limit(s.c.Rate), burst*s.c.Rate)}
		s.rates.Add(c.PodUID, a)
	}
	if a.AllowN(c.Time, 1) {
		return nil, false
	}
	f = &pipeline.Refusal{Status: http.StatusTooManyRequests, Code: pipeline.CodeRateLimited, Reason: "this pod makes too many calls through the relay", RetryAfter: time.Second}
	c.Counted = true
	a.untold, a.last = a.untold+1, denied(c, f)
	if c.Time.Sub(a.told) < tellAgain {
		return f, false
	}
	c.Unrecorded = a.take(c.Time).Unrecorded
	return f, true
}

// take returns the event that stands for all that are untold.
func (a *allowance) take(now time.Time) Event {
	e := a.last
	e.Unrecorded = a.untold - 1
	a.told, a.untold = now, 0
	return e
}

// giveBack counts those of an event that was not recorded anew. s.mu is held.
func (s *Server) giveBack(e Event) {
	a, ok := s.rates.Peek(e.PodUID)
	if !ok {
		s.leave(e)
		return
	}
	if a.untold == 0 {
		a.last = e
	}
	a.untold += e.Unrecorded + 1
}

// leave keeps an event of a pod that rates forgot, up to a bound. s.mu is held.
func (s *Server) leave(e Event) {
	if len(s.left) < rememberedPod {
		s.left = append(s.left, e)
		return
	}
	s.lost += e.Unrecorded + 1
	s.c.Metrics.lost.Add(float64(e.Unrecorded + 1))
}

// Sweep records from now on what was only counted of pods that call no more: a
// minute after the last record of each, and the rest when stop is called, which
// is when no call can come any more.
func (s *Server) Sweep(ctx context.Context) (stop func()) {
	return sweep.Start(ctx, s.c.Log, tellAgain, s.tell)
}

// tell records the refusals that were only counted: of all pods, or of those
// whose minute is over. How many are lost since it last did is logged.
func (s *Server) tell(ctx context.Context, all bool) {
	now := s.c.Now()
	s.mu.Lock()
	list, lost := s.left, s.lost
	s.left, s.lost = nil, 0
	for _, a := range s.rates.Values() {
		if a.untold > 0 && (all || now.Sub(a.told) >= tellAgain) {
			list = append(list, a.take(now))
		}
	}
	s.mu.Unlock()
	if lost > 0 {
		s.c.Log.ErrorContext(ctx, "relay: refusals are lost: those of too many pods could not be recorded", "refusals", lost)
	}
	for _, e := range list {
		s.record(ctx, e)
	}
}

// record keeps a refusal. One that stands for others is not lost where that
// fails: it is counted with those that come.
func (s *Server) record(ctx context.Context, e Event) {
	err := s.c.Record(ctx, e)
	if err == nil {
		return
	}
	s.c.Log.ErrorContext(ctx, "relay: refusal not recorded", "pod_uid", e.PodUID, "code", e.Code, "unrecorded", e.Unrecorded, "cause", err)
	if e.Counted {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.giveBack(e)
	}
}

func (s *Server) end(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, c)
	if s.pods[c.PodUID]--; s.pods[c.PodUID] <= 0 {
		delete(s.pods, c.PodUID)
	}
	s.c.Metrics.live.Dec()
}

// Revoke replaces the revocations in force. Calls that a new one concerns end,
// and roots are read anew. Tasks are the sidecars' own: they end their calls.
func (s *Server) Revoke(list []*controlpb.Revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := map[string]bool{}
	for _, r := range s.revoked {
		known[r.GetId()] = true
	}
	s.revoked = list
	for _, r := range list {
		if known[r.GetId()] || r.GetTask() != "" {
			continue
		}
		for c := range s.live {
			if s.concerns(r, c) {
				c.cancel(pipeline.ErrRevoked)
			}
		}
		s.forget(r.GetProvider())
	}
}

// forget ends the credentials of a provider that are in memory here.
// What an owner or pod is denied is not the root's business. s.mu is held.
func (s *Server) forget(provider string) {
	if provider == "" {
		return
	}
	if _, name, ok := strings.Cut(provider, "/"); ok {
		provider = name
	}
	for _, c := range s.sets {
		cache := c.cache
		go cache.RevokeWhere(context.Background(), func(q minting.Request, _ minting.Credential) bool { return q.Provider == provider })
	}
}

// concerns compares everything that a revocation names.
func (s *Server) concerns(r *controlpb.Revocation, c *call) bool {
	if t := r.GetNotBefore(); t.IsValid() && !c.Time.Before(t.AsTime()) {
		return false
	}
	is := func(named, ours string) bool { return named == "" || named == ours }
	return is(r.GetPodUid(), c.PodUID) && is(r.GetOwner(), c.Owner) && is(r.GetHandle(), c.Handle) && r.GetTask() == "" &&
		(is(r.GetProvider(), c.provider) || r.GetProvider() == c.Namespace+"/"+c.provider)
}
