package main

import "context"

// testCase is one thing that must hold in a cluster.
type testCase struct {
	name, what string
	run        func(ctx context.Context, r *run) error
}

func cases() []testCase {
	return []testCase{
		{"dns", "a pod resolves", func(ctx context.Context, r *run) error { _, err := r.node.Kubectl(ctx, "", "get", "pods", "-A", "-o", "wide"); return err }},
	}
}
