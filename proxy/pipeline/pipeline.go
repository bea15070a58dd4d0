// Package pipeline carries one request from a front door to its origin:
// policy, record, credential, injection, upstream, guard, record. It takes an
// *http.Request and an http.ResponseWriter and knows nothing of the codec that
// made them.
package pipeline

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
	"github.com/attache-dev/attache/proxy/awsdoor"
	"github.com/attache-dev/attache/proxy/upstream"
)

// Tasks is what the pipeline asks of the task store.
type Tasks interface {
	// Lookup returns the open task id if it was opened for w and its run.
	Lookup(id string, w *identity.Workload) (*identity.Task, error)
	// Current returns the task that the run's launcher opened, or nil.
	Current(w *identity.Workload) *identity.Task
}

// Minter is the credential cache.
type Minter interface {
	minting.Minter
	// Forget drops a credential, so that the next Mint asks the issuer.
	Forget(handle string)
}

// Provider is a credential provider, ready to use.
type Provider struct {
	Spec       v1alpha1.CredentialProviderSpec
	Generation string
	injector   *injector.Injector
	covers     *upstream.Routes // destinations that its credentials may go to
	endpoints  []awsscope.Endpoint
}

// State is one consistent configuration; a reload swaps it whole.
type State struct {
	Policies  *policy.Set
	providers map[string]*Provider
	shared    bool // documents of several authors, see api.PlacePod
}

// NewState compiles a bundle. Nothing is changed if it fails.
func NewState(b *api.Bundle, proofs *injector.Proofs) (*State, *upstream.Routes, error) {
	set, err := policy.Compile(b)
	if err != nil {
		return nil, nil, err
	}
	s := &State{Policies: set, shared: b.Place == api.PlacePod, providers: make(map[string]*Provider, len(b.Providers))}
	var all []v1alpha1.Destination
	for i := range b.Providers {
		p := &b.Providers[i]
		covers, err := upstream.NewRoutes(p.Spec.Destinations)
		if err != nil {
			return nil, nil, err
		}
		inj, err := injector.New(p, proofs)
		if err != nil {
			return nil, nil, err
		}
		s.providers[p.Metadata.Name] = &Provider{Spec: p.Spec, Generation: b.Generations[p.Metadata.Name], injector: inj, covers: covers, endpoints: awsEndpoints(p.Spec.AWS)}
		all = append(all, p.Spec.Destinations...)
	}
	for i := range b.Policies {
		all = append(all, b.Policies[i].Spec.Destinations...)
	}
	routes, err := upstream.NewRoutes(all)
	return s, routes, err
}

// Config of a [Pipeline]. AWSDoor, OpenTask, CloseTask, Revoke, Tracer, Relay,
// Keep and Unsafe may be left out; with Keep, Spool too.
type Config struct {
	Tasks        Tasks
	Minter       Minter
	Source       identity.Source
	Upstream     *upstream.Pool
	Spool        *audit.Spool
	Vault        *guard.Vault  // sealed answers
	AWSDoor      *awsdoor.Door // nil: no SDK fetches placeholder keys
	Placeholders injector.Placeholders
	OpenTask     OpenTaskFunc // tasks that agents open themselves; nil: refused
	// CloseTask closes a task that the agent w itself opened.
	CloseTask func(id string, w *identity.Workload) error
	Proofs    *injector.Proofs
	// Stale says why the policy in force may not be used any more, nil while it
	// may; nil: it always may.
	Stale func() error
	// Revoke ends the credential with a handle, after a leak.
	Revoke func(handle string)
	// Relay puts on the credentials that never enter this process; nil: calls
	// that need one are refused.
	Relay Relay
	// Keep makes this the pipeline of a relay: what comes in was recorded and
	// cleaned by a sidecar, and nothing goes out but with a credential that a
	// relay puts on. It is told of each exchange before it is sent and when it
	// has ended, in place of Spool; an error before sending refuses the call.
	Keep    func(context.Context, Kept) error
	Tracer  trace.Tracer // nil: no traces
	Limits  v1alpha1.Limits
	Unsafe  []string // unsafe flags in force, for every record
	Log     *slog.Logger
	Metrics *Metrics
	Now     func() time.Time
}

// OpenTaskFunc opens a task for an agent that a rule allows to.
type OpenTaskFunc func(ctx context.Context, c identity.Caller, purpose string, ttl time.Duration) (*identity.Task, error)

// Pipeline is an http.Handler for requests that a front door has made
// canonical. It is safe for concurrent use.
type Pipeline struct {
	cfg      Config
	state    atomic.Pointer[State]
	live     *live
	rate     *rate.Limiter // nil: unlimited
	patterns *guard.Cache
	describe func(*identity.Workload) *audit.Workload
	reached  atomic.Pointer[audit.Request] // the last origin's address, and nothing else
	signer   *sigv4.Signer
	skew     sigv4.Skew          // of the clocks of AWS's endpoints
	held     *semaphore.Weighted // bytes of bodies that must be read before they are sent
}

// maxPatterns bounds the compiled patterns that are kept: some 20 to 60 KiB
// each, and made again in less than a millisecond.
const maxPatterns = 256

// New returns a Pipeline that denies everything until SetState.
func New(cfg Config) *Pipeline {
	p := &Pipeline{cfg: cfg, live: newLive(), patterns: guard.NewCache(min(cfg.Limits.CredentialCache, maxPatterns)), describe: describer(), signer: sigv4.NewSigner(), held: semaphore.NewWeighted(heldBytes)}
	p.state.Store(&State{})
	if n := cfg.Limits.MaxRequestsPerSec; n > 0 {
		p.rate = rate.NewLimiter(rate.Limit(n), n)
	}
	return p
}

// SetState swaps the configuration; exchanges under way keep theirs.
func (p *Pipeline) SetState(s *State) { p.state.Store(s) }

// State returns the configuration in force.
func (p *Pipeline) State() *State { return p.state.Load() }

// EndTask cuts every exchange of a task. It returns how many there were.
func (p *Pipeline) EndTask(id string) int {
	return p.live.cut(func(x *exchange) bool { return x.task != nil && x.task.ID == id }, errRevoked)
}

// EndRun cuts every exchange of a run.
func (p *Pipeline) EndRun(runID string) int {
	return p.live.cut(func(x *exchange) bool { w := x.conn.Caller.Workload; return w != nil && w.RunID == runID }, errRevoked)
}

// EndCredential cuts every exchange that uses the credential with this handle.
func (p *Pipeline) EndCredential(handle string) int {
	p.live.end(handle)
	p.patterns.Drop(handle)
	return p.live.cut(func(x *exchange) bool { return x.handle == handle }, errRevoked)
}

// Live is how many exchanges are under way.
func (p *Pipeline) Live() int { return p.live.len() }

// describer makes the record's form of a workload, once for each.
func describer() func(*identity.Workload) *audit.Workload {
	type pair struct {
		w *identity.Workload
		a *audit.Workload
	}
	var last atomic.Pointer[pair]
	return func(w *identity.Workload) *audit.Workload {
		if l := last.Load(); l != nil && l.w == w {
			return l.a
		}
		a := &audit.Workload{ID: w.ID.String(), Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Labels: w.Labels,
			Node: w.Node, PostureDigest: w.PostureDigest(), RunID: w.RunID}
		last.Store(&pair{w, a})
		return a
	}
}
