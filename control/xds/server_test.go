package xds_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/xdstest"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// served is a server with an authority around it.
type served struct {
	*xds.Server
	ca   *xdstest.Authority
	addr string
	stop func()
}

func serve(t *testing.T, c xds.Config) *served {
	t.Helper()
	s := &served{Server: xds.New(c), ca: xdstest.NewAuthority(t)}
	s.addr, s.stop = s.ca.Serve("", s.Register)
	t.Cleanup(s.Close)
	return s
}

func (s *served) svid(uid string) tls.Certificate {
	return s.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))
}

// raw is a client that says what a test wants it to say.
type raw struct {
	t *testing.T
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (s *served) open(t *testing.T, svid ...tls.Certificate) raw {
	t.Helper()
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(credentials.NewTLS(s.ca.Client(svid...))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return raw{t, st}
}

func (r raw) send(q *discovery.DeltaDiscoveryRequest) {
	r.t.Helper()
	if err := r.Send(q); err != nil && err != io.EOF { // EOF: the next receive says why
		r.t.Fatal(err)
	}
}

func (r raw) receive() *discovery.DeltaDiscoveryResponse {
	r.t.Helper()
	m, err := r.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r raw) subscribe(uid, version string) {
	r.t.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType, ResourceNamesSubscribe: []string{"*"}})
	q := &discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.BundleType, ResourceNamesSubscribe: []string{uid}}
	if version != "" {
		q.InitialResourceVersions = map[string]string{uid: version}
	}
	r.send(q)
}

func (r raw) ack(m *discovery.DeltaDiscoveryResponse) {
	r.t.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()})
}

// bundle receives until a bundle comes, and acknowledges what comes before.
func (r raw) bundle() (*discovery.DeltaDiscoveryResponse, *controlpb.Bundle) {
	r.t.Helper()
	for {
		m := r.receive()
		if m.GetTypeUrl() == controlpb.BundleType {
			b := &controlpb.Bundle{}
			if err := proto.Unmarshal(m.GetResources()[0].GetResource().GetValue(), b); err != nil {
				r.t.Fatal(err)
			}
			return m, b
		}
		r.ack(m)
	}
}

func text(s string) *xds.Bundle {
	return &xds.Bundle{Documents: []byte(s), Workload: &controlpb.Workload{Namespace: "team"}}
}

// until waits for what the server knows of its clients to become so.
func (s *served) until(t *testing.T, what string, ok func(map[string]xds.Ack) bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok(s.Acks()) {
		select {
		case <-s.Changed():
		case <-time.After(10 * time.Millisecond): // being heard is no change
		case <-deadline:
			t.Fatalf("never became so: %s; %v", what, s.Acks())
		}
	}
}

