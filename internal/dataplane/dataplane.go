// Package dataplane is the data path from the doors to the records: policy,
// credentials, injection, upstream, spool. attache run and the sidecar are the
// same one with different doors in front.
package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/apikey"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/intercept"
	"github.com/attache-dev/attache/proxy/pipeline"
	"github.com/attache-dev/attache/proxy/relay"
	"github.com/attache-dev/attache/proxy/upstream"
)

// Config of a [Plane]. Bundle, Workload, Source, Spool and Log are required.
type Config struct {
	Bundle   *api.Bundle // in force at the start
	Workload *identity.Workload
	Source   identity.Source
	// Spool is closed by the Plane, also when New fails.
	Spool *audit.Spool
	// Sinks are closed by the Plane, also when New fails.
	Sinks Sinks
	// UsedTokens is a file that remembers the humans' tokens, hidden from
	// agents.
	UsedTokens   string
	Placeholders *placeholder.Set // nil: drawn for the bundle's providers
	CA           *intercept.CA    // nil: made anew
	// Resolver finds the addresses of upstream names; nil: the system's.
	Resolver upstream.Resolver
	// Broker makes minters for roots that are out of our reach; nil: there are
	// none.
	Broker func(v1alpha1.CredentialProvider) (minting.Minter, error)
	// Relay is where credentials are put on that must not enter this process;
	// nil: there is none, and calls that need it are refused.
	Relay *relay.Target
	// Stale says why the policy in force may not be used any more; nil: it
	// always may.
	Stale  func() error
	Tracer trace.Tracer // nil: no traces
	Unsafe []string     // unsafe flags in force, for every record
	Log    *slog.Logger
	// Say tells the user about edits, Warn what was lost at the end; nil: nobody.
	Say, Warn func(text string)
}

// Plane is the data path of one workload. It is safe for concurrent use.
type Plane struct {
	cfg      Config
	spec     v1alpha1.AttacheConfigSpec
	registry *prometheus.Registry
	metrics  *pipeline.Metrics

	keys     []string // variables of ours that hold keys
	env      *apikey.Environment
	guard    minting.Guard
	router   *minting.Router
	cache    *minting.Cache
	tasks    *task.Store
	upstream *upstream.Pool
	relay    *relay.Client // nil: none
	proofs   *injector.Proofs
	pipe     *pipeline.Pipeline
	ca       *intercept.CA
	front    *front.Front
	shipping *ship.Group // nil: no sinks
	holders  *placeholder.Set
	aws      awsDoors

	servers sync.WaitGroup
	doors   context.Context //nolint:containedctx // of the doors, from Open to Close
	stop    context.CancelFunc

	inForce prometheus.Gauge // 0 while the newest edit is rejected
	mu      sync.Mutex       // guards applied
	applied string           // version of the bundle in force
}

