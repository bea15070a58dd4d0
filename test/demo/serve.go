package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// tokenEvery is how often the human signs in again: a token opens one task.
const tokenEvery = 2 * time.Second

// serve keeps the servers of examples/quickstart until ctx ends.
func serve(ctx context.Context, bin string) error {
	root, err := repository()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, ".cache", "quickstart")
	w, err := startWorld(ctx, dir, addresses{login: "127.0.0.1:28441", apis: "127.0.0.1:28443", issuer: "127.0.0.1:28445"})
	if err != nil {
		return err
	}
	defer w.stop()
	renew := func() error {
		t, err := w.humanToken(ctx)
		if err != nil {
			return err
		}
		if err := os.WriteFile(w.file("human.new"), []byte(t+"\n"), 0o600); err != nil {
			return err
		}
		return os.Rename(w.file("human.new"), w.file("human.jwt")) // nobody reads half of one
	}
	if err := renew(); err != nil {
		return err
	}
	fmt.Printf(`The servers of examples/quickstart are up; Ctrl-C ends them. In another terminal:

  %[1]s run --config examples/quickstart -- curl -sS https://%[2]s/v1/summary
  %[1]s run --config examples/quickstart --task "answer ticket 7" --human-token-file .cache/quickstart/human.jwt -- python3 examples/quickstart/agent.py
  %[1]s run --config examples/quickstart --task "answer ticket 7" --human-token-file .cache/quickstart/human.jwt -- node examples/quickstart/agent.mjs
  %[1]s audit search

`, bin, reportsHost)
	tick := time.NewTicker(tokenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := renew(); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
