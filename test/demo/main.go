// Command demo does Attaché's main job before your eyes: unchanged agents call
// three protected APIs through it, are refused what they may not, and what
// they could read is searched for secrets. It starts every server that it needs
// and ends with "N passed, N failed", 0 only if nothing failed.
//
//	demo -attache bin/attache          the demo
//	demo -attache bin/attache -serve   keeps the servers of examples/quickstart
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// limit of the whole demo; it takes a few seconds.
const limit = 3 * time.Minute

func main() {
	bin := flag.String("attache", "bin/attache", "the attache program")
	keep := flag.Bool("serve", false, "start the servers of examples/quickstart and wait")
	records := flag.String("records", "", "copy the records and documents of the demo to this new folder, for other suites")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *keep {
		err = serve(ctx, *bin)
	} else {
		err = show(ctx, *bin, *records)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one performance.
type demo struct {
	*printer
	bin     string
	dir     string // of everything
	root    string // of the repository
	w       *world
	runs    int
	stdout  []byte // of every child
	results map[string]result
}

// result is a RESULT line of probe.py.
type result struct {
	Name   string `json:"name"`
	Status int    `json:"status"`
	Text   string `json:"text"`
	Code   string `json:"code"`
	Record string `json:"record"`
}

func show(ctx context.Context, bin, records string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	started := time.Now()
	d := &demo{printer: newPrinter(os.Stdout), results: map[string]result{}}
	var err error
	if d.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if d.root, err = repository(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "attache-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	if err := d.perform(ctx); err != nil {
		return err
	}
	if records != "" {
		if err := d.keep(records); err != nil {
			return err
		}
	}
	d.line("\n%s in %.1f s", d.paint(bold, "The demo ends"), time.Since(started).Seconds())
	d.line("%d passed, %d failed", d.passed, d.failed)
	if d.failed > 0 {
		return errors.New("the checks marked FAIL do not hold")
	}
	if records != "" {
		return os.WriteFile(filepath.Join(records, ended), []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o644)
	}
	return nil
}

// ended is the file beside kept records that says when the demo ended well; the
// suite ui reads it.
const ended = "ended"

// keep copies records, documents and the certificates that those name to a new
// folder. No key is among them.
func (d *demo) keep(to string) error {
	if err := os.CopyFS(filepath.Join(to, "state", "audit"), os.DirFS(d.path("state", "audit"))); err != nil {
		return err
	}
	world := filepath.Join(to, "world")
	for _, dir := range []string{world, filepath.Join(to, "config")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	certificates, err := filepath.Glob(filepath.Join(d.w.dir, "*.pem"))
	if err != nil {
		return err
	}
	documents, err := filepath.Glob(d.path("config", "*.yaml"))
	if err != nil {
		return err
	}
	for _, from := range append(certificates, documents...) {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		dir := filepath.Join(to, "config")
		if filepath.Ext(from) == ".pem" {
			dir = world
		}
		b = bytes.ReplaceAll(b, []byte(d.w.dir), []byte(world))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// perform runs the acts in order.
func (d *demo) perform(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	defer d.w.stop()
	for i, act := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"The APIs refuse calls made directly", d.directly},
		{"Unchanged agents call them through Attaché", d.agents},
		{"A curious agent tries what it must not", d.curious},
		{"Each call has one record", d.records},
		{"Nothing that the agents could read holds a secret", d.search},
		{"After the runs the credentials are dead", d.after},
	} {
		d.heading(i+2, act.title)
		if err := act.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// repository finds the folder of go.mod.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if up := filepath.Dir(dir); up != dir {
			dir = up
			continue
		}
		return "", errors.New("start it inside the repository")
	}
}
