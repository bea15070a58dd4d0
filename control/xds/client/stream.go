package client

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/api/controlpb"
)

type adsStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// received is what a stream's reader found.
type received struct {
	resp *discovery.DeltaDiscoveryResponse
	err  error
}

// stream opens one stream and serves it to its end.
func (c *Client) stream(ctx context.Context, ads discovery.AggregatedDiscoveryServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := ads.DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	// Revocations are asked for first, and the server answers them first.
	first := &discovery.DeltaDiscoveryRequest{
		TypeUrl: controlpb.RevocationType, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: maps.Clone(c.revocations),
	}
	second := &discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.BundleType, ResourceNamesSubscribe: []string{c.c.PodUID}}
	if c.bundle != "" {
		second.InitialResourceVersions = map[string]string{c.c.PodUID: c.bundle}
	}
	for _, r := range []*discovery.DeltaDiscoveryRequest{first, second} {
		if err := s.Send(r); err != nil {
			_, err = s.Recv() // the reason; Send only says EOF
			return fmt.Errorf("subscribe: %w", err)
		}
	}

	in := make(chan received)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			resp, err := s.Recv()
			select {
			case in <- received{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() { cancel(); <-done }() // Recv ends with the stream's context

	beat := time.NewTimer(c.jittered())
	defer beat.Stop()
	waiting := time.Now() // for an answer since; zero: for none
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-in:
			if m.err != nil {
				return m.err
			}
			waiting = time.Time{}
			if err := c.receive(s, m.resp); err != nil {
				return err
			}
		case <-beat.C:
			// A connection can be alive with nobody behind it: a replica that
			// does not answer is left for another.
			if !waiting.IsZero() && time.Since(waiting) > 2*c.c.Heartbeat {
				return fmt.Errorf("the control plane answered nothing for %s", time.Since(waiting).Round(time.Second))
			}
			if waiting.IsZero() {
				waiting = time.Now()
			}
			if err := s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: controlpb.RevocationType}); err != nil {
				c.c.Log.DebugContext(ctx, "heartbeat not sent", "cause", err) // the reader gets the reason
			}
			beat.Reset(c.jittered())
		}
	}
}

func (c *Client) jittered() time.Duration {
	return c.c.Heartbeat - c.c.Heartbeat/8 + rand.N(c.c.Heartbeat/4+1)
}

// receive applies one response and answers it.
func (c *Client) receive(s adsStream, resp *discovery.DeltaDiscoveryResponse) error {
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	var err error
	switch resp.GetTypeUrl() {
	case controlpb.RevocationType:
		err = c.revoke(resp)
	case controlpb.BundleType:
		err = c.apply(resp)
	default:
		err = fmt.Errorf("%q was never asked for", resp.GetTypeUrl())
	}
	if err != nil {
		answer.ErrorDetail = status.New(codes.InvalidArgument, printable(err.Error())).Proto()
		c.c.Log.Error("refused what the control plane sent, the last good policy stays", "type", resp.GetTypeUrl(), "cause", err)
	}
	c.progress = true
	now := time.Now()
	c.fresh.Store(&now)
	return s.Send(answer)
}

// revoke carries out revocations. One that cannot be read is an error, but
// those beside it count.
func (c *Client) revoke(resp *discovery.DeltaDiscoveryResponse) error {
	var bad error
	for _, r := range resp.GetResources() {
		m := &controlpb.Revocation{}
		if err := unpack(r, controlpb.RevocationType, m); err != nil {
			bad = err
			continue
		}
		c.c.Revoke(m)
		c.revocations[r.GetName()] = r.GetVersion()
	}
	for _, name := range resp.GetRemovedResources() {
		delete(c.revocations, name)
	}
	return bad
}

// apply puts the bundle into force.
func (c *Client) apply(resp *discovery.DeltaDiscoveryResponse) error {
	for _, r := range resp.GetResources() {
		if r.GetName() != c.c.PodUID {
			return fmt.Errorf("bundle %q is not ours, %q", r.GetName(), c.c.PodUID)
		}
		m := &controlpb.Bundle{}
		if err := unpack(r, controlpb.BundleType, m); err != nil {
			return err
		}
		if err := c.c.Apply(m); err != nil {
			return err
		}
		c.bundle = r.GetVersion()
		version := m.GetVersion()
		c.applied.Store(&version)
	}
	for _, name := range resp.GetRemovedResources() {
		if name != c.c.PodUID {
			continue
		}
		// No policy is not the last good one: it is one that allows nothing.
		if err := c.c.Apply(&controlpb.Bundle{}); err != nil {
			return err
		}
		c.bundle = ""
		c.applied.Store(new(string))
	}
	return nil
}

func unpack(r *discovery.Resource, typeURL string, m proto.Message) error {
	if got := r.GetResource().GetTypeUrl(); got != typeURL {
		return fmt.Errorf("resource %q is a %q; must be a %s", r.GetName(), got, typeURL)
	}
	if err := proto.Unmarshal(r.GetResource().GetValue(), m); err != nil {
		return fmt.Errorf("resource %q: %w", r.GetName(), err)
	}
	return nil
}

// printable makes an error's text fit for a message: valid, bounded.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return s
}
