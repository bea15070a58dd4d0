// Package run is attache run: it wires the rooms into one data path, starts the
// agent in its sandbox beside it, and leaves nothing behind when it ends.
package run

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/sparselog"
)

// Options of [Run]. Command is required.
type Options struct {
	Config  string   // folder of documents; default $ATTACHE_CONFIG
	State   string   // folder of spool and sockets; default [StateDir]
	Command []string // the agent

	Name  string // workload name; default: the configuration's, then the command's
	Owner string // accountable owner; default: the configuration's

	Task           string        // purpose of the launcher's task; empty: none
	TaskTTL        time.Duration // 0: the configured maximum
	HumanTokenFile string        // read before the child starts, invisible to it

	Listen         string   // of the proxy; default 127.0.0.1:0
	Keep           []string // variables passed on although they look secret
	NoProxy        []string
	User           *sandbox.User
	OnlyProxy      bool
	Isolate        string // a network of its own for the agent; empty: none, see IsolateAlways
	UnsafeSameUser bool
	Quiet          bool // no start-up lines on Stderr

	Stdin, Stdout, Stderr *os.File
	Version               string
	Log                   *slog.Logger
	LogFile               string // where Log goes, if that is a file: invisible to the child
}

// ErrUsage is matched by mistakes of whoever called: nothing was started.
var ErrUsage = errors.New("usage")

// StateDir is where Attaché keeps its spool and sockets: $ATTACHE_STATE, else
// $XDG_STATE_HOME/attache, else ~/.local/state/attache.
func StateDir() (string, error) {
	if d := os.Getenv("ATTACHE_STATE"); d != "" {
		return filepath.Abs(d)
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "attache"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the state folder: %w; set ATTACHE_STATE or --state", err)
	}
	return filepath.Join(home, ".local", "state", "attache"), nil
}

func (o Options) withDefaults() (Options, error) {
	if len(o.Command) == 0 {
		return o, fmt.Errorf("%w: no command; write it after --, as in: attache run --config DIR -- python3 agent.py", ErrUsage)
	}
	if o.Config == "" {
		o.Config = os.Getenv("ATTACHE_CONFIG")
	}
	if o.Config == "" {
		return o, fmt.Errorf("%w: no configuration; give its folder with --config DIR or $ATTACHE_CONFIG", ErrUsage)
	}
	var err error
	if o.State == "" {
		if o.State, err = StateDir(); err != nil {
			return o, err
		}
	}
	for _, p := range []*string{&o.State, &o.Config, &o.HumanTokenFile, &o.LogFile} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	if o.HumanTokenFile != "" && o.Task == "" {
		return o, fmt.Errorf("%w: --human-token-file needs --task PURPOSE: a human's token opens a task", ErrUsage)
	}
	if o.Isolate != "" && o.Isolate != IsolateAlways && o.Isolate != IsolateAuto {
		return o, fmt.Errorf("%w: --isolate is %q; must be %s or %s", ErrUsage, o.Isolate, IsolateAlways, IsolateAuto)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Log = slog.New(sparselog.New(o.Log.Handler()))
	for _, f := range []struct {
		p **os.File
		v *os.File
	}{{&o.Stdin, os.Stdin}, {&o.Stdout, os.Stdout}, {&o.Stderr, os.Stderr}} {
		if *f.p == nil {
			*f.p = f.v
		}
	}
	return o, nil
}

// say tells the user about the start, unless that is not wanted.
func (o *Options) say(format string, args ...any) {
	if !o.Quiet {
		fmt.Fprintf(o.Stderr, "attache: "+format+"\n", args...)
	}
}

func newRunID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// load reads the documents and says what to do when there are none.
func load(dir string) (*api.Bundle, error) {
	b, err := api.Load(dir)
	if errors.Is(err, api.ErrNoDocuments) {
		return nil, fmt.Errorf("%w; examples/quickstart is a folder to start from", err)
	}
	return b, err
}
