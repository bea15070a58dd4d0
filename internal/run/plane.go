package run

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/sinks"
)

// plane is the data path of one run, with its operator's and its agent's ends.
type plane struct {
	*dataplane.Plane
	o        *Options
	first    *api.Bundle // that the run started with
	workload *identity.Workload
	spoolDir string
	spool    *audit.Spool
	// openSinks makes the configured sinks anew.
	openSinks func() (dataplane.Sinks, error)

	proxyURL string
	baseURLs []string // NAME=value
}

// newPlane builds everything that does not need the child.
func newPlane(o *Options, b *api.Bundle, src *source, w *identity.Workload, tracer trace.Tracer) (*plane, error) {
	p := &plane{o: o, first: b, workload: w}
	svid := dataplane.SVIDOf(src.Source, func() *identity.Workload { return w })
	p.openSinks = func() (dataplane.Sinks, error) {
		return dataplane.OpenSinks(b.Config.Spec.Audit, svid, map[string]string{"host.name": w.Node}, o.Version, sinks.Local(svid))
	}
	to, err := p.openSinks()
	if err != nil {
		return nil, err
	}
	spool, dir, err := openSpool(o, b, svid, to.Collector != "")
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	p.spoolDir, p.spool = dir, spool
	p.Plane, err = dataplane.New(dataplane.Config{
		Bundle: b, Workload: w, Source: src.Source, Spool: spool, Sinks: to, UsedTokens: filepath.Join(o.State, usedTokens),
		Tracer: tracer, Unsafe: unsafeFlags(o), Log: o.Log,
		Say:  func(text string) { o.say("%s", text) },
		Warn: func(text string) { fmt.Fprintln(o.Stderr, "attache:", text) },
	})
	return p, err
}

func unsafeFlags(o *Options) []string {
	if o.UnsafeSameUser {
		return []string{"unsafe-same-user"}
	}
	return nil
}

// open starts to serve the doors. attestor must be ready to answer.
func (p *plane) open(ctx context.Context, d *doors, attestor identity.Attestor) error {
	p.Open(ctx, attestor, d.addrs())
	p.proxyURL = "http://" + d.proxy.Addr().String()
	p.ServeProxy(d.proxy)
	if d.aws != nil {
		p.ServeAWS(d.aws)
	}
	for _, b := range d.bases {
		v, err := p.ServeBaseURL(b.ln, b.BaseURL)
		if err != nil {
			return err
		}
		p.baseURLs = append(p.baseURLs, v)
	}
	return nil
}

// watch reloads the documents until ctx ends.
func (p *plane) watch(ctx context.Context) {
	w := api.Watcher{Dir: p.o.Config, Log: p.o.Log, Apply: p.apply, Rejected: p.Rejected}
	if err := w.Run(ctx); err != nil {
		p.o.Log.Error("configuration is not watched any more", "cause", err)
		p.o.say("edits of the configuration are not seen any more: %v", err)
	}
}

// awsRegion is AWS_REGION and AWS_DEFAULT_REGION for SDKs that would find none
// in parent: those of the first aws provider.
func awsRegion(b *api.Bundle, parent []string) []string {
	for _, kv := range parent {
		if name, v, _ := strings.Cut(kv, "="); v != "" && (name == "AWS_REGION" || name == "AWS_DEFAULT_REGION") {
			return nil
		}
	}
	for i := range b.Providers {
		if a := b.Providers[i].Spec.AWS; a != nil && a.Region != "" {
			return []string{"AWS_REGION=" + a.Region, "AWS_DEFAULT_REGION=" + a.Region}
		}
	}
	return nil
}
