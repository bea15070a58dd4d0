package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/footprint"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/intercept"
	"github.com/attache-dev/attache/proxy/redirect"
	"github.com/attache-dev/attache/proxy/resolve"
)

// proofPause is between two attempts to prove the redirect.
const proofPause = time.Second

// sidecar is one start of the program.
type sidecar struct {
	o        *Options
	control  Control
	health   *health
	ca       *intercept.CA
	source   identity.Source
	resolver *resolve.Resolver
	prover   *redirect.Prover
	plane    *dataplane.Plane
	untrace  func()     // ends tracing, after the plane
	first    chan error // of the first bundle: built, or why not
}

// Run serves the pod until ctx ends, which is when its last container has
// ended; then it lets go what is under way and closes the records. Readiness is
// told at o.Health from the beginning.
func Run(ctx context.Context, o Options, control Control) (err error) {
	if err := o.Check(); err != nil {
		return err
	}
	s := &sidecar{o: &o, control: control, health: newHealth(), prover: redirect.NewProver(), resolver: resolve.New(nil), first: make(chan error, 1)}
	addr, stop, err := s.health.serve(ctx, o.Health)
	if err != nil {
		return err
	}
	defer stop()
	o.opened("health", addr)
	if s.ca, err = intercept.Open(o.StateDir, time.Now, 0); err != nil {
		return err
	}
	if err := writeTrust(o.TrustDir, s.ca.PEM()); err != nil {
		return err
	}
	s.begin(stepAttest)
	if s.source, err = control.Attest(ctx); err != nil {
		return fmt.Errorf("attest the pod: %w", err)
	}
	s.begin(stepPolicy)
	return s.follow(ctx, addr)
}

// begin says which step of the start is under way: also in the log, since the
// kubelet's events do not repeat what a probe was answered.
func (s *sidecar) begin(step string) {
	s.health.begin(step)
	s.o.Log.Info("starting", "waiting_for", step)
}

// follow lives as long as the pod: what the control plane says makes the data
// path, and changes it.
func (s *sidecar) follow(ctx context.Context, healthAddr net.Addr) (err error) {
	followCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- s.control.Follow(followCtx, Follower{Apply: s.apply, Rejected: s.rejected, Revoke: s.revoke})
	}()
	defer func() {
		stop()
		<-ended // nothing is applied to a closed data path
		if s.plane != nil {
			err = errors.Join(err, s.plane.Close())
			s.untrace()
		}
	}()
	select {
	case err := <-s.first:
		if err != nil {
			return err
		}
	case err := <-ended:
		ended <- err
		return fmt.Errorf("get the pod's policy: %w", err)
	case <-ctx.Done():
		return nil
	}
	d, err := openDoors(ctx, s.o)
	if err != nil {
		return err
	}
	defer d.close()
	if err := s.open(ctx, d, healthAddr); err != nil {
		return err
	}
	if err := s.prove(ctx); err != nil {
		return nil //nolint:nilerr // told to stop before it was proved
	}
	s.health.begin("")
	s.o.Log.Info("started", "mode", s.o.Mode, "workload", s.control.Workload().ID.String(), "version", s.o.Version)
	defer footprint.KeepHeap()()
	go footprint.KeepTrimmed(ctx)
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		ended <- err
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the pod's policy is not followed any more: %w", err)
	}
}

// apply makes the data path with the first bundle, and changes it with later
// ones.
func (s *sidecar) apply(b *api.Bundle) error {
	if s.plane != nil {
		s.resolver.Set(s.nameservers(b.Config.Spec.Cluster))
		return s.plane.Apply(b)
	}
	p, err := s.newPlane(b)
	if err != nil {
		s.health.trouble(err)
		return err
	}
	s.plane = p
	register(p.Registry(), s.control)
	s.health.serving(s.ready, p.Registry())
	s.first <- nil
	return nil
}

func (s *sidecar) rejected(err error) {
	if s.plane != nil {
		s.plane.Rejected(err)
		return
	}
	if err != nil {
		s.health.trouble(err)
	}
}

// spoolOptions are the documents', within what the pod's volume has.
func spoolOptions(c v1alpha1.AuditConfig, size int64) audit.Options {
	o := audit.FromConfig(c)
	o.MaxBytes = min(o.MaxBytes, size)
	o.SegmentBytes = min(o.SegmentBytes, o.MaxBytes/4)
	o.KeepBytes = min(o.KeepBytes, o.MaxBytes/2)
	return o
}

