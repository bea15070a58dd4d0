package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity/process"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/footprint"
	"github.com/attache-dev/attache/internal/isolate"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/trust"
)

// Run starts the agent behind its own data path, waits for its end and returns
// its exit status. An error means that the agent did not run, or that
// something was lost when it ended.
func Run(ctx context.Context, o Options) (status int, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return 2, err
	}
	path, err := findCommand(o.Command[0])
	if errors.Is(err, os.ErrPermission) {
		return 126, err // as shells do
	}
	if err != nil {
		return 127, err
	}
	b, err := load(o.Config)
	if err != nil {
		return 2, err
	}
	if o.HumanTokenFile != "" { // the sandbox cannot hide what is not there
		if _, err := os.Stat(o.HumanTokenFile); err != nil {
			return 1, fmt.Errorf("read the human's token: %w", err)
		}
	}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return 1, fmt.Errorf("make the state folder: %w; name a writable one with --state", err)
	}
	if d := b.Config.Spec.Audit.Dir; d != "" { // the sandbox cannot hide what is not there
		if err := os.MkdirAll(d, 0o700); err != nil {
			return 1, fmt.Errorf("make the spool's folder: %w; name a writable one with audit.dir", err)
		}
	}
	trustDir, err := os.MkdirTemp("", "attache-trust-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(trustDir)
	if err := os.Chmod(trustDir, 0o755); err != nil { // the child may run as another user
		return 1, err
	}
	ctx, sigs := catchSignals(ctx, &o)
	defer sigs.stop()
	defer func() {
		if err != nil && sigs.phase.Load() == starting && ctx.Err() != nil {
			status, err = 130, errors.New("interrupted before the agent started")
		}
	}()
	src, err := openSource(ctx, &o, b.Config.Spec)
	if err != nil {
		return 1, err
	}
	defer func() { _ = src.close() }()
	return o.confined(ctx, b, src, path, trustDir, sigs)
}

func findCommand(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find the agent's command: %w", err)
	}
	return filepath.Abs(p)
}

// confined makes the sandbox, then the data path that vouches for it, then
// starts the agent.
func (o *Options) confined(ctx context.Context, b *api.Bundle, src *source, path, trustDir string, sigs *signals) (status int, err error) {
	cwd, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	so := sandbox.Options{Dir: cwd, Hide: o.hidden(b), ReadOnly: []string{o.Config, trustDir}, User: o.User, UnsafeSameUser: o.UnsafeSameUser}
	box, so, d, iso, err := o.enclose(ctx, b, so, trustDir)
	if err != nil {
		return 1, err
	}
	defer d.close()
	defer func() { _ = box.Close() }()
	defer func() { err = errors.Join(err, iso.close()) }()
	// Before any secret is in memory.
	node, err := findNode(ctx, so)
	if err != nil {
		o.Log.Debug("no node found", "cause", err)
	}
	shutdownTracing, tracer, err := dataplane.OpenTracing(ctx, b.Config.Spec.Tracing, o.Version)
	if err != nil {
		return 1, err
	}
	defer shutdownTracing()
	w := newWorkload(o, b.Config.Spec, src.id, box.Confinement().String())
	p, err := newPlane(o, b, src, w, tracer)
	if err != nil {
		return documentStatus(err), err
	}
	defer func() {
		if cerr := p.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close: %w", cerr))
		}
	}()
	if err := p.recordDocuments(b, time.Now()); err != nil {
		return 1, err
	}
	attestor, err := process.New(process.Options{Workload: w, CgroupDir: box.CgroupDir()})
	if err != nil {
		return 1, err
	}
	defer func() { _ = attestor.Close() }()
	if iso != nil {
		iso.plane, iso.attestor = p, attestor
	}
	if err := p.open(ctx, d, attestor); err != nil {
		return 1, err
	}
	adm, err := p.openAdmin(ctx, d.extra)
	if err != nil {
		return 1, err
	}
	defer func() { _ = adm.close() }()
	if _, err := p.openLauncherTask(ctx); err != nil {
		return 1, err
	}
	env, err := p.childEnv(node, trustDir)
	if err != nil {
		return 1, err
	}
	p.announce(box.Confinement())
	// Before Start, which listens to signals itself before the agent runs: one
	// that comes right after must not end what has begun.
	sigs.phase.Store(running)
	defer sigs.phase.Store(ending)
	if err := box.Start(sandbox.Command{Path: path, Args: o.Command, Env: env, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr}); err != nil {
		return 126, fmt.Errorf("start %s: %w", o.Command[0], err)
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	go p.watch(watchCtx)
	go p.deliverLeft(watchCtx, p.openSinks) // a kill in its middle loses nothing
	defer footprint.KeepHeap()()
	go footprint.KeepTrimmed(watchCtx)
	return box.Wait(ctx)
}

