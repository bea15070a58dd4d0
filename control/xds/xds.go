// Package xds serves each sidecar its policy and its revocations by Envoy's
// delta ADS (envoy.service.discovery.v3), and knows what each acknowledged.
//
// The protocol's server is go-control-plane's; the cache behind it is ours,
// one for each stream and made for the pod that the stream's certificate
// names. What a client asks for therefore cannot reach another pod's bundle:
// there is no way from one stream's cache to it. Asking is refused all the
// same, so that it is seen.
//
// # Order
//
// A stream gets its Revocations before its Bundle, always: no Bundle leaves
// while a Revocation waits for the acknowledgement of the one before it, and
// none at all to a stream that did not subscribe to Revocations.
//
// # Versions
//
// The version of a resource is a digest of what it says. All replicas give
// one content one version, so that a client that comes back, to this replica
// or another, and says what it has, is sent nothing again.
package xds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
)

// Bounds of a [Server], unless its Config says otherwise.
const (
	DefaultMaxStreams       = 20_000
	DefaultMaxStreamsPerPod = 3 // one, one that replaces it, one whose end was not noticed yet
	requestsPerSecond       = 20
	requestBurst            = 60
)

// Object names a custom resource that documents were made of.
type Object struct{ Kind, Namespace, Name string }

// Bundle is what one pod is to be served. Several may share Documents,
// Audiences and Objects; none is changed once it was given to a Server.
type Bundle struct {
	Documents []byte
	Audiences []string
	Workload  *controlpb.Workload
	// Objects are the generations that Documents were made of.
	Objects map[Object]int64
	// Held says that what the sidecar should have is not known now: it keeps
	// what it has, and one that has nothing gets nothing.
	Held bool

	version string // of the resource
	docs    string // digest of Documents
	set     time.Time
}

// Config of a [Server]. Every field has a default.
type Config struct {
	// Peer says who is at the other end of a call, by its verified
	// certificate. An error refuses the stream. Default: peer.PeerPod.
	Peer func(context.Context) (peer.Pod, error)
	// Current reports whether the bundles can be trusted to be up to date. While
	// it is false heartbeats stay unanswered, so that sidecars notice. nil: true.
	Current func() bool
	// Revoked is told of the revocations whenever they are set; may be nil.
	Revoked func([]*controlpb.Revocation)
	// MaxStreams and MaxStreamsPerPod default to the constants of this package.
	MaxStreams, MaxStreamsPerPod int
	Metrics                      *Metrics
	Log                          *slog.Logger
	Now                          func() time.Time
}

// Server is the AggregatedDiscoveryService. It is safe for concurrent use.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	c    Config
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	// changed gets a token whenever what sidecars acknowledged changes.
	changed chan struct{}
	// revocations that are in force, replaced as a whole.
	revocations atomic.Pointer[[]revocation]

	mu      sync.Mutex // guards all below, and the streams and last of entries
	pods    map[string]*entry
	streams int
	serial  uint64
}

// entry is what is known of a pod.
type entry struct {
	bundle  atomic.Pointer[Bundle] // nil until the reconcilers know the pod
	streams map[*stream]struct{}
	last    Ack // of the newest stream, kept for a while after its end
}

// revocation is a Revocation with its version and encoding.
type revocation struct {
	*controlpb.Revocation
	version string
	data    []byte
	set     time.Time
}

func (r *revocation) concerns(uid string) bool { return r.GetPodUid() == "" || r.GetPodUid() == uid }

