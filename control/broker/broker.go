// Package broker mints credentials whose root no sidecar may hold: API keys of
// vendors that federate nothing, and tokens of OAuth clients that have a
// secret or a certificate. The roots are Secrets that only this package reads,
// one at a time and by name; they enter no policy bundle, volume or
// environment.
//
// # Deciding again
//
// A sidecar says what a call looks like, not that it is allowed. The broker
// takes the pod from the verified certificate, the pod's facts and policy from
// the control plane's own view of it, and asks that policy whether a rule may
// give this workload a credential of this provider there
// (policy.Set.MayGrant). Scope never exceeds the rule's static one. A
// compromised sidecar can thus get what some rule gives its own pod, and
// nothing else.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
)

// Defaults of a [Config].
const (
	DefaultRate  = 5 // mints a second of one pod
	DefaultBurst = 30
	// MaxLease is the longest that a vendor's key stays in a sidecar's memory
	// without being asked for again.
	MaxLease = 15 * time.Minute

	mintTimeout   = 12 * time.Second
	rememberedPod = 20_000 // rate limiters
)

// Config of a [Server]. Bundle, Secrets, Client, Record and Namespace are
// required.
type Config struct {
	// Bundle is what the control plane itself made for a pod that exists.
	Bundle func(podUID string) (*xds.Bundle, bool)
	// Secrets reads roots.
	Secrets Secrets
	// Client is minting.Deps.Client: how authorization servers are reached.
	Client func(addresses []string, caPEM []byte) *http.Client
	// Record keeps each mint and each refusal. A mint that it does not take is
	// not handed out.
	Record func(context.Context, Event) error
	// Namespace of the control plane, where roots of ClusterCredentialProviders
	// are.
	Namespace string
	// Peer is who calls. Default: peer.PeerPod.
	Peer func(context.Context) (peer.Pod, error)
	// Rate and Burst bound the calls of one pod.
	Rate    float64
	Burst   int
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time
}

// Event is one mint or refusal: who, for whom, why, and what came of it. It
// holds no secret.
type Event struct {
	Time      time.Time `json:"time"`
	Result    string    `json:"result"` // minted, denied or failed
	PodUID    string    `json:"pod_uid"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Workload  string    `json:"workload"` // SPIFFE ID
	Owner     string    `json:"owner,omitempty"`
	Provider  string    `json:"provider"`
	// What the sidecar said of the call.
	Destination string   `json:"destination,omitempty"`
	Method      string   `json:"method,omitempty"`
	Record      string   `json:"record,omitempty"` // id of the sidecar's own record
	Rule        string   `json:"rule,omitempty"`   // that gave it
	Scope       []string `json:"scope,omitempty"`
	Handle      string   `json:"handle,omitempty"`
	// Root names the Secret, as NAMESPACE/NAME.
	Root    string    `json:"root,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Reason  string    `json:"reason,omitempty"`
}

// Server is the Broker service. It is safe for concurrent use.
type Server struct {
	controlpb.UnimplementedBrokerServer
	c        Config
	compiled *lru.Cache[string, *compiled] // by digest of documents
	limits   *lru.Cache[string, *rate.Limiter]
}

