// Package issuer attests pods and issues their identity documents: the
// Identity service of the control plane.
//
// A token with our audience proves a pod, not who in it holds the token. So
// before anything is signed the token is reviewed by the API server, and the
// pod, its namespace, its sidecar, its other containers and the connection
// itself are looked at ([Server.Attest] names each check). A refusal is an
// answer with a reason; what the kubelet has not yet reported is asked to come
// again.
package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/internal/sparselog"
)

// Defaults of [Config].
const (
	DefaultAudience = "attache.dev"
	// MaxJWT is the longest lifetime of a JWT-SVID.
	MaxJWT = 5 * time.Minute

	// What a pod may ask of the control plane's other services (Peer): more than
	// the broker gives it, so that its own answer is the one that is heard.
	callRate, callBurst = 10, 60
)

// Config is what a [Server] needs. Fields without a default are required.
type Config struct {
	Issuer *issuer.Issuer // signs
	// Client reviews tokens, and writes leases and events; its reads reach the
	// API server and no cache.
	Client client.Client
	// Cache has the pods and namespaces as a watch saw them; default: Client.
	Cache client.Reader
	// Namespace is the control plane's own: the leases of live keys lie there.
	Namespace string
	// Templates says whether a sidecar is ours.
	Templates Templates
	// Audience of the pods' tokens. Default: attache.dev.
	Audience string
	// Sidecar is what admission calls its own in a pod.
	Sidecar Names
	// Audiences are those of a pod's compiled policy (see
	// [api.AllowsAudience]), ClientIDs those under which it may sign client
	// assertions (RFC 7523) beside its SPIFFE ID. What a nil func or an empty
	// answer does not name is refused.
	Audiences, ClientIDs func(podUID string) []string
	// Cluster is the operator's part of the AttacheConfig, for the owners of
	// pods. Never nil. Default: an empty one.
	Cluster func() *v1alpha1.ClusterConfig
	// Frozen reports labels that a pod keeps as they were when it was first
	// attested. Default: all.
	Frozen func(namespace, label string) bool
	// Record takes each issuance and each refusal, for the audit trail. Its
	// error refuses an issuance. Default: the log only.
	Record func(context.Context, Event) error
	// JWTRate is how many JWT-SVIDs a second a pod gets, JWTBurst at once.
	// Default: 2 and 30.
	JWTRate  float64
	JWTBurst int
	// AttestRate and AttestBurst are the same for attestations from an
	// address. Default: 1 and 20.
	AttestRate  float64
	AttestBurst int
	// Grace is how long after a refused second key the kubelet may take to
	// report a restart before it is an alert. Default: 30 s.
	Grace time.Duration
	// Metrics registers the counters. Default: none are kept.
	Metrics prometheus.Registerer
	// Log. Default: discarded.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Names are those that admission gives to what is the sidecar's alone.
type Names struct {
	Container string   // of the native sidecar
	Redirect  string   // of the init container that redirects
	UID       int64    // user that only the sidecar runs as
	Token     string   // volume with the token
	Private   []string // all volumes that only the sidecar mounts
}

// Server implements the Identity service. It is safe for concurrent use.
type Server struct {
	controlpb.UnimplementedIdentityServer
	Config
	jwts, attests *limiter
	calls         *limiter // of Peer, by pod uid and address
	metrics       *metrics
	names         *lru.Cache[string, string]                    // pod uid -> name
	verified      *lru.Cache[string, *attested]                 // pod uid -> last verdict
	owners        *lru.Cache[types.UID, *metav1.OwnerReference] // controller -> its controller

	labels  *lru.Cache[string, map[string]string] // pod uid -> labels at first
	preload sync.Once                             // of labels

	mu       sync.Mutex // guards suspects
	suspects map[string]suspect
}

// remembered bounds what is kept in memory of pods: more than a cluster has.
const remembered = 1 << 16

// New checks c and returns a server. Run [Server.Start] beside it.
func New(c Config) (*Server, error) {
	switch {
	case c.Issuer == nil || c.Client == nil || c.Templates == nil:
		return nil, errors.New("issuer: Issuer, Client and Templates are required")
	case c.Namespace == "":
		return nil, errors.New("issuer: no namespace of the control plane; set POD_NAMESPACE")
	case c.Sidecar.Container == "" || c.Sidecar.Token == "" || c.Sidecar.UID == 0:
		return nil, errors.New("issuer: the sidecar's names and user are required")
	}
	c.defaults()
	s := &Server{
		Config: c, suspects: map[string]suspect{}, metrics: newMetrics(c.Metrics),
		jwts: newLimiter(c.JWTRate, c.JWTBurst, c.Now), attests: newLimiter(c.AttestRate, c.AttestBurst, c.Now),
		calls: newLimiter(callRate, callBurst, c.Now),
	}
	var errs [4]error
	s.names, errs[0] = lru.New[string, string](remembered)
	s.verified, errs[1] = lru.New[string, *attested](remembered)
	s.owners, errs[2] = lru.New[types.UID, *metav1.OwnerReference](remembered)
	s.labels, errs[3] = lru.New[string, map[string]string](remembered)
	return s, errors.Join(errs[:]...)
}

func (c *Config) defaults() {
	if c.Cache == nil {
		c.Cache = c.Client
	}
	if c.Audience == "" {
		c.Audience = DefaultAudience
	}
	none := func(string) []string { return nil }
	if c.Audiences == nil {
		c.Audiences = none
	}
	if c.ClientIDs == nil {
		c.ClientIDs = none
	}
	if c.Cluster == nil {
		c.Cluster = func() *v1alpha1.ClusterConfig { return &v1alpha1.ClusterConfig{} }
	}
	if c.Frozen == nil {
		c.Frozen = func(string, string) bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// Who asks again and again must not fill the log; metrics count all.
	c.Log = slog.New(sparselog.New(c.Log.Handler()))
	if c.Record == nil {
		c.Record = func(context.Context, Event) error { return nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	fill(&c.JWTRate, 2)
	fill(&c.JWTBurst, 30)
	fill(&c.AttestRate, 1)
	fill(&c.AttestBurst, 20)
	fill(&c.Grace, 30*time.Second)
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Register adds the service to a gRPC server whose TLS is that of
// [Keys.ServerTLS].
func (s *Server) Register(g grpc.ServiceRegistrar) { controlpb.RegisterIdentityServer(g, s) }

// Event is one issuance or refusal.
type Event struct {
	Time      time.Time
	Kind      string // x509 or jwt
	Outcome   string // issued, refused, later
	Reason    string // of a refusal; one of a fixed list
	ID        string // SPIFFE ID
	Namespace string
	Pod, UID  string
	Node      string
	Serial    string // of the certificate
	JTI       string
	Audience  string
	Expires   time.Time
	Renewal   bool
}

// record tells log, metrics and audit trail of e.
func (s *Server) record(ctx context.Context, e Event, cause error) error {
	e.Time = s.Now()
	e.Outcome, e.Reason = "issued", ""
	level := slog.LevelInfo
	if cause != nil {
		r := reasonOf(cause)
		e.Outcome, e.Reason = r.outcome(), r.reason
		level = slog.LevelWarn
		if e.Outcome == outcomeLater {
			level = slog.LevelDebug
		}
	}
	s.metrics.count(e)
	args := []any{"kind", e.Kind, "outcome", e.Outcome, "spiffe_id", e.ID, "namespace", e.Namespace, "pod", e.Pod, "pod_uid", e.UID}
	for _, f := range []struct{ k, v string }{{"reason", e.Reason}, {"jti", e.JTI}, {"audience", e.Audience}, {"serial", e.Serial}} {
		if f.v != "" {
			args = append(args, f.k, f.v)
		}
	}
	if cause != nil {
		args = append(args, "error", cause)
	}
	s.Log.Log(ctx, level, "identity document", args...)
	return s.Record(ctx, e)
}

// roots are the authorities of the trust domain in DER.
func (s *Server) roots(ctx context.Context) ([][]byte, error) {
	b, err := s.Issuer.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	return der(b.X509Authorities()), nil
}

func der(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}
