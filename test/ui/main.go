// Command ui drives a real browser over the review page: the laptop's, over
// records that the demo makes and over the store that make e2e left, and the
// cluster's, behind a real OpenID provider. It ends with "N passed, N failed".
//
//	ui -attache bin/attache                   every journey
//	ui -attache bin/attache -short            a few, without those of make e2e
//	ui -attache bin/attache -shots docs/img   also take the screenshots of the docs
//	ui -attache bin/attache -without-e2e      where no Kubernetes node can run
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const limit = 10 * time.Minute

type options struct {
	bin, shots, e2e, demo string
	short, without        bool
}

func main() {
	var o options
	flag.StringVar(&o.bin, "attache", "bin/attache", "the attache program")
	flag.StringVar(&o.shots, "shots", "", "folder for the screenshots of the docs")
	flag.StringVar(&o.demo, "demo", "", "folder with the records that make demo left; they are taken if they are of the last hour (default: the demo runs)")
	flag.StringVar(&o.e2e, "e2e", filepath.Join(".cache", "e2e", "records"), "folder with the records.db that make e2e left")
	flag.BoolVar(&o.without, "without-e2e", false, "leave out the journeys over the records of make e2e")
	flag.BoolVar(&o.short, "short", false, "a few journeys only")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "ui:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "attache-ui-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config, err := demo(ctx, o, dir)
	if err != nil {
		return err
	}
	if err := seed(filepath.Join(dir, "state", "audit", "invoices")); err != nil {
		return err
	}
	laptop, end, err := startLaptop(ctx, o.bin, "--state", filepath.Join(dir, "state"), "--config", config)
	if err != nil {
		return err
	}
	defer end()
	e2e, end, err := startE2E(ctx, o, dir)
	if err != nil {
		return err
	}
	defer end()
	cluster, end, err := startCluster(ctx, dir)
	if err != nil {
		return err
	}
	defer end()
	return browse(ctx, o, map[string]any{"laptop": laptop, "e2e": e2e, "cluster": cluster, "short": o.short, "shots": o.shots, "spool": filepath.Join(dir, "state", "audit", "invoices")})
}

// freshDemo is how old records of the demo may be: those of the same make test.
const freshDemo = time.Hour

// endedWell reports whether a demo that left its records in dir ended well, and
// lately: one that was broken off or failed left some of them, too.
func endedWell(dir string, now time.Time) bool {
	text, err := os.ReadFile(filepath.Join(dir, "ended")) // written by test/demo
	if err != nil {
		return false
	}
	at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(text)))
	return err == nil && !now.Before(at) && now.Sub(at) < freshDemo
}

// demo puts the records that the journeys begin from into dir, and returns the
// folder of the documents that they were made by.
func demo(ctx context.Context, o options, dir string) (config string, err error) {
	if o.demo != "" && endedWell(o.demo, time.Now()) {
		return filepath.Join(o.demo, "config"), os.CopyFS(filepath.Join(dir, "state"), os.DirFS(filepath.Join(o.demo, "state")))
	}
	c := exec.CommandContext(ctx, "go", "run", "./test/demo", "-attache", o.bin, "-records", dir)
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("the demo: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return filepath.Join(dir, "config"), nil
}

var printed = regexp.MustCompile(`http://127\.0\.0\.1:\d+/login/finish\?token=\S+`)

// startE2E shows a copy of the store that make e2e left; its link is empty where
// nobody wants to see that, or there is none.
func startE2E(ctx context.Context, o options, dir string) (link string, end func(), err error) {
	none := func() {}
	if o.short || o.without {
		return "", none, nil
	}
	if _, err := os.Stat(filepath.Join(o.e2e, "records.db")); errors.Is(err, os.ErrNotExist) {
		return "", none, nil
	}
	state := filepath.Join(dir, "e2e")
	if err := os.CopyFS(state, os.DirFS(o.e2e)); err != nil {
		return "", nil, err
	}
	return startLaptop(ctx, o.bin, "--state", state, "--store", "sqlite:"+filepath.Join(state, "records.db"))
}

// startLaptop runs attache audit ui, and returns the link that it prints.
func startLaptop(ctx context.Context, bin string, args ...string) (link string, end func(), err error) {
	c := exec.CommandContext(ctx, bin, append([]string{"audit", "ui"}, args...)...)
	c.Env = append(os.Environ(), "TZ=UTC")
	c.Stderr = os.Stderr
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	out, err := c.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := c.Start(); err != nil {
		return "", nil, fmt.Errorf("start attache audit ui: %w", err)
	}
	end = func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	}
	s := bufio.NewScanner(out)
	for s.Scan() {
		if link = printed.FindString(s.Text()); link != "" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return link, end, nil
		}
	}
	end()
	return "", nil, errors.New("attache audit ui printed no link")
}

// browse runs the journeys, prints one line for each, and counts.
func browse(ctx context.Context, o options, conf map[string]any) error {
	b, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	modules, err := filepath.Abs(filepath.Join(".cache", "npm", "ui"))
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "node", "test/ui/journeys.mjs", string(b))
	c.Env = append(os.Environ(), "UI_MODULES="+modules+"/")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start the browser: %w", err)
	}
	passed, failed := 0, 0
	if conf["e2e"] == "" && !o.short && !o.without {
		fmt.Printf("FAIL the records of make e2e: none in %s; run make e2e before (root), or make ui UIFLAGS=-without-e2e\n", o.e2e)
		failed++
	}
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fmt.Println(s.Text())
		switch word, _, _ := strings.Cut(s.Text(), " "); word {
		case "ok":
			passed++
		case "FAIL":
			failed++
		}
	}
	if err = c.Wait(); err != nil {
		failed++ // what it had no time for
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if err != nil {
		return fmt.Errorf("the browser: %w", err)
	}
	if failed > 0 || passed == 0 {
		return errors.New("a journey failed")
	}
	return nil
}