// enclose opens the doors and makes the sandbox for them: with a network of its
// own where that is wanted and, with [IsolateAuto], possible. The isolation is
// nil without.
func (o *Options) enclose(ctx context.Context, b *api.Bundle, so sandbox.Options, trustDir string) (*sandbox.Sandbox, sandbox.Options, *doors, *isolation, error) {
	if o.Isolate != "" {
		box, iso, own, d, err := o.isolated(ctx, b, so, trustDir)
		if err == nil {
			return box, own, d, iso, nil
		}
		if o.Isolate != IsolateAuto || !errors.Is(err, isolate.ErrForbidden) {
			return nil, so, nil, nil, err
		}
		o.say("no network of its own for the agent: %v", err)
		o.say("not enforced here: programs that ignore the proxy's variables reach the network past Attaché, without a credential and a record")
	}
	d, err := openDoors(ctx, o, b)
	if err != nil {
		return nil, so, nil, nil, err
	}
	if o.OnlyProxy {
		so.OnlyProxy = d.ports()
	}
	box, err := sandbox.New(ctx, so)
	if err != nil {
		d.close()
		if errors.Is(err, sandbox.ErrUnconfined) {
			err = fmt.Errorf("%w; --unsafe-same-user starts it all the same and every record says so", err)
		}
		return nil, so, nil, nil, err
	}
	return box, so, d, nil, nil
}

// documentStatus is 2 for a mistake in the documents, as for every mistake of
// whoever called, and 1 otherwise.
func documentStatus(err error) int {
	if _, ok := errors.AsType[api.Problems](err); ok {
		return 2
	}
	return 1
}

// hidden lists what the child must not see: our state, keys and sockets.
func (o *Options) hidden(b *api.Bundle) []string {
	hide := []string{o.State}
	add := func(paths ...string) {
		for _, p := range paths {
			if p != "" {
				hide = append(hide, p)
			}
		}
	}
	c := b.Config.Spec
	add(o.HumanTokenFile, o.LogFile, c.Identity.SSHAgent, c.Identity.TLSKeyFile, c.Audit.Dir)
	for _, s := range []string{c.Identity.Socket, os.Getenv("SPIFFE_ENDPOINT_SOCKET"), c.Admin.Listen} {
		if p, ok := strings.CutPrefix(s, "unix:"); ok {
			add("/" + strings.TrimLeft(p, "/"))
		}
	}
	add(dataplane.KeyFiles(b)...)
	return hide
}

// childEnv is the agent's environment: proxy, trust and placeholders in,
// credentials out.
func (p *plane) childEnv(node trust.NodeVersion, trustDir string) ([]string, error) {
	bundle, err := trust.WriteBundle(trustDir, p.CA())
	if err != nil {
		return nil, fmt.Errorf("write the trust bundle: %w", err)
	}
	placeholders, doors, err := p.Placeholders(trustDir)
	if err != nil {
		return nil, err
	}
	env, report, err := trust.Env(trust.Options{
		Parent: os.Environ(), Proxy: p.proxyURL, Bundle: bundle, Placeholders: placeholders,
		BaseURLs: slices.Concat(p.baseURLs, doors, awsRegion(p.first, os.Environ())), AWSMetadata: p.AWSMetadata(),
		NoProxy: p.o.NoProxy, Keep: p.o.Keep, Strip: p.Keys(), Node: node,
	})
	if err != nil {
		return nil, err
	}
	for _, k := range p.Keys() {
		p.o.say("%s is kept from the agent (a provider's key)", k)
	}
	for _, r := range report.Removed {
		p.o.say("%s is kept from the agent (%s)", r.Name, r.Why)
	}
	for _, n := range report.Notes {
		p.o.Log.Info("environment", "note", n)
	}
	return env, nil
}

func (p *plane) announce(c sandbox.Confinement) {
	p.o.say("%s runs confined (%s) behind %s; records in %s", p.workload.ID, c, p.proxyURL, p.spoolDir)
	for _, l := range c.Limits {
		p.o.say("not enforced here: %s", l)
	}
	for _, u := range p.baseURLs {
		p.o.say("base URL %s", u)
	}
	if provider, doors := p.AWSDoors(); provider != "" {
		p.o.say("AWS SDKs find placeholder keys of provider %s (%s)", provider, strings.Join(doors, ", "))
	}
}