// New builds everything that serves nobody yet. What it opened, and the spool,
// is closed by [Plane.Close], or already when it fails.
func New(c Config) (*Plane, error) {
	p := &Plane{cfg: c, spec: c.Bundle.Config.Spec, router: minting.NewRouter(nil), keys: keyVariables(c.Bundle)}
	p.env = apikey.TakeEnv(p.keys...)
	p.registry = prometheus.NewRegistry()
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics = pipeline.NewMetrics(p.registry)
	p.inForce = prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_config_in_force", Help: "1 if the documents as they stand are in force, 0 while the newest edit is rejected."})
	p.registry.MustRegister(p.inForce)
	if err := p.build(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Plane) build() (err error) {
	c, b := &p.cfg, p.cfg.Bundle
	if err := p.openRecords(); err != nil {
		return err
	}
	if p.upstream, err = upstream.New(upstream.Config{Limits: p.spec.Limits, Upstream: p.spec.Upstream, Identity: c.Source, Resolver: c.Resolver,
		Dialed: func(destination.Destination) { p.metrics.Dialed() }}); err != nil {
		return err
	}
	p.aws = findAWSDoors(b)
	if p.holders = c.Placeholders; p.holders == nil {
		if p.holders, err = placeholders(b, p.aws.specs()); err != nil {
			return err
		}
	}
	if err := p.aws.open(p.holders, c.Workload); err != nil {
		return err
	}
	p.cache = minting.NewCache(minting.CacheOptions{Minter: p.router, Size: p.spec.Limits.CredentialCache, OnEvent: p.Event, Logger: c.Log})
	p.registry.MustRegister(newOutliving(p.cache.Live))
	if err := p.openTasks(); err != nil {
		return err
	}
	p.proofs = injector.NewProofs(time.Now)
	vault := guard.NewVault(4096, time.Hour, time.Now)
	var through pipeline.Relay // a nil *relay.Client would be one
	if c.Relay != nil {
		p.relay = relay.NewClient(*c.Relay, p.spec.Limits)
		through = p.relay
	}
	p.pipe = pipeline.New(pipeline.Config{
		Relay: through,
		Tasks: p.tasks, Minter: p.cache, Source: c.Source, Upstream: p.upstream, Spool: c.Spool, Vault: vault, AWSDoor: p.aws.door,
		Placeholders: p.holders, OpenTask: p.openAgentTask, CloseTask: p.closeAgentTask, Proofs: p.proofs, Revoke: p.revokeHandle,
		Stale: c.Stale, Tracer: c.Tracer, Limits: p.spec.Limits, Unsafe: c.Unsafe, Log: c.Log, Metrics: p.metrics, Now: time.Now,
	})
	p.tasks.OnClose(func(t *identity.Task, reason string) { p.endTask(t, reason, vault) })
	if err := p.Apply(b); err != nil {
		return b.Located(err)
	}
	if p.ca = c.CA; p.ca == nil {
		p.ca, err = intercept.New(time.Now, p.spec.Limits.LeafCacheSize)
	}
	return err
}

// keyVariables lists the variables of our own environment that hold keys.
func keyVariables(b *api.Bundle) []string {
	var names []string
	for i := range b.Providers {
		if k := b.Providers[i].Spec.APIKey; k != nil && k.Env != "" {
			names = append(names, k.Env)
		}
	}
	return names
}

// placeholders draws those of the providers, and more.
func placeholders(b *api.Bundle, more []placeholder.Spec) (*placeholder.Set, error) {
	var specs []placeholder.Spec
	for i := range b.Providers {
		for _, ph := range b.Providers[i].Spec.Placeholders {
			specs = append(specs, placeholder.Spec{Env: ph.Env, Prefix: ph.Prefix, Provider: b.Providers[i].Metadata.Name})
		}
	}
	return placeholder.New(append(specs, more...))
}

// Event writes something that is no request into the same chain of records.
func (p *Plane) Event(name string, fields map[string]string) {
	if err := p.cfg.Spool.Event(name, fields); err != nil {
		p.cfg.Log.Error("event not recorded", "event", name, "cause", err)
	}
}

// Ready reports whether a call could go through now.
func (p *Plane) Ready() error {
	if err := p.cfg.Spool.Healthy(); err != nil {
		return errors.New("audit: " + err.Error())
	}
	if s, ok := p.cfg.Source.(interface{ Ready() error }); ok {
		if err := s.Ready(); err != nil {
			return errors.New("identity: " + err.Error())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied == "" {
		return errors.New("policy: none in force")
	}
	return nil
}

// Registry holds the metrics.
func (p *Plane) Registry() *prometheus.Registry { return p.registry }

// Tasks is the store of open tasks.
func (p *Plane) Tasks() *task.Store { return p.tasks }

// Live lists the credentials that are in memory, without their values.
func (p *Plane) Live() []minting.LiveCredential { return p.cache.Live() }

// CA is what agents must trust, in PEM.
func (p *Plane) CA() []byte { return p.ca.PEM() }

// Keys are the variables of our own environment that hold providers' keys.
func (p *Plane) Keys() []string { return p.keys }

func (p *Plane) say(lines ...string) {
	if p.cfg.Say != nil {
		p.cfg.Say(strings.Join(lines, "\n"))
	}
}

// describe is what a bundle's event says of it.
func describe(b *api.Bundle) map[string]string {
	return map[string]string{"version": b.Version, "policies": strconv.Itoa(len(b.Policies)), "providers": strconv.Itoa(len(b.Providers))}
}

// Close ends everything in the order in which nothing is lost: requests,
// tasks, credentials, records.
func (p *Plane) Close() error {
	var errs []error
	if p.front != nil {
		ctx, cancel := context.WithTimeout(context.Background(), p.spec.Limits.DrainTimeout.D())
		if err := p.front.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
		cancel()
		p.stop()
		p.servers.Wait()
	}
	if p.tasks != nil {
		p.tasks.CloseRun(p.cfg.Workload.RunID)
		p.tasks.Shutdown()
	}
	if p.cache != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		if err := p.cache.Close(ctx); err != nil && p.cfg.Warn != nil { // the records say which
			p.cfg.Warn("not every credential was revoked, they end by themselves (attache audit search event:credential.*): " + err.Error())
		}
		cancel()
	}
	if p.upstream != nil {
		p.upstream.Close()
	}
	if p.relay != nil {
		p.relay.Close()
	}
	return errors.Join(append(errs, p.closeRecords())...)
}
