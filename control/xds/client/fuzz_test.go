package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/xds/client"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/policy"
)

// mouth is a control plane that says what it is given, and hears the answer.
type mouth struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	say  chan *discovery.DeltaDiscoveryResponse
	hear chan *discovery.DeltaDiscoveryRequest
}

func (m *mouth) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	go func() {
		for {
			q, err := s.Recv()
			if err != nil {
				return
			}
			if q.GetResponseNonce() != "" {
				select {
				case m.hear <- q:
				case <-s.Context().Done():
					return
				}
			}
		}
	}()
	for {
		select {
		case <-s.Context().Done():
			return nil
		case r := <-m.say:
			if err := s.Send(r); err != nil {
				return err
			}
		}
	}
}

// Whatever a control plane sends, the client answers it, keeps the last good
// bundle, and never applies what is not the pod's own nor what does not
// compile.
func FuzzApply(f *testing.F) {
	const good = "{apiVersion: attache.dev/v1alpha1, kind: AttacheConfig, metadata: {name: default}, spec: {}}"
	f.Add([]byte(good), "mine", controlpb.BundleType, false)
	f.Add([]byte("kind: Nonsense"), "mine", controlpb.BundleType, false)
	f.Add([]byte("\xff\xfe{{{"), "mine", controlpb.BundleType, true)
	f.Add([]byte(good), "theirs", controlpb.BundleType, false)
	f.Add([]byte(good), "r1", controlpb.RevocationType, true)
	f.Add([]byte(good), "x", "type.googleapis.com/envoy.config.cluster.v3.Cluster", false)

	m := &mouth{say: make(chan *discovery.DeltaDiscoveryResponse), hear: make(chan *discovery.DeltaDiscoveryRequest)}
	ca := xdstest.NewAuthority(f)
	addr, _ := ca.Serve("", func(g grpc.ServiceRegistrar) { discovery.RegisterAggregatedDiscoveryServiceServer(g, m) })
	var mu sync.Mutex
	applied := ""
	c, err := client.New(client.Config{
		Target: addr, PodUID: "mine", TLS: ca.Client(ca.SVID("team", "agent", "mine", time.Now().Add(time.Hour))), Heartbeat: time.Hour,
		Revoke: func(*controlpb.Revocation) {},
		Apply: func(b *controlpb.Bundle) error {
			docs, err := api.ParseFor(api.PlacePod, "documents", b.GetDocuments())
			if err == nil {
				_, err = policy.Compile(docs)
			}
			if err == nil {
				mu.Lock()
				applied = b.GetVersion()
				mu.Unlock()
			}
			return err
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, docs []byte, name, typ string, raw bool) {
		value := docs
		if !raw {
			value, err = proto.Marshal(&controlpb.Bundle{Version: "v", Documents: docs})
			if err != nil {
				t.Skip()
			}
		}
		if !utf8.ValidString(name) || !utf8.ValidString(typ) || typ == "" {
			t.Skip() // gRPC itself refuses to send it
		}
		mu.Lock()
		applied = ""
		mu.Unlock()
		before := c.Version()
		m.say <- &discovery.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: "n", Resources: []*discovery.Resource{
			{Name: name, Version: "v", Resource: &anypb.Any{TypeUrl: typ, Value: value}}}}
		answer := <-m.hear
		mu.Lock()
		took := applied
		mu.Unlock()
		if refused := answer.GetErrorDetail() != nil; typ == controlpb.BundleType && !refused && name == "mine" {
			if c.Version() != took {
				t.Fatalf("acknowledged, but %q is in force, not %q", c.Version(), took)
			}
		} else if c.Version() != before || took != "" {
			t.Fatalf("refused or not ours, but in force is %q, was %q", c.Version(), before)
		}
		if d := answer.GetErrorDetail(); d != nil && (d.GetMessage() == "" || len(d.GetMessage()) > 1100) {
			t.Fatalf("the reason is %d bytes long", len(d.GetMessage()))
		}
	})
}
