package run

import (
	"context"
	"errors"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/dataplane"
)

// deliverLeft delivers what spools of earlier runs hold that no run writes now:
// otherwise their records would wait until as many runs as then are alive
// again. It returns when all is delivered or ctx ends.
func (p *plane) deliverLeft(ctx context.Context, open func() (dataplane.Sinks, error)) {
	c := p.first.Config.Spec.Audit
	if len(c.Sinks) == 0 || c.Dir != "" {
		return
	}
	dirs, err := Spools(p.o.State)
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if dir == p.spoolDir || ctx.Err() != nil {
			continue
		}
		if err := p.deliverSpool(ctx, dir, open); err != nil && !errors.Is(err, audit.ErrInUse) && ctx.Err() == nil {
			p.o.Log.Warn("records of an earlier run wait", "spool", dir, "cause", err)
		}
	}
}

func (p *plane) deliverSpool(ctx context.Context, dir string, open func() (dataplane.Sinks, error)) (err error) {
	to, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if !ship.Behind(dir, to.List) {
		return nil
	}
	opts := audit.FromConfig(p.first.Config.Spec.Audit)
	opts.Dir, opts.Logger, opts.Version, opts.Kind = dir, p.o.Log, p.o.Version, audit.KindRun
	s, err := audit.Open(opts)
	if err != nil {
		return err
	}
	g, err := ship.Start(s, to.List, ship.Options{Log: p.o.Log})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return errors.Join(s.Close(), g.Close(ctx))
}