// What is not the caller's own is refused, and seen to be refused.
func TestDenied(t *testing.T) {
	s := serve(t, xds.Config{})
	s.Set(map[string]*xds.Bundle{"mine": text("mine"), "theirs": text("theirs")})
	q := func(typ string, names ...string) *discovery.DeltaDiscoveryRequest {
		return &discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: names, Node: &core.Node{Id: "theirs"}}
	}
	other := xdstest.NewAuthority(t)
	for name, c := range map[string]struct {
		svid []tls.Certificate
		ask  *discovery.DeltaDiscoveryRequest
		want codes.Code
	}{
		"another pod's bundle": {[]tls.Certificate{s.svid("mine")}, q(controlpb.BundleType, "theirs"), codes.PermissionDenied},
		"mine and another's":   {[]tls.Certificate{s.svid("mine")}, q(controlpb.BundleType, "mine", "theirs"), codes.PermissionDenied},
		"wildcard":             {[]tls.Certificate{s.svid("mine")}, q(controlpb.BundleType, "*"), codes.PermissionDenied},
		"one revocation":       {[]tls.Certificate{s.svid("mine")}, q(controlpb.RevocationType, "r1"), codes.InvalidArgument},
		"unknown type":         {[]tls.Certificate{s.svid("mine")}, q("type.googleapis.com/envoy.config.cluster.v3.Cluster", "*"), codes.InvalidArgument},
		"no type":              {[]tls.Certificate{s.svid("mine")}, q("", "*"), codes.InvalidArgument},
		"no certificate":       {nil, q(controlpb.BundleType, "mine"), codes.Unauthenticated},
		"no pod in it":         {[]tls.Certificate{s.svid("")}, q(controlpb.BundleType, "mine"), codes.Unauthenticated},
		"expired": {[]tls.Certificate{s.ca.SVID("team", "agent", "mine", time.Now().Add(-time.Minute))},
			q(controlpb.BundleType, "mine"), codes.Unavailable}, // the handshake fails
		"another authority's": {[]tls.Certificate{other.SVID("team", "agent", "mine", time.Now().Add(time.Hour))},
			q(controlpb.BundleType, "mine"), codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := func() (r raw) {
				conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(credentials.NewTLS(s.ca.Client(c.svid...))))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
				if err != nil {
					if got := status.Code(err); got != c.want {
						t.Errorf("got %v, want %v", err, c.want)
					}
					return raw{}
				}
				return raw{t, st}
			}()
			if r.t == nil {
				return
			}
			// Revocations are asked for, so that nothing but the refusal keeps the
			// bundle back.
			r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType, ResourceNamesSubscribe: []string{"*"}})
			r.send(c.ask)
			for {
				m, err := r.Recv()
				if err != nil {
					if got := status.Code(err); got != c.want {
						t.Errorf("got %v, want %v", err, c.want)
					}
					return
				}
				if m.GetTypeUrl() != controlpb.RevocationType || len(m.GetResources()) > 0 {
					t.Errorf("was sent %v", m)
				}
			}
		})
	}
	// The other variant of the protocol is not served at all.
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(credentials.NewTLS(s.ca.Client(s.svid("mine")))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	if err == nil {
		_, err = st.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("state of the world: %v", err)
	}
}

// A stream ends with the certificate that opened it.
func TestStreamEndsWithTheSVID(t *testing.T) {
	s := serve(t, xds.Config{Peer: func(ctx context.Context) (peer.Pod, error) {
		p, err := peer.PeerPod(ctx)
		p.Expires = time.Now().Add(time.Second) // however long the handshake took
		return p, err
	}})
	s.Set(map[string]*xds.Bundle{"mine": text("mine")})
	r := s.open(t, s.svid("mine"))
	r.subscribe("mine", "")
	for {
		if _, err := r.Recv(); err != nil {
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("ended with %v", err)
			}
			return
		}
	}
}

// No bundle leaves before the revocations did, nor without them.
func TestRevocationsGoFirst(t *testing.T) {
	s := serve(t, xds.Config{})
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r1", Task: "t"}, {Id: "not-mine", PodUid: "other"}}); err != nil {
		t.Fatal(err)
	}
	s.Set(map[string]*xds.Bundle{"mine": text("one")})
	r := s.open(t, s.svid("mine"))
	// In the wrong order: the bundle has to wait.
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.BundleType, ResourceNamesSubscribe: []string{"mine"}})
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType, ResourceNamesSubscribe: []string{"*"}})
	first := r.receive()
	if first.GetTypeUrl() != controlpb.RevocationType || len(first.GetResources()) != 1 || first.GetResources()[0].GetName() != "r1" {
		t.Fatalf("first came %v", first)
	}
	m, _ := r.bundle()
	r.ack(m)
	// A second revocation while the first is not acknowledged, and a changed
	// bundle: the bundle waits for both.
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r1", Task: "t"}, {Id: "r2", Owner: "o"}}); err != nil {
		t.Fatal(err)
	}
	s.Set(map[string]*xds.Bundle{"mine": text("two")})
	r.ack(first)
	second := r.receive()
	if second.GetTypeUrl() != controlpb.RevocationType || len(second.GetResources()) != 1 || second.GetResources()[0].GetName() != "r2" {
		t.Fatalf("then came %v", second)
	}
	r.ack(second)
	if _, b := r.bundle(); string(b.GetDocuments()) != "two" {
		t.Errorf("bundle is %q", b.GetDocuments())
	}
	s.until(t, "both revocations acknowledged", func(a map[string]xds.Ack) bool {
		return a["mine"].Revocations["r1"] && a["mine"].Revocations["r2"]
	})
	// One that would match everything is refused, and those in force stay.
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "all"}}); err == nil {
		t.Error("a revocation of everything was accepted")
	}
	if err := s.SetRevocations(nil); err != nil {
		t.Fatal(err)
	}
	if gone := r.receive(); len(gone.GetRemovedResources()) != 2 {
		t.Errorf("after the end of all revocations came %v", gone)
	}
}