// New returns a Server.
func New(c Config) (*Server, error) {
	if c.Bundle == nil || c.Secrets == nil || c.Client == nil || c.Record == nil || c.Namespace == "" {
		return nil, errors.New("broker: Bundle, Secrets, Client, Record and Namespace are required")
	}
	if c.Peer == nil {
		c.Peer = peer.PeerPod
	}
	if c.Rate <= 0 {
		c.Rate = DefaultRate
	}
	if c.Burst <= 0 {
		c.Burst = DefaultBurst
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{c: c}
	var err error
	if s.compiled, err = lru.New[string, *compiled](compiledSets); err != nil {
		return nil, err
	}
	if s.limits, err = lru.New[string, *rate.Limiter](rememberedPod); err != nil {
		return nil, err
	}
	return s, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) { controlpb.RegisterBrokerServer(g, s) }

// Mint implements controlpb.BrokerServer.
func (s *Server) Mint(ctx context.Context, q *controlpb.MintRequest) (*controlpb.MintResponse, error) {
	started := s.c.Now()
	pod, err := s.c.Peer(ctx)
	if err != nil {
		s.c.Metrics.mints.WithLabelValues("unauthenticated").Inc()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	e := Event{Time: started, PodUID: pod.UID, Namespace: pod.Namespace, Workload: pod.ID.String()}
	answer, err := s.mint(ctx, pod, q, &e)
	code := codes.OK
	switch {
	case err == nil:
		e.Result = "minted"
	case errors.Is(err, minting.ErrUnavailable):
		e.Result, code = "failed", codes.Unavailable
	case errors.Is(err, errRate):
		e.Result, code = "denied", codes.ResourceExhausted
	case errors.Is(err, errBad):
		e.Result, code = "denied", codes.InvalidArgument
	default:
		e.Result, code = "denied", codes.PermissionDenied
	}
	if err != nil {
		e.Reason = err.Error()
	}
	s.c.Metrics.mints.WithLabelValues(e.Result).Inc()
	s.c.Metrics.latency.Observe(s.c.Now().Sub(started).Seconds())
	if rerr := s.c.Record(ctx, e); rerr != nil {
		s.c.Log.ErrorContext(ctx, "mint not recorded, so nothing is handed out", "cause", rerr)
		return nil, status.Error(codes.Unavailable, "the mint could not be recorded")
	}
	if err != nil {
		return nil, status.Error(code, err.Error())
	}
	return answer, nil
}

var (
	errBad  = errors.New("the request is malformed")
	errRate = errors.New("this pod asks too often; leases last for minutes")
)

func (s *Server) mint(ctx context.Context, pod peer.Pod, q *controlpb.MintRequest, e *Event) (*controlpb.MintResponse, error) {
	if err := check(q); err != nil {
		return nil, err
	}
	e.Provider, e.Method, e.Record = q.GetProvider(), q.GetMethod(), q.GetRecord()
	e.Destination = fmt.Sprintf("%s://%s:%d", q.GetScheme(), q.GetHost(), q.GetPort())
	if !s.limit(pod.UID) {
		return nil, errRate
	}
	b, ok := s.c.Bundle(pod.UID)
	if !ok || b.Held {
		return nil, fmt.Errorf("%w: the control plane does not know what is in force for pod %s (yet)", minting.ErrUnavailable, pod.UID)
	}
	w, err := kubernetes.FromProto(b.Workload)
	if err != nil {
		return nil, fmt.Errorf("%w: the control plane's own view of the pod: %w", minting.ErrUnavailable, err)
	}
	// The certificate and our own view must speak of the same pod.
	if w.ID != pod.ID || b.Workload.GetPodUid() != pod.UID {
		return nil, fmt.Errorf("%w: certificate and pod disagree on who this is", minting.ErrDenied)
	}
	e.Pod, e.Owner = b.Workload.GetPod(), w.Owner
	set, err := s.compile(b)
	if err != nil {
		return nil, err
	}
	p, ok := set.providers[q.GetProvider()]
	if !ok {
		return nil, fmt.Errorf("%w: no policy of this pod uses a provider %q that the broker mints for", minting.ErrDenied, q.GetProvider())
	}
	if p.minter == nil {
		e.Root = p.root
		return nil, fmt.Errorf("%w: credentials of provider %q are put on by the relay, and leave the control plane for nobody", minting.ErrDenied, q.GetProvider())
	}
	grant, rule, reason := set.policy.MayGrant(&policy.Request{
		Host: q.GetHost(), Port: int(q.GetPort()), Scheme: q.GetScheme(), Method: q.GetMethod(), Path: q.GetPath(), Protocol: q.GetProtocol(),
		Workload: w, Time: s.c.Now(),
	}, p.name)
	if reason != "" {
		return nil, fmt.Errorf("%w: %s", minting.ErrDenied, reason)
	}
	e.Rule, e.Root = rule, p.root
	r, err := within(grant, q)
	if err != nil {
		return nil, err
	}
	e.Scope = r.Scope
	r.Provider, r.WorkloadID, r.PostureDigest, r.Destination = p.name, w.ID.String(), w.PostureDigest(), e.Destination
	c, err := p.minter.Mint(ctx, r, minting.Evidence{Workload: w})
	if err != nil {
		return nil, err
	}
	end := s.c.Now().Add(min(grant.TTL, MaxLease))
	if !c.Expires.IsZero() && c.Expires.Before(end) {
		end = c.Expires
	}
	e.Handle, e.Expires = c.Handle, end
	return &controlpb.MintResponse{Value: c.Secret.Reveal(), Handle: c.Handle, Expires: timestamppb.New(end)}, nil
}

// within takes what was asked for, which must lie within the rule's static
// grant; what was not asked for is the grant's.
func within(g policy.Grant, q *controlpb.MintRequest) (minting.Request, error) {
	r := minting.Request{Scope: g.Scope, Resources: g.Resources, Audience: g.Audience, Role: g.Role, AuthorizationDetails: g.AuthorizationDetails, TTL: g.TTL}
	for _, f := range []struct {
		name        string
		asked, most []string
		into        *[]string
	}{
		{"scope", q.GetScopes(), g.Scope, &r.Scope},
		{"resource", q.GetResources(), g.Resources, &r.Resources},
	} {
		if len(f.asked) == 0 {
			continue
		}
		for _, v := range f.asked {
			if !slices.Contains(f.most, v) {
				return r, fmt.Errorf("%w: %s %q is more than the rule gives", minting.ErrDenied, f.name, v)
			}
		}
		*f.into = f.asked
	}
	if a := q.GetAudience(); a != "" && a != g.Audience {
		return r, fmt.Errorf("%w: audience %q is not the rule's", minting.ErrDenied, a)
	}
	return r, nil
}

func (s *Server) limit(uid string) bool {
	l, ok := s.limits.Get(uid)
	if !ok {
		l = rate.NewLimiter(rate.Limit(s.c.Rate), s.c.Burst)
		if old, was, _ := s.limits.PeekOrAdd(uid, l); was {
			l = old
		}
	}
	return l.AllowN(s.c.Now(), 1)
}

// Bounds of a request's fields: what is longer was not sent by a sidecar.
const (
	maxName   = 320
	maxHost   = 253
	maxPath   = 16 << 10
	maxValue  = 2048
	maxValues = 128
)

// check refuses what no sidecar of ours sends.
func check(q *controlpb.MintRequest) error {
	bad := func(field string) error { return fmt.Errorf("%w: %s", errBad, field) }
	switch {
	case !plain(q.GetProvider(), maxName) || q.GetProvider() == "":
		return bad("provider")
	case q.GetScheme() != "https" && q.GetScheme() != "http":
		return bad("scheme")
	case q.GetHost() == "" || len(q.GetHost()) > maxHost || strings.Trim(q.GetHost(), "abcdefghijklmnopqrstuvwxyz0123456789.-_:") != "":
		return bad("host")
	case q.GetPort() < 1 || q.GetPort() > 65535:
		return bad("port")
	case !plain(q.GetMethod(), 64), !plain(q.GetProtocol(), 32), !plain(q.GetRecord(), 128):
		return bad("method, protocol or record")
	case !plain(q.GetPath(), maxPath):
		return bad("path")
	case !plain(q.GetAudience(), maxValue):
		return bad("audience")
	case len(q.GetScopes()) > maxValues || len(q.GetResources()) > maxValues:
		return bad("scopes or resources")
	}
	for _, v := range slices.Concat(q.GetScopes(), q.GetResources()) {
		if v == "" || !plain(v, maxValue) {
			return bad("scopes or resources")
		}
	}
	return nil
}

// plain reports bounded, visible ASCII.
func plain(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
