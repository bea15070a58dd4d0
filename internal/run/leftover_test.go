package run

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/dataplane"
)

// counting is a sink that counts lines.
type counting struct {
	mu sync.Mutex
	n  int
}

func (c *counting) Name() string { return "siem" }

func (c *counting) Send(_ context.Context, b ship.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(b.Lines)
	return nil
}

// TestDeliverLeft: the spools of runs that have ended are delivered by the next
// run, but for its own and those of runs that live.
func TestDeliverLeft(t *testing.T) {
	state := t.TempDir()
	spool := func(name string) *audit.Spool {
		s, err := audit.Open(audit.Options{Dir: filepath.Join(state, "audit", name)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	own, left, alive := spool("0"), spool("1"), spool("2")
	_ = alive
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	b := &api.Bundle{}
	b.Config.Spec.Audit.Sinks = []v1alpha1.AuditSink{{Type: api.SinkOTLP, Name: "siem"}}
	c := &counting{}
	p := &plane{o: &Options{State: state, Log: slog.New(slog.DiscardHandler)}, first: b, spoolDir: own.Dir()}
	open := func() (dataplane.Sinks, error) { return dataplane.Sinks{List: []ship.Sink{c}}, nil }
	p.deliverLeft(t.Context(), open)
	if c.n != 4 { // open and close of the run that left it, and of the delivery
		t.Errorf("%d lines came, want 4", c.n)
	}
	p.deliverLeft(t.Context(), open)
	if c.n != 4 {
		t.Errorf("%d lines came after another time, want 4", c.n)
	}
	if ship.Behind(left.Dir(), []ship.Sink{c}) || !ship.Behind(own.Dir(), []ship.Sink{c}) {
		t.Error("what is left is told wrongly")
	}
}