// A NACK is kept with its text, is not answered by the same again, and the
// next good bundle clears it.
func TestNACK(t *testing.T) {
	s := serve(t, xds.Config{})
	good := text("good")
	good.Objects = map[xds.Object]int64{{Kind: "AccessPolicy", Namespace: "team", Name: "p"}: 1}
	s.Set(map[string]*xds.Bundle{"mine": good})
	r := s.open(t, s.svid("mine"))
	r.subscribe("mine", "")
	m, _ := r.bundle()
	r.ack(m)
	s.until(t, "good one acknowledged", func(a map[string]xds.Ack) bool { return a["mine"].Bundle == good })

	s.Set(map[string]*xds.Bundle{"mine": text("bad")})
	m, _ = r.bundle()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce(),
		ErrorDetail: status.New(codes.InvalidArgument, "line 3 \x00is bad").Proto()})
	s.until(t, "refused", func(a map[string]xds.Ack) bool {
		return a["mine"].Nack == "line 3  is bad" && a["mine"].Bundle == good
	})
	s.Set(map[string]*xds.Bundle{"mine": text("bad")}) // the same: nothing is sent
	s.Set(map[string]*xds.Bundle{"mine": text("better")})
	m, b := r.bundle()
	if string(b.GetDocuments()) != "better" {
		t.Fatalf("came %q", b.GetDocuments())
	}
	r.ack(m)
	s.until(t, "accepted", func(a map[string]xds.Ack) bool { return a["mine"].Nack == "" && a["mine"].Bundle != good })
}

// Who comes back with what is current is sent nothing, here or at a replica
// that never saw it, and counts as programmed.
func TestResumeAtAnotherReplica(t *testing.T) {
	a, b := serve(t, xds.Config{}), serve(t, xds.Config{})
	b.ca = a.ca
	b.addr, _ = a.ca.Serve("", b.Register)
	for _, s := range []*served{a, b} {
		w := &controlpb.Workload{Namespace: "team", Labels: map[string]string{"b": "2", "a": "1", "c": "3"}, Posture: map[string]string{"y": "1", "x": "2"}}
		s.Set(map[string]*xds.Bundle{"mine": {Documents: []byte("one"), Workload: w, Audiences: []string{"sts"}}})
		if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r1", Task: "t"}}); err != nil {
			t.Fatal(err)
		}
	}
	r := a.open(t, a.svid("mine"))
	r.subscribe("mine", "")
	rev := r.receive()
	r.ack(rev)
	m, _ := r.bundle()
	r.ack(m)
	a.until(t, "acknowledged", func(m map[string]xds.Ack) bool { return m["mine"].Bundle != nil })

	r2 := b.open(t, b.svid("mine"))
	r2.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType, ResourceNamesSubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{"r1": rev.GetResources()[0].GetVersion()}})
	r2.send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.BundleType, ResourceNamesSubscribe: []string{"mine"},
		InitialResourceVersions: map[string]string{"mine": m.GetResources()[0].GetVersion()}})
	sync := r2.receive()
	if len(sync.GetResources())+len(sync.GetRemovedResources()) != 0 {
		t.Errorf("sent again: %v", sync)
	}
	r2.ack(sync)
	b.until(t, "known without being sent", func(m map[string]xds.Ack) bool {
		return m["mine"].Bundle != nil && m["mine"].Revocations["r1"]
	})
	// The next thing that comes is the next change.
	b.Set(map[string]*xds.Bundle{"mine": text("two")})
	if _, got := r2.bundle(); string(got.GetDocuments()) != "two" {
		t.Errorf("came %q", got.GetDocuments())
	}
}

