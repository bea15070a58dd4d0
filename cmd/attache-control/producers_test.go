package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/reconcile"
	"github.com/attache-dev/attache/test/cluster"
)

// The collector finds pods and their names in what is watched anyway.
func TestPodsThere(t *testing.T) {
	e := cluster.API(t)
	ns := e.Namespace(t, nil)
	run := func(name string) (uid string) {
		t.Helper()
		out, err := e.Kubectl(t.Context(), "{apiVersion: v1, kind: Pod, metadata: {name: "+name+", namespace: "+ns+"}, spec: {containers: [{name: a, image: a}]}}",
			"create", "-f", "-", "-o", "jsonpath={.metadata.uid}")
		if err != nil {
			t.Fatal(out, err)
		}
		return strings.TrimSpace(out)
	}
	first := run("agent-0")
	c, err := cache.New(e.Config, cache.Options{DefaultTransform: func(o any) (any, error) { return reconcile.Strip(o) }})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := watchPods(t.Context(), c, ns)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is known yet, and nobody waits.
	if n := pods.name(t.Context(), ns, first); n != "" {
		t.Errorf("before the cache runs: %q", n)
	}
	if l, err := pods.list(t.Context()); err == nil {
		t.Errorf("before the cache runs: %v", l)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = c.Start(ctx) })
	defer running.Wait()
	defer stop()
	second := run("agent-1")
	eventually(t, "the pods", func() error {
		if pods.name(ctx, ns, first) != "agent-0" || pods.name(ctx, ns, second) != "agent-1" {
			return errors.New("not seen")
		}
		return nil
	})
	for what, of := range map[string][2]string{"another namespace's": {"default", first}, "nobody's": {ns, "00000000-0000-4000-8000-000000000000"}, "no uid": {ns, ""}} {
		if n := pods.name(ctx, of[0], of[1]); n != "" {
			t.Errorf("%s: %q", what, n)
		}
	}
	l, err := pods.list(ctx)
	if err != nil || !l[first] || !l[second] || !l[collector.ControlPrefix+"agent-0"] {
		t.Errorf("there are %v, %v", l, err)
	}
}
