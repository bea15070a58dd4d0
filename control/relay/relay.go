// Package relay puts credentials on calls of pods that must never hold them.
//
// A sidecar sends such a call here, over a connection that its X.509-SVID
// authenticates. What it decided counts for nothing: the pod's facts and policy
// are the control plane's own, and the call goes through the same pipeline as
// in a sidecar, with its rules for paths, headers, addresses, certificates and
// answers. Only calls that a rule gives a credential of a provider with
// inject.by: relay leave from here; the root is read from its Secret and goes
// to the origin and nowhere else.
//
// What only the pod knows (its processes, tasks and humans) is unknown here, so
// rules for such a provider cannot ask for it (package policy refuses them).
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/expirable"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/pipeline"
	wire "github.com/attache-dev/attache/proxy/relay"
	"github.com/attache-dev/attache/proxy/upstream"
)

// Bounds of a [Server].
const (
	// maxPerPod is how many calls of one pod may be under way.
	maxPerPod = 256
	// DefaultRate is how many calls a second one pod may make on average, and
	// burst times as many at once: each is two records of the control plane's own.
	DefaultRate = 100
	burst       = 4
	// tellAgain is how often a pod that calls too often is recorded.
	tellAgain = time.Minute
	// attestedFor is how long a pod's attestation stands before it is looked at
	// again; its certificate is looked at for each call.
	attestedFor   = 30 * time.Second
	rememberedPod = 20_000
	// A connection is given up with grace after maxAge, so that new replicas get
	// their share, and before its certificate ends.
	maxAge      = 15 * time.Minute
	idleTimeout = 2 * time.Minute
	maxHeader   = 256 << 10
	maxStreams  = 256
	readHeader  = 10 * time.Second
)

// Config of a [Server]. Bundle, Secrets, Client, Upstream, Record and Namespace
// are required.
type Config struct {
	// Bundle is what the control plane itself made for a pod that exists.
	Bundle func(podUID string) (*xds.Bundle, bool)
	// Secrets reads roots.
	Secrets broker.Secrets
	// Client is minting.Deps.Client: how authorization servers are reached.
	Client func(addresses []string, caPEM []byte) *http.Client
	// Upstream reaches origins; it needs no routes.
	Upstream *upstream.Pool
	// Record keeps each call before it is sent and when it has ended, and each
	// refusal. A call that it does not take is not made.
	Record func(context.Context, Event) error
	// Namespace of the control plane, where roots of ClusterCredentialProviders
	// are.
	Namespace string
	// Rate is how many calls a second one pod may make. Default: DefaultRate.
	Rate int
	// Peer attests who calls. Default: peer.PeerPod.
	Peer    func(context.Context) (peer.Pod, error)
	Limits  v1alpha1.Limits // with their defaults
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time
}

// Server is an http.Handler. It is safe for concurrent use.
type Server struct {
	c        Config
	guard    minting.Guard
	attested *lru.LRU[string, struct{}]

	mu   sync.Mutex // guards what follows
	sets map[string]*set
	live map[*call]struct{}
	pods map[string]int // calls under way
	// rates are the allowances of pods.
	rates *simplelru.LRU[string, *allowance]
	// left are refusals that were only counted, of pods that rates forgot.
	left []Event
	lost int // refusals beyond those, of which nothing was logged yet
	// revoked are the revocations in force.
	revoked []*controlpb.Revocation
}

// New returns a Server.
func New(c Config) (*Server, error) {
	if c.Bundle == nil || c.Secrets == nil || c.Client == nil || c.Upstream == nil || c.Record == nil || c.Namespace == "" {
		return nil, errors.New("relay: Bundle, Secrets, Client, Upstream, Record and Namespace are required")
	}
	if c.Peer == nil {
		c.Peer = peer.PeerPod
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
	if c.Rate <= 0 {
		c.Rate = DefaultRate
	}
	c.Limits.MaxRequestsPerSec = 0 // one pod's share is counted here
	s := &Server{
		c: c, attested: lru.NewLRU[string, struct{}](rememberedPod, nil, attestedFor),
		sets: map[string]*set{}, live: map[*call]struct{}{}, pods: map[string]int{},
	}
	var err error
	if s.rates, err = simplelru.NewLRU(rememberedPod, func(_ string, a *allowance) {
		if a.untold > 0 {
			s.leave(a.take(a.told))
		}
	}); err != nil {
		return nil, err
	}
	return s, nil
}

// HTTP is the server of the relay's port.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler: s, ReadHeaderTimeout: readHeader, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, acceptedKey{}, s.c.Now())
		},
		ErrorLog: slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug), // scanners
	}
}

type acceptedKey struct{}

