package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/apikey"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/intercept"
	"github.com/attache-dev/attache/proxy/pipeline"
	"github.com/attache-dev/attache/proxy/upstream"
)

// plane is the data path of one run, from listeners to spool.
type plane struct {
	o        *Options
	spec     v1alpha1.AttacheConfigSpec
	workload *identity.Workload
	source   *source
	spool    *audit.Spool
	spoolDir string
	registry *prometheus.Registry
	metrics  *pipeline.Metrics

	keys     []string // variables of ours that hold keys
	env      *apikey.Environment
	guard    minting.Guard
	router   *minting.Router
	cache    *minting.Cache
	tasks    *task.Store
	upstream *upstream.Pool
	proofs   *injector.Proofs
	pipe     *pipeline.Pipeline
	ca       *intercept.CA
	front    *front.Front
	holders  *placeholder.Set
	aws      awsDoors

	proxyURL string
	baseURLs []string // NAME=value
	servers  sync.WaitGroup
	stop     context.CancelFunc

	first   *api.Bundle      // that the run started with
	inForce prometheus.Gauge // 0 while the newest edit is rejected
	applied string           // version of the bundle in force
	mu      sync.Mutex       // guards applied
}

// newPlane builds everything that does not need the child. What it opened is
// closed by close, also after an error.
func newPlane(ctx context.Context, o *Options, b *api.Bundle, src *source, w *identity.Workload, tracer trace.Tracer) (*plane, error) {
	p := &plane{o: o, first: b, spec: b.Config.Spec, workload: w, source: src, router: minting.NewRouter(nil), keys: keyVariables(b)}
	p.env = apikey.TakeEnv(p.keys...)
	p.registry = prometheus.NewRegistry()
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics = pipeline.NewMetrics(p.registry)
	p.inForce = prometheus.NewGauge(prometheus.GaugeOpts{Name: "attache_config_in_force", Help: "1 if the documents as they stand are in force, 0 while the newest edit is rejected."})
	p.registry.MustRegister(p.inForce)
	var err error
	if p.spool, p.spoolDir, err = openSpool(o, b); err != nil {
		return p, err
	}
	if p.upstream, err = upstream.New(upstream.Config{Limits: p.spec.Limits, Upstream: p.spec.Upstream, Identity: src,
		Dialed: func(destination.Destination) { p.metrics.Dialed() }}); err != nil {
		return p, err
	}
	p.aws = findAWSDoors(b)
	if p.holders, err = placeholders(b, p.aws.specs()); err != nil {
		return p, err
	}
	if err := p.aws.open(p.holders, w); err != nil {
		return p, err
	}
	p.cache = minting.NewCache(minting.CacheOptions{Minter: p.router, Size: p.spec.Limits.CredentialCache, OnEvent: p.event, Logger: o.Log})
	if err := p.openTasks(); err != nil {
		return p, err
	}
	p.proofs = injector.NewProofs(time.Now)
	vault := guard.NewVault(4096, time.Hour, time.Now)
	p.pipe = pipeline.New(pipeline.Config{
		Tasks: p.tasks, Minter: p.cache, Source: src, Upstream: p.upstream, Spool: p.spool, Vault: vault, AWSDoor: p.aws.door,
		Placeholders: p.holders, OpenTask: p.openAgentTask, CloseTask: p.closeAgentTask, Proofs: p.proofs, Revoke: p.revokeHandle,
		Tracer: tracer, Limits: p.spec.Limits, Unsafe: unsafeFlags(o), Log: o.Log, Metrics: p.metrics, Now: time.Now,
	})
	p.tasks.OnClose(func(t *identity.Task, reason string) { p.endTask(t, reason, vault) })
	if err := p.apply(b); err != nil {
		return p, b.Located(err)
	}
	p.ca, err = intercept.New(time.Now, p.spec.Limits.LeafCacheSize)
	return p, err
}

func unsafeFlags(o *Options) []string {
	if o.UnsafeSameUser {
		return []string{"unsafe-same-user"}
	}
	return nil
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

// event writes something that is no request into the same chain of records.
func (p *plane) event(name string, fields map[string]string) {
	if err := p.spool.Event(name, fields); err != nil {
		p.o.Log.Error("event not recorded", "event", name, "cause", err)
	}
}

// open starts to serve the doors. attestor must be ready to answer.
func (p *plane) open(ctx context.Context, d *doors, attestor identity.Attestor) error {
	ctx, p.stop = context.WithCancel(ctx)
	p.front = &front.Front{
		Attestor: attestor, CA: p.ca, Handler: p.pipe, Passthrough: p.pipe.Passthrough, Tunnel: p.pipe.Tunnel,
		Limits: p.spec.Limits, Log: p.o.Log, Refused: p.metrics.Connection,
		TLSFailed: func(c *proxy.Conn, err error, hint string) {
			p.o.Log.Warn("a client broke off TLS", "host", c.Dest.Host, "cause", err, "hint", hint)
		},
	}
	p.upstream.SetOwn(d.addrs())
	p.proxyURL = "http://" + d.proxy.Addr().String()
	p.serve(func() error { return p.front.ServeProxy(ctx, d.proxy) })
	if d.aws != nil {
		p.aws.addr = d.aws.Addr().String()
		p.serve(func() error { return p.front.ServeAWS(ctx, d.aws) })
	}
	for _, b := range d.bases {
		if err := p.openBase(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (p *plane) openBase(ctx context.Context, b baseDoor) error {
	port := b.Port
	if port == 0 {
		port = 443
	}
	dest, err := destination.Parse(api.SchemeHTTPS, net.JoinHostPort(b.Host, strconv.Itoa(port)), 443)
	if err != nil {
		return fmt.Errorf("base URL %s: %w", b.Env, err)
	}
	var cfg *tls.Config
	if b.Scheme == api.SchemeHTTPS {
		if cfg, err = p.ca.Config("127.0.0.1"); err != nil {
			return fmt.Errorf("base URL %s: %w", b.Env, err)
		}
	}
	p.baseURLs = append(p.baseURLs, b.Env+"="+front.LocalURL(b.ln, cfg != nil)+b.Path)
	p.serve(func() error { return p.front.ServeBaseURL(ctx, b.ln, dest, cfg) })
	return nil
}

func (p *plane) serve(f func() error) {
	p.servers.Go(func() {
		if err := f(); err != nil && !errors.Is(err, front.ErrClosed) && !errors.Is(err, context.Canceled) && !errors.Is(err, http.ErrServerClosed) {
			p.o.Log.Error("listener ended", "cause", err)
		}
	})
}

// close ends everything in the order in which nothing is lost: requests,
// tasks, credentials, records.
func (p *plane) close() error {
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
		p.tasks.CloseRun(p.workload.RunID)
		p.tasks.Shutdown()
	}
	if p.cache != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		if err := p.cache.Close(ctx); err != nil { // the records say which
			fmt.Fprintf(p.o.Stderr, "attache: not every credential was revoked, they end by themselves (attache audit search event:credential.*): %v\n", err)
		}
		cancel()
	}
	if p.upstream != nil {
		p.upstream.Close()
	}
	if p.spool != nil {
		errs = append(errs, p.spool.Close())
	}
	return errors.Join(errs...)
}

// readSecretFile reads a small file that holds one secret.
func readSecretFile(name string) (string, error) {
	const limit = 64 << 10
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, limit+1)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil {
			break
		}
	}
	if n > limit {
		return "", fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return string(b[:n]), nil
}
