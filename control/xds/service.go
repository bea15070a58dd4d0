package xds

import (
	"context"
	"errors"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Why a stream ends from our side.
var (
	errGone     = status.Error(codes.PermissionDenied, "the pod is gone or is no longer opted in")
	errReplaced = status.Error(codes.Aborted, "the pod opened newer streams")
	errClosing  = status.Error(codes.Unavailable, "this replica ends; connect again")
	errExpired  = status.Error(codes.Unauthenticated, "the X.509-SVID of this stream has expired; connect with a new one")
	errFull     = status.Error(codes.ResourceExhausted, "this replica serves as many streams as it may; connect again")
)

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// DeltaAggregatedResources implements AggregatedDiscoveryServiceServer.
// StreamAggregatedResources, the other variant, is not served.
func (s *Server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	pod, err := s.c.Peer(g.Context())
	if err != nil || pod.UID == "" {
		s.c.Metrics.refused.WithLabelValues("unauthenticated").Inc()
		s.c.Log.WarnContext(g.Context(), "stream refused: its peer is not authenticated", "cause", err)
		return status.Error(codes.Unauthenticated, "this needs the X.509-SVID of a pod")
	}
	left := pod.Expires.Sub(s.c.Now())
	if left <= 0 {
		s.c.Metrics.refused.WithLabelValues("expired").Inc()
		return errExpired
	}
	ctx, cancel := context.WithCancelCause(g.Context())
	defer cancel(nil)
	expiry := time.AfterFunc(left, func() { cancel(errExpired) })
	defer expiry.Stop()
	defer context.AfterFunc(s.ctx, func() { cancel(errClosing) })()

	st := &stream{
		s: s, pod: pod, cancel: cancel, limit: rate.NewLimiter(requestsPerSecond, requestBurst),
		log: s.c.Log.With("workload", pod.ID.String(), "uid", pod.UID),
	}
	if err := s.enter(st); err != nil {
		s.c.Metrics.refused.WithLabelValues("full").Inc()
		return err
	}
	defer s.leave(st)
	st.log.DebugContext(ctx, "stream opened")
	// The library's server is two pointers and a counter: one for each stream
	// costs nothing and leaves no table by which a stream could be mistaken.
	err = delta.NewServer(ctx, st, st, config.DeactivateLegacyWildcard()).
		DeltaStreamHandler(&bound{g, ctx}, resource.AnyType)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	st.log.DebugContext(g.Context(), "stream ended", "cause", err)
	return err
}

// bound is a stream whose context we can end.
type bound struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	ctx context.Context //nolint:containedctx // grpc.ServerStream asks for it
}

// Context implements grpc.ServerStream.
func (b *bound) Context() context.Context { return b.ctx }

// enter admits a stream. A pod that has as many as it may loses its oldest: a
// sidecar that comes back must not wait until we notice that it had gone.
func (s *Server) enter(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= s.c.MaxStreams {
		return errFull
	}
	e := s.pods[st.pod.UID]
	if e == nil {
		e = &entry{streams: map[*stream]struct{}{}}
		s.pods[st.pod.UID] = e
	}
	if len(e.streams) >= s.c.MaxStreamsPerPod {
		var oldest *stream
		for o := range e.streams {
			if oldest == nil || o.serial < oldest.serial {
				oldest = o
			}
		}
		oldest.cancel(errReplaced)
		delete(e.streams, oldest)
		s.streams--
	}
	s.serial++
	s.streams++
	st.serial, st.entry = s.serial, e
	st.opened = s.c.Now()
	e.streams[st] = struct{}{}
	s.c.Metrics.streams.Set(float64(s.streams))
	return nil
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := st.entry.streams[st]; ok {
		delete(st.entry.streams, st)
		s.streams--
	}
	s.c.Metrics.streams.Set(float64(s.streams))
	if len(st.entry.streams) == 0 {
		st.entry.last.Ended = s.c.Now()
		if st.entry.bundle.Load() == nil && s.pods[st.pod.UID] == st.entry {
			delete(s.pods, st.pod.UID) // nobody we know
		}
	}
	s.notify()
}