func (s *sidecar) newPlane(b *api.Bundle) (*dataplane.Plane, error) {
	opts := spoolOptions(b.Config.Spec.Audit, s.o.SpoolBytes)
	opts.Dir, opts.Logger, opts.Version = filepath.Join(s.o.SpoolDir, "records"), s.o.Log, s.o.Version
	opts.Config = map[string]string{"policy_version": b.Version}
	holders, err := placeholder.Restore(s.o.Placeholders, dataplane.DoorPlaceholders(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", envPlaceholders, err)
	}
	untrace, tracer, err := dataplane.OpenTracing(context.Background(), b.Config.Spec.Tracing, s.o.Version)
	if err != nil {
		return nil, err
	}
	svid := dataplane.SVIDOf(s.source, s.control.Workload)
	sinks, err := s.sinks(b, svid)
	if err != nil {
		untrace()
		return nil, err
	}
	opts.Producer, opts.Kind = s.o.PodUID, audit.KindSidecar
	opts.Signer, opts.Collector = dataplane.SignerOf(svid), sinks.Collector != ""
	spool, err := audit.Open(opts)
	if err != nil {
		untrace()
		return nil, errors.Join(err, sinks.Close())
	}
	s.resolver.Set(s.nameservers(b.Config.Spec.Cluster))
	c := dataplane.Config{
		Bundle: b, Workload: s.control.Workload(), Source: s.source, Spool: spool, Sinks: sinks, UsedTokens: filepath.Join(s.o.StateDir, "used-human-tokens"),
		Placeholders: holders, CA: s.ca, Resolver: s.resolver, Stale: s.control.Stale, Tracer: tracer, Log: s.o.Log,
		Warn: func(text string) { s.o.Log.Warn(text) },
	}
	if br, ok := s.control.(Broker); ok {
		c.Broker = br.Minter
		to := br.Relay()
		c.Relay = &to
	}
	p, err := dataplane.New(c)
	if err != nil {
		untrace()
		return nil, err
	}
	s.untrace = untrace
	return p, nil
}

// nameservers are those that the operator names, for the cluster or in our
// flags. Without any it is the pod's own resolv.conf that names them, and
// nothing else of it counts.
func (s *sidecar) nameservers(c v1alpha1.ClusterConfig) []netip.AddrPort {
	var out []netip.AddrPort
	for _, text := range c.Nameservers {
		if a, err := netip.ParseAddr(text); err == nil { // package api has checked it
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, a := range s.o.Nameservers {
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	if len(out) > 0 {
		return out
	}
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		s.o.Log.Warn("no nameservers: none are configured, and there is no resolv.conf", "cause", err)
		return nil
	}
	defer f.Close()
	return resolve.Nameservers(f)
}

// open starts to serve the doors.
func (s *sidecar) open(ctx context.Context, d *doors, more ...net.Addr) error {
	own := more
	for _, ln := range d.all() {
		own = append(own, ln.Addr())
	}
	// The data path is cut by Close, when requests have been let go.
	s.plane.Open(context.WithoutCancel(ctx), s.attestor(), own)
	if d.proxy != nil {
		s.plane.ServeProxy(d.proxy)
		s.o.opened("proxy", d.proxy.Addr())
	}
	for _, ln := range d.redirect {
		s.plane.ServeTransparent(ln, front.Transparent{Answer: s.prover.Answer})
	}
	for _, b := range d.bases {
		if _, err := s.plane.ServeBaseURL(b.ln, b.BaseURL.BaseURL); err != nil {
			return err
		}
	}
	return nil
}

// prove returns when the redirect is in force, or ctx ends.
func (s *sidecar) prove(ctx context.Context) error {
	if s.o.Mode != Transparent {
		return nil
	}
	s.begin(stepRedirect)
	for {
		err := s.prover.Prove(ctx)
		if err == nil {
			return nil
		}
		s.health.trouble(err)
		s.o.Log.Warn("the redirect is not in force", "cause", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(proofPause):
		}
	}
}

// ready says whether a call could go through now.
func (s *sidecar) ready() error {
	if err := s.plane.Ready(); err != nil {
		return err
	}
	return s.control.Stale()
}

// revoke implements [Follower].
func (s *sidecar) revoke(r Revocation) {
	if s.plane == nil { // nothing was minted yet
		return
	}
	w := s.control.Workload()
	if r.Owner != "" && (w == nil || w.Owner != r.Owner) {
		return
	}
	// A namespaced provider is NAMESPACE/NAME; ours are known by their names.
	provider := r.Provider
	if ns, name, ok := strings.Cut(provider, "/"); ok && w != nil && ns == w.Namespace {
		provider = name
	}
	n := s.plane.Revoke(func(q minting.Request, c minting.Credential) bool {
		return (r.Provider == "" || q.Provider == provider) && (r.Handle == "" || c.Handle == r.Handle) &&
			(r.Task == "" || q.TaskID == r.Task) && (r.Before.IsZero() || c.Issued.Before(r.Before))
	})
	if r.Task != "" {
		_ = s.plane.Tasks().Close(r.Task, "revoked by the operator") // it may have ended by itself
	}
	if r.All && r.Before.IsZero() {
		s.plane.EndRun()
	}
	s.plane.Event("revocation", map[string]string{"id": r.ID, "reason": r.Reason, "credentials": fmt.Sprint(len(n))})
}