// New returns a Server without bundles.
func New(c Config) *Server {
	if c.Peer == nil {
		c.Peer = peer.PeerPod
	}
	if c.Current == nil {
		c.Current = func() bool { return true }
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = DefaultMaxStreams
	}
	if c.MaxStreamsPerPod <= 0 {
		c.MaxStreamsPerPod = DefaultMaxStreamsPerPod
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
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{c: c, ctx: ctx, stop: stop, changed: make(chan struct{}, 1), pods: map[string]*entry{}}
	s.revocations.Store(new([]revocation))
	return s
}

// Close ends every stream with Unavailable, so that clients go to another
// replica. Call it before the gRPC server's GracefulStop, which waits for
// streams.
func (s *Server) Close() { s.stop() }

// Changed gets a token, at most one at a time, after what sidecars
// acknowledged changed.
func (s *Server) Changed() <-chan struct{} { return s.changed }

func (s *Server) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Set gives pods their bundles and sends them to those that are connected.
func (s *Server) Set(bundles map[string]*Bundle) {
	now := s.c.Now()
	var push []*stream
	s.mu.Lock()
	for uid, b := range bundles {
		b.seal(now)
		e := s.pods[uid]
		if e == nil {
			e = &entry{streams: map[*stream]struct{}{}}
			s.pods[uid] = e
		}
		if old := e.bundle.Load(); old != nil && old.version == b.version {
			b.set = old.set
		}
		e.bundle.Store(b)
		for st := range e.streams {
			push = append(push, st)
		}
	}
	s.count()
	s.mu.Unlock()
	for _, st := range push {
		st.push()
	}
}

// Bundle is what a pod is served, false if it is not known.
func (s *Server) Bundle(uid string) (*Bundle, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.pods[uid]; e != nil {
		if b := e.bundle.Load(); b != nil {
			return b, true
		}
	}
	return nil, false
}

// Delete forgets pods that are gone and ends their streams.
func (s *Server) Delete(uids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, uid := range uids {
		e := s.pods[uid]
		if e == nil {
			continue
		}
		delete(s.pods, uid)
		for st := range e.streams {
			st.cancel(errGone)
		}
	}
	s.count()
}

// count sets the gauge of pods. s.mu is held.
func (s *Server) count() {
	n := 0
	for _, e := range s.pods {
		if e.bundle.Load() != nil {
			n++
		}
	}
	s.c.Metrics.bundles.Set(float64(n))
}

// SetRevocations replaces the revocations and sends the new ones. One that
// would match everything is an error, and then nothing changes.
func (s *Server) SetRevocations(list []*controlpb.Revocation) error {
	old := map[string]time.Time{}
	for _, r := range *s.revocations.Load() {
		old[r.GetId()+r.version] = r.set
	}
	now := s.c.Now()
	next := make([]revocation, 0, len(list))
	seen := map[string]bool{}
	for _, r := range list {
		switch {
		case r.GetId() == "" || seen[r.GetId()]:
			return fmt.Errorf("revocation %q: its id is empty or given twice", r.GetId())
		case r.GetProvider() == "" && r.GetHandle() == "" && r.GetTask() == "" && r.GetOwner() == "" && r.GetPodUid() == "":
			return fmt.Errorf("revocation %s: names nothing; it needs a provider, handle, task, owner or pod", r.GetId())
		}
		seen[r.GetId()] = true
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			return fmt.Errorf("revocation %s: %w", r.GetId(), err)
		}
		v := revocation{Revocation: r, data: data, version: digest(data), set: now}
		if t, ok := old[r.GetId()+v.version]; ok {
			v.set = t
		}
		next = append(next, v)
	}
	s.revocations.Store(&next)
	s.c.Metrics.revocations.Set(float64(len(next)))
	if s.c.Revoked != nil {
		s.c.Revoked(list)
	}
	for _, st := range s.open() {
		st.push()
	}
	return nil
}

// open lists the streams.
func (s *Server) open() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*stream
	for _, e := range s.pods {
		for st := range e.streams {
			list = append(list, st)
		}
	}
	return list
}

// seal notes when the bundle was set.
func (b *Bundle) seal(now time.Time) {
	b.prepare()
	if b.set.IsZero() {
		b.set = now
	}
}

// prepare computes the version: a digest of the digests of the parts, so that no
// copy of shared documents is made for it. It is called before a bundle is
// shared.
func (b *Bundle) prepare() {
	if b.version != "" {
		return
	}
	if b.docs == "" {
		b.docs = digest(b.Documents)
	}
	if b.Held {
		b.version = "held"
		return
	}
	rest := &controlpb.Bundle{Version: b.docs, Audiences: b.Audiences, Workload: b.Workload}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(rest)
	if err != nil { // text that is not UTF-8, which no Kubernetes object holds
		panic("xds: marshal bundle: " + err.Error())
	}
	b.version = digest(data)
}

// Same reports whether both are one resource to a client.
func (b *Bundle) Same(o *Bundle) bool {
	b.prepare()
	o.prepare()
	return b.version == o.version
}

// Digest identifies the documents.
func (b *Bundle) Digest() string {
	if b.docs != "" {
		return b.docs
	}
	return digest(b.Documents)
}

// message is b as it is sent.
func (b *Bundle) message() *controlpb.Bundle {
	return &controlpb.Bundle{Version: b.docs, Documents: b.Documents, Audiences: b.Audiences, Workload: b.Workload}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
