package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/internal/reads"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/storeurl"
)

// importEvery is how often spools are looked at for new lines.
const importEvery = time.Second

func auditUI(g *global, pl *places) *cobra.Command {
	var port int
	var url storeurl.Flag
	c := &cobra.Command{
		Use: "ui", Short: "Review records in a browser", Args: cobra.NoArgs,
		Long:    "Serve the review page on 127.0.0.1 and print a link that works once. The records of\nthis machine's runs are imported into a store of the state folder as they are written.\nPolicies for explanations and patches come from --config or $ATTACHE_CONFIG.",
		Example: "  attache audit ui\n  attache audit ui --config examples/quickstart",
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Getenv(reads.Env) != "" {
				return failure{fmt.Errorf("in a pod of the control plane ($%s) who looks is recorded there, which this page does not do: use the control plane's own, or attache audit search", reads.Env), 2}
			}
			if url != "" && pl.dir != "" {
				return failure{errors.New("--store and --dir are two places; name one"), 2}
			}
			ctx, stop := interruptible(c)
			defer stop()
			return serveUI(ctx, c, g, pl, string(url), port)
		},
	}
	c.Flags().IntVar(&port, "port", 0, "port of 127.0.0.1 (default any that is free)")
	c.Flags().Var(&url, "store", "read a record store in place of this machine's spools: "+storeurl.Forms)
	return unused(c, "output")
}

func serveUI(ctx context.Context, c *cobra.Command, g *global, pl *places, url string, port int) (err error) {
	log, err := g.logger(c.ErrOrStderr())
	if err != nil {
		return err
	}
	state, err := g.stateDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(state, "review")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the review page: %w", err)
	}
	imports := url == ""
	if imports {
		url = "sqlite:" + filepath.Join(dir, "records.db")
	}
	// Who looks at records is recorded, in a spool like any other. Two pages of
	// one state folder at the same time would write into one another's.
	spool, err := audit.Open(audit.Options{Dir: filepath.Join(state, "audit", "review")})
	if errors.Is(err, audit.ErrInUse) {
		return fmt.Errorf("another attache audit ui of %s is open: %w", state, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	db, err := store.Open(ctx, url, store.Options{Logger: log, ReadOnly: !imports})
	if imports && errors.Is(err, store.ErrOlder) {
		if err := setAside(filepath.Join(dir, "records.db"), c.ErrOrStderr()); err != nil {
			return err
		}
		db, err = store.Open(ctx, url, store.Options{Logger: log})
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return fmt.Errorf("listen: %w; choose another --port", err)
	}
	defer ln.Close()
	link := ui.NewLink(ln.Addr().(*net.TCPAddr).Port, userName(), time.Now())
	conf := ui.Config{
		Store: db, Link: link, Hosts: link.Hosts(), Log: log, Location: time.Local,
		Record: func(_ context.Context, r *audit.Record) error { return spool.Write(r) },
		Revoke: g.revokeOrder, Policies: g.reviewPolicies(pl),
	}
	page, err := ui.New(conf)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	if imports {
		if err := importSpools(ctx, c, pl, db); err != nil {
			return err
		}
		go func() {
			defer close(done)
			t := time.NewTicker(importEvery)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
				if err := importSpools(ctx, c, pl, db); err != nil && ctx.Err() == nil {
					log.WarnContext(ctx, "cannot import records", "error", err)
				}
			}
		}()
	} else {
		close(done)
	}
	defer func() { <-done }()
	stop := page.Sweep(ctx)
	defer stop()
	srv := &http.Server{Handler: page, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	fmt.Fprintf(c.OutOrStdout(), "Open this once, in your browser; Ctrl-C ends the page.\n\n  %s\n\n", link.URL())
	return serveUntil(ctx, srv, ln)
}

// setAside renames the page's own store, which is made anew of the spools. What
// it has of spools that are gone the program that wrote it can still read.
func setAside(file string, told io.Writer) error {
	to := file + ".v1"
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("the review page's store is of an older version, and %s is there already: move one of them away", to)
	}
	for _, end := range []string{"-wal", "-shm", ""} { // the store last: broken off, this is done again
		if err := os.Rename(file+end, to+end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set the older store of the review page aside: %w", err)
		}
	}
	fmt.Fprintf(told, "attache: the review page's store was written by an older version: it is now %s, and a new one is made of the records of this machine's runs\n", to)
	return nil
}

// serveUntil serves until ctx ends, and lets answers that were begun finish.
func serveUntil(ctx context.Context, srv *http.Server, ln net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the review page: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return srv.Close()
	}
	return nil
}

func userName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "the user of this machine"
}

// importSpools takes what is new. A folder without spools is no mistake: runs
// may begin while the page is open.
func importSpools(ctx context.Context, c *cobra.Command, pl *places, db *store.DB) error {
	dirs, err := pl.spools()
	if err != nil {
		return err
	}
	for _, d := range dirs {
		n, err := db.ImportSpool(ctx, d)
		if errors.Is(err, os.ErrNotExist) {
			continue // a run has just begun, or its folder was taken away
		}
		if err != nil {
			return fmt.Errorf("import %s: %w", d, err)
		}
		if n.Damaged > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "attache: %d damaged lines in %s were left out; attache audit verify names them\n", n.Damaged, d)
		}
	}
	return nil
}

// revokeOrder does what attache revoke does, for the review page.
func (g *global) revokeOrder(ctx context.Context, o ui.Order) (string, error) {
	q := run.Revocation{Handle: o.Handle, Task: o.Task}
	runs, err := g.someRuns("")
	if err != nil {
		return "", err
	}
	all, err := revokeIn(ctx, runs, q)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		if q.Handle != "" {
			return "", errors.New("no live credential has this handle: it has ended, or its run has")
		}
		return "The task is closed; no credential of it was alive.", nil
	}
	var l []string
	for _, d := range all {
		l = append(l, fmt.Sprintf("%s (%s): %s", d.Handle, d.Provider, d.Result))
	}
	return strings.Join(l, "; "), nil
}

// revokeIn asks every run.
func revokeIn(ctx context.Context, runs []run.Info, q run.Revocation) ([]run.Revoked, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	all := []run.Revoked{}
	for _, r := range runs {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://attache/v1/revoke", bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		var done []run.Revoked
		resp, err := r.Client().Do(req)
		if err := answer(resp, err, &done); err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}
