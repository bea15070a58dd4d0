package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/test/cluster/node"
)

// run is the state of one run inside the sandbox.
type run struct {
	runOptions
	node           *node.Node
	kube           *kubernetes.Clientset
	world          *world
	installed      settings // of the release now
	started        time.Time
	mu             sync.Mutex // guards what follows
	passed, failed int
}

func (r *run) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(r.started).Seconds(), fmt.Sprintf(format, args...))
}

const (
	// caseTimeout bounds one case.
	caseTimeout = 3 * time.Minute
	slowTimeout = 25 * time.Minute
	// atOnce is how many cases run together: most of their time they wait.
	atOnce = 4
)

func (r *run) runCases(ctx context.Context) error {
	match, err := regexp.Compile(r.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	var together sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, c := range cases() {
		if !match.MatchString(c.name) || c.slow && !r.long {
			continue
		}
		if !c.together {
			together.Wait()
			r.runCase(ctx, c)
			continue
		}
		slots <- struct{}{}
		together.Go(func() {
			r.runCase(ctx, c)
			<-slots
		})
	}
	together.Wait()
	return ctx.Err()
}

func (r *run) runCase(ctx context.Context, c testCase) {
	timeout := caseTimeout
	if c.slow {
		timeout = slowTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begin := time.Now()
	err := c.run(ctx, r)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed++
		r.say("FAIL  %s (%.1f s): %v", c.name, time.Since(begin).Seconds(), err)
		return
	}
	r.passed++
	r.say("ok    %s (%.1f s): %s", c.name, time.Since(begin).Seconds(), c.what)
}

func (r *run) kubeconfig() string {
	if r.node == nil {
		return ""
	}
	return r.node.Kubeconfig
}

// collect writes what a reader of a failed run asks for first.
func (r *run) collect() {
	if r.node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for name, args := range map[string]string{
		"pods.txt":     "get pods -A -o wide",
		"describe.txt": "describe pods -A",
		"events.txt":   "get events -A --sort-by=.lastTimestamp",
		"objects.yaml": "get deployments,services,mutatingwebhookconfigurations,validatingadmissionpolicies -A -o yaml",
		"attache.yaml": "get credentialproviders,clustercredentialproviders,accesspolicies,clusteraccesspolicies,attacheconfigs -A -o yaml",
	} {
		out, err := r.node.Kubectl(ctx, "", strings.Fields(args)...)
		if err != nil {
			out += "\n" + err.Error()
		}
		_ = os.WriteFile(filepath.Join(r.dir, name), []byte(out), 0o644)
	}
}

// memory prints the resident memory of the cluster's own programs.
func (r *run) memory() {
	var parts []string
	total := 0
	for _, p := range r.node.Processes() {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
		if err != nil {
			continue
		}
		m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
		if m == nil {
			continue
		}
		kb, err := strconv.Atoi(string(m[1]))
		if err != nil {
			continue
		}
		total += kb
		parts = append(parts, fmt.Sprintf("%s %d", p.Name, kb>>10))
	}
	fmt.Printf("memory of the cluster: %d MiB (%s)\n", total>>10, strings.Join(parts, ", "))
}
