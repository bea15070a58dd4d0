// Command k8s proves Attaché in a real Kubernetes: `make e2e`.
//
// It starts a node from nothing (test/cluster/node), installs the chart,
// labels namespaces, and runs unchanged agents as Deployments, Jobs and so on
// against real servers that verify what they are sent. Each case is a
// function of cases.go; the last line is "N passed, N failed". Logs of a run
// that failed stay in .cache/e2e/<run>/.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/attache-dev/attache/test/cluster/node"
)

func main() {
	o, err := options()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if node.Sandboxed(o.dir, o.prepare, o.after) {
		os.Exit(inside(o))
	}
}

// runOptions are the flags and the folders of a run.
type runOptions struct {
	root string // of the project
	bin  string // programs of the cluster
	dir  string // of this run
	only string
	keep bool
	list bool
	long bool
	cli  string // folder of attache, attache-sidecar, attache-control
}

// dirVariable carries the folder into the sandbox.
const dirVariable = "ATTACHE_E2E_DIR"

func options() (runOptions, error) {
	var o runOptions
	flag.StringVar(&o.only, "only", "", "run the cases whose name matches this regular expression")
	flag.BoolVar(&o.keep, "keep", false, "when done, wait for Ctrl-C with the cluster running, and keep the logs")
	flag.BoolVar(&o.long, "long", false, "run the cases that wait for minutes, too")
	flag.BoolVar(&o.list, "list", false, "print the cases and end")
	flag.StringVar(&o.cli, "bin", "bin", "folder of the project's programs")
	flag.Parse()
	if o.list {
		for _, c := range cases() {
			fmt.Printf("%-28s %s\n", c.name, c.what)
		}
		os.Exit(0)
	}
	var err error
	if o.root, err = os.Getwd(); err != nil {
		return o, err
	}
	if _, err := os.Stat(filepath.Join(o.root, "test", "k8s")); err != nil {
		return o, errors.New("run it from the root of the project: go run ./test/k8s")
	}
	o.bin = filepath.Join(o.root, ".cache", "bin")
	if o.cli, err = filepath.Abs(o.cli); err != nil {
		return o, err
	}
	o.dir = os.Getenv(dirVariable)
	if o.dir == "" {
		o.dir = filepath.Join(o.root, ".cache", "e2e", time.Now().UTC().Format("0102-150405"))
		err = errors.Join(os.Setenv(dirVariable, o.dir), os.MkdirAll(o.dir, 0o755))
	}
	return o, err
}

func inside(o runOptions) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{runOptions: o, started: time.Now()}
	err := r.bringUp(ctx)
	if err == nil {
		err = r.runCases(ctx)
	}
	if err != nil {
		fmt.Println("FAIL ", err)
		r.failed++
	}
	failed := r.failed > 0 || r.passed == 0
	if failed {
		r.collect()
	}
	if r.node != nil {
		r.memory()
	}
	fmt.Printf("%d passed, %d failed, in %.1f min\n", r.passed, r.failed, time.Since(r.started).Minutes())
	if o.keep {
		fmt.Printf("the cluster runs until Ctrl-C; in another shell:\n  nsenter -t %d -a env KUBECONFIG=%s %s get pods -A\n", os.Getpid(), r.kubeconfig(), filepath.Join(o.bin, "kubectl"))
		<-ctx.Done()
	}
	if failed {
		fmt.Println("logs are in", o.dir)
		return 1
	}
	return 0
}