// A heartbeat is answered while the server trusts its own view, and while it
// knows the pod.
func TestHeartbeat(t *testing.T) {
	current := make(chan bool, 1)
	current <- true
	s := serve(t, xds.Config{Current: func() bool { v := <-current; current <- v; return v }})
	s.Set(map[string]*xds.Bundle{"mine": text("one")})
	r := s.open(t, s.svid("mine"))
	r.subscribe("mine", "")
	m, _ := r.bundle()
	r.ack(m)
	beat := &discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType}
	r.send(beat)
	if m := r.receive(); m.GetTypeUrl() != controlpb.RevocationType {
		t.Errorf("a heartbeat is answered by %v", m)
	}
	<-current
	current <- false
	heard := s.Acks()["mine"].Heard
	r.send(beat) // no answer
	s.until(t, "the heartbeat is heard", func(a map[string]xds.Ack) bool { return a["mine"].Heard.After(heard) })
	heard = s.Acks()["mine"].Heard
	r.send(beat) // the one before was dealt with
	s.until(t, "the next is heard", func(a map[string]xds.Ack) bool { return a["mine"].Heard.After(heard) })
	s.Set(map[string]*xds.Bundle{"mine": text("two")}) // nor a bundle that may be old
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r", Task: "t"}}); err != nil {
		t.Fatal(err)
	}
	m = r.receive() // but always a revocation
	if len(m.GetResources()) != 1 || m.GetTypeUrl() != controlpb.RevocationType {
		t.Fatalf("came %v", m)
	}
	<-current
	current <- true
	r.ack(m)
	if _, b := r.bundle(); string(b.GetDocuments()) != "two" {
		t.Errorf("came %q", b.GetDocuments())
	}
}

// Streams are bounded: a pod's newest replace its oldest, requests have a
// rate, and so have streams in all.
func TestLimits(t *testing.T) {
	s := serve(t, xds.Config{MaxStreams: 3, MaxStreamsPerPod: 2})
	s.Set(map[string]*xds.Bundle{"a": text("a"), "b": text("b")})
	var streams []raw
	for range 3 {
		r := s.open(t, s.svid("a"))
		r.subscribe("a", "")
		r.bundle()
		streams = append(streams, r)
	}
	if _, err := streams[0].Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the oldest ended with %v", err)
	}
	b := s.open(t, s.svid("b"))
	b.subscribe("b", "")
	b.bundle()
	c := s.open(t, s.svid("c"))
	if _, err := c.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more ended with %v", err)
	}
	for b.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.BundleType}) == nil {
		continue // until it is too much
	}
	for {
		if _, err := b.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("a flood ended with %v", err)
			}
			break
		}
	}
	// A pod that is gone is cut off.
	s.Delete("a")
	for {
		if _, err := streams[2].Recv(); err != nil {
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("the stream of a deleted pod ended with %v", err)
			}
			break
		}
	}
}

// A pod that the reconcilers do not know yet waits; it gets its bundle when
// they do.
func TestUnknownPodWaits(t *testing.T) {
	s := serve(t, xds.Config{})
	r := s.open(t, s.svid("late"))
	r.subscribe("late", "")
	s.until(t, "connected", func(a map[string]xds.Ack) bool { return !a["late"].Heard.IsZero() })
	s.Set(map[string]*xds.Bundle{"late": text("late")})
	if _, b := r.bundle(); string(b.GetDocuments()) != "late" {
		t.Errorf("came %q", b.GetDocuments())
	}
}

func ExampleBundle() {
	shared := []byte("documents of a namespace")
	s := xds.New(xds.Config{})
	defer s.Close()
	s.Set(map[string]*xds.Bundle{
		"uid-1": {Documents: shared, Workload: &controlpb.Workload{Pod: "a"}},
		"uid-2": {Documents: shared, Workload: &controlpb.Workload{Pod: "b"}},
	})
	fmt.Println(len(s.Acks()))
	// Output: 0
}
