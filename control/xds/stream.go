package xds

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
)

// stream is the cache (go-control-plane's cache.ConfigWatcher) and the
// callbacks of one stream: all that its client can reach.
type stream struct {
	s      *Server
	pod    peer.Pod
	entry  *entry
	serial uint64
	opened time.Time
	cancel context.CancelCauseFunc
	limit  *rate.Limiter
	log    *slog.Logger

	mu          sync.Mutex // guards all below
	bundle      *watch     // nil while the client owes an acknowledgement
	revocations *watch
	// known is the versions of revocations that were sent, or that the client
	// had when it came; nil until it subscribed.
	known map[string]string
	// initial is the version of the bundle that the client brought along, until
	// it is sent another.
	initial    string
	subscribed bool // to the bundle
	sent       sent // used by the stream's goroutine alone
}

// watch is a subscription that waits for something to send.
type watch struct {
	req *discovery.DeltaDiscoveryRequest
	sub cache.Subscription
	out chan cache.DeltaResponse
	// answer asks for a response even if there is nothing new: the first of a
	// stream, and heartbeats.
	answer bool
}

// sent is what the client was sent last and has not answered yet.
type sent struct {
	bundle      *Bundle
	bundleNonce string
	// revocations are versions by id, by nonce: an answer to a heartbeat may
	// cross a push, so that two responses are on their way.
	revocations map[string]map[string]string
}

// CreateWatch implements cache.ConfigWatcher; only delta is served.
func (st *stream) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, status.Error(codes.Unimplemented, "only delta ADS is served")
}

// CreateDeltaWatch implements cache.ConfigWatcher. It is called by the
// stream's goroutine for each request that [stream.OnStreamDeltaRequest] let
// pass.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	w := &watch{req: req, sub: sub, out: out}
	var known map[string]string
	st.mu.Lock()
	if req.GetTypeUrl() == controlpb.RevocationType {
		// The channel has room for one response a type, as the library sized
		// it, and one is sent for each request.
		w.answer = req.GetResponseNonce() == ""
		st.revocations = w
		if st.known == nil {
			known = maps.Clone(sub.ReturnedResources())
			st.known = known
		}
	} else {
		st.bundle = w
		if !st.subscribed {
			st.subscribed, st.initial = true, sub.ReturnedResources()[st.pod.UID]
		}
	}
	st.mu.Unlock()
	if known != nil {
		st.brought(known)
	}
	st.push()
	return func() { st.forget(w) }, nil
}

func (st *stream) forget(w *watch) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.bundle == w {
		st.bundle = nil
	}
	if st.revocations == w {
		st.revocations = nil
	}
}

// push sends what the client lacks: revocations first, and a bundle only when
// none of them waits.
func (st *stream) push() {
	b := st.entry.bundle.Load()
	if b == nil {
		return // the reconcilers do not know the pod (yet)
	}
	if st.pushBoth() {
		st.resumed()
	}
}

// pushBoth reports whether the client turned out to have its bundle already.
func (st *stream) pushBoth() (resumed bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	b := st.entry.bundle.Load() // the newest, now that nobody else pushes
	if !st.pushRevocations() {
		return false
	}
	w := st.bundle
	if w == nil || b.Held || !st.s.c.Current() {
		return false
	}
	if _, asked := w.sub.SubscribedResources()[st.pod.UID]; !asked {
		return false
	}
	if w.sub.ReturnedResources()[st.pod.UID] == b.version {
		return st.initial == b.version
	}
	st.bundle, st.initial = nil, ""
	w.out <- &cache.DeltaPassthroughResponse{
		DeltaRequest: w.req, NextVersionMap: map[string]string{st.pod.UID: b.version},
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{
			TypeUrl: controlpb.BundleType, SystemVersionInfo: b.version,
			Resources: []*discovery.Resource{resourceOf(st.pod.UID, b.version, b.message())},
		},
	}
	return false
}

// pushRevocations sends what is missing and reports whether nothing is.
func (st *stream) pushRevocations() bool {
	if st.known == nil {
		return false
	}
	view := map[string]string{}
	var add []*discovery.Resource
	for _, r := range *st.s.revocations.Load() {
		if !r.concerns(st.pod.UID) {
			continue
		}
		view[r.GetId()] = r.version
		if st.known[r.GetId()] != r.version {
			add = append(add, &discovery.Resource{Name: r.GetId(), Version: r.version, Resource: &anypb.Any{TypeUrl: controlpb.RevocationType, Value: r.data}})
		}
	}
	var remove []string
	for id := range st.known {
		if _, ok := view[id]; !ok {
			remove = append(remove, id)
		}
	}
	slices.Sort(remove)
	news := len(add)+len(remove) > 0
	w := st.revocations
	if w == nil || !news && (!w.answer || !st.s.c.Current()) {
		return !news
	}
	st.revocations, st.known = nil, view
	w.out <- &cache.DeltaPassthroughResponse{
		DeltaRequest: w.req, NextVersionMap: view,
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{TypeUrl: controlpb.RevocationType, Resources: add, RemovedResources: remove},
	}
	return true
}

func resourceOf(name, version string, m proto.Message) *discovery.Resource {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // sealed before
		panic("xds: marshal resource: " + err.Error())
	}
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: controlpb.BundleType, Value: data}}
}

// OnDeltaStreamOpen implements delta.Callbacks.
func (st *stream) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed implements delta.Callbacks.
func (st *stream) OnDeltaStreamClosed(int64, *core.Node) {}

// OnStreamDeltaRequest implements delta.Callbacks: it refuses what is not the
// pod's own and notes answers. The library calls it before CreateDeltaWatch.
func (st *stream) OnStreamDeltaRequest(_ int64, req *discovery.DeltaDiscoveryRequest) error {
	if !st.limit.Allow() {
		return st.refuse("rate", codes.ResourceExhausted, "too many requests on one stream")
	}
	// Who asks is known; what the client says of itself counts for nothing.
	req.Node = &core.Node{Id: st.pod.UID}
	switch req.GetTypeUrl() {
	case controlpb.BundleType:
		for _, name := range req.GetResourceNamesSubscribe() {
			if name != st.pod.UID {
				reason := "foreign"
				if name == "*" {
					reason = "wildcard"
				}
				return st.refuse(reason, codes.PermissionDenied, "a pod may subscribe to its own Bundle only, by its uid")
			}
		}
	case controlpb.RevocationType:
		for _, name := range req.GetResourceNamesSubscribe() {
			if name != "*" {
				return st.refuse("name", codes.InvalidArgument, "Revocations are subscribed to by *, which stands for those that concern the pod")
			}
		}
	default:
		return st.refuse("type", codes.InvalidArgument, "unknown type URL; served are "+controlpb.BundleType+" and "+controlpb.RevocationType)
	}
	st.answered(req)
	return nil
}

func (st *stream) refuse(reason string, code codes.Code, text string) error {
	st.s.c.Metrics.refused.WithLabelValues(reason).Inc()
	st.log.Warn("stream refused", "reason", reason)
	return status.Error(code, text)
}