// TLS makes the configuration of the relay's port of that of the sidecars'
// port: here nobody is let in without a certificate.
func TLS(base *tls.Config) *tls.Config {
	strict := func(c *tls.Config) *tls.Config {
		c = c.Clone()
		c.NextProtos = []string{"h2", "http/1.1"}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		return c
	}
	c := strict(base)
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if base.GetConfigForClient == nil {
			return nil, nil
		}
		now, err := base.GetConfigForClient(h)
		if err != nil || now == nil {
			return nil, err
		}
		return strict(now), nil
	}
	return c
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{Event: Event{Time: s.c.Now(), Method: r.Method}}
	pod, err := s.peer(r)
	if err != nil {
		s.c.Metrics.calls.WithLabelValues("unauthenticated").Inc()
		w.Header().Set("Connection", "close") // another certificate needs another connection
		wire.Refusal{Status: http.StatusUnauthorized, Code: pipeline.CodeUnattested, Reason: "the caller is not an attested pod"}.Write(closing{w})
		s.c.Log.WarnContext(r.Context(), "relay refused a caller", "cause", err)
		return
	}
	c.PodUID, c.Namespace, c.Workload = pod.UID, pod.Namespace, pod.ID.String()
	if s.old(r, pod) {
		w = closing{w}
	}
	if f, tell := s.often(c); f != nil {
		if !tell {
			s.c.Metrics.calls.WithLabelValues(resultDenied).Inc()
			wire.Refusal{Status: f.Status, Code: f.Code, Reason: f.Reason, RetryAfter: f.RetryAfter}.Write(w)
			return
		}
		s.refuse(r.Context(), w, c, f)
		return
	}
	f := s.admit(c, pod, r)
	if f != nil {
		s.refuse(r.Context(), w, c, f)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c.cancel = cancel
	if f := s.begin(c); f != nil {
		s.refuse(ctx, w, c, f)
		return
	}
	defer s.end(c)
	ctx = proxy.WithConn(context.WithValue(ctx, callKey{}, c), &proxy.Conn{
		ID: pod.UID, Door: proxy.DoorRelay, Caller: identity.Caller{Workload: c.workload}, Dest: c.call.To, Record: c.call.Record,
		Accepted: c.Time, Attested: c.Time,
	})
	c.set.pipe.ServeHTTP(w, r.WithContext(ctx))
}

// peer says which pod calls. The whole attestation is looked at again from time
// to time, the certificate for each call.
func (s *Server) peer(r *http.Request) (peer.Pod, error) {
	if r.TLS == nil {
		return peer.Pod{}, errors.New("no TLS")
	}
	addr, err := net.ResolveTCPAddr("tcp", r.RemoteAddr) // an address, never a name
	if err != nil {
		return peer.Pod{}, err
	}
	ctx := grpcpeer.NewContext(r.Context(), &grpcpeer.Peer{Addr: addr, AuthInfo: credentials.TLSInfo{State: *r.TLS}})
	pod, err := peer.PeerPod(ctx)
	if err != nil {
		return peer.Pod{}, err
	}
	key := pod.UID + " " + pod.Key + " " + addr.IP.String()
	if s.attested.Contains(key) {
		return pod, nil
	}
	if pod, err = s.c.Peer(ctx); err != nil {
		return peer.Pod{}, err
	}
	s.attested.Add(key, struct{}{})
	return pod, nil
}

// old reports whether the caller's connection should be replaced.
func (s *Server) old(r *http.Request, pod peer.Pod) bool {
	accepted, _ := r.Context().Value(acceptedKey{}).(time.Time)
	now := s.c.Now()
	return r.ProtoMajor == 2 && (now.Sub(accepted) > maxAge || pod.Expires.Sub(now) < maxAge)
}

// admit finds out what the call is, and by which policy it is decided.
func (s *Server) admit(c *call, pod peer.Pod, r *http.Request) *pipeline.Refusal {
	bad := func(status int, code, reason string, err error) *pipeline.Refusal {
		f := &pipeline.Refusal{Status: status, Code: code, Reason: reason, Err: err}
		if status == http.StatusServiceUnavailable {
			f.RetryAfter = 2 * time.Second
		}
		return f
	}
	var err error
	if c.call, err = wire.Take(r); err != nil {
		return bad(http.StatusBadRequest, pipeline.CodeBadRequest, err.Error(), nil)
	}
	c.Destination, c.Record, c.Handle = c.call.To.String(), c.call.Record, c.call.Handle
	b, ok := s.c.Bundle(pod.UID)
	if !ok || b.Held {
		return bad(http.StatusServiceUnavailable, pipeline.CodeRelay, "the control plane does not know what is in force for this pod (yet)", nil)
	}
	w, err := kubernetes.FromProto(b.Workload)
	if err != nil {
		return bad(http.StatusServiceUnavailable, pipeline.CodeRelay, "the control plane's own view of the pod cannot be read", err)
	}
	// The certificate and our own view must speak of the same pod.
	if w.ID != pod.ID || b.Workload.GetPodUid() != pod.UID {
		return bad(http.StatusForbidden, pipeline.CodeUnattested, "certificate and pod disagree on who this is", nil)
	}
	c.workload, c.Pod, c.Owner = w, b.Workload.GetPod(), w.Owner
	if c.set, err = s.compile(b); err != nil {
		return bad(http.StatusServiceUnavailable, pipeline.CodeRelay, "the pod's policy is not in force at the relay", err)
	}
	return nil
}

func (s *Server) refuse(ctx context.Context, w http.ResponseWriter, c *call, f *pipeline.Refusal) {
	s.c.Metrics.calls.WithLabelValues(resultDenied).Inc()
	s.record(ctx, denied(c, f)) // refused either way
	wire.Refusal{Status: f.Status, Code: f.Code, Reason: f.Reason, RetryAfter: f.RetryAfter}.Write(w)
}

// denied is the event of a refusal.
func denied(c *call, f *pipeline.Refusal) Event {
	e := c.Event
	e.Result, e.Code, e.Reason, e.Status = resultDenied, f.Code, f.Reason, f.Status
	if f.Err != nil {
		e.Reason = fmt.Sprintf("%s: %v", f.Reason, f.Err)
	}
	return e
}

// closing asks the client to use another connection for what comes next: in
// HTTP/2 net/http answers with GOAWAY where a handler says so.
type closing struct{ http.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (c closing) WriteHeader(status int) {
	if status >= http.StatusOK {
		c.Header().Set("Connection", "close")
	}
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (c closing) Unwrap() http.ResponseWriter { return c.ResponseWriter }
