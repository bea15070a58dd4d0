package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/reads"
)

// reading is what a command that reads records was asked.
type reading struct {
	p     *places
	f     audit.Filter
	terms string
	dirs  []string // empty: the store of p
	event reads.Read
}

// read begins a command that reads records: it reads the query, looks where the
// records are, and tells the control plane in whose pod it runs.
func (p *places) read(c *cobra.Command, args []string) (*reading, error) {
	f, err := filterOf(args)
	if err != nil {
		return nil, err
	}
	return p.reading(c, args, f)
}

// reading is read of what is no query.
func (p *places) reading(c *cobra.Command, args []string, f audit.Filter) (*reading, error) {
	r := &reading{p: p, f: f, terms: strings.Join(args, " ")}
	if p.store != "" && p.dir != "" {
		return nil, failure{errors.New("--store and --dir are two places; name one"), 2}
	}
	if p.store == "" {
		var err error
		if r.dirs, err = p.spools(); err != nil {
			return nil, err
		}
	}
	r.event = reads.Read{Event: audit.EventAuditQuery, Page: c.CommandPath(), Query: r.terms}
	if c.Name() == "export" {
		return r, nil // tells what it gives, by itself
	}
	return r, r.tell(c.Context())
}

// tell says in a pod of the control plane what is read. What cannot be recorded
// there is not shown.
func (r *reading) tell(ctx context.Context) error {
	socket := os.Getenv(reads.Env)
	if socket == "" {
		return nil
	}
	if err := reads.Tell(ctx, socket, r.event); err != nil {
		return unshown(err)
	}
	return nil
}

func unshown(err error) error {
	return failure{fmt.Errorf("nothing is shown, since it cannot be recorded that you look ($%s): %w; the review page records it too", reads.Env, err), 1}
}

// withStore runs fn with the store that --store names, opened to read only.
func (p *places) withStore(ctx context.Context, fn func(*store.DB) error) error {
	d, err := store.Open(ctx, string(p.store), store.Options{ReadOnly: true})
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; attache audit import --store %s makes it of this machine's records", err, storeName(string(p.store)))
		}
		return failure{err, 2}
	}
	return errors.Join(fn(d), d.Close())
}

// filterOf reads the terms of a query, and points at what is wrong.
func filterOf(args []string) (audit.Filter, error) {
	f, err := audit.ParseFilter(strings.Join(args, " "), time.Now())
	if bad := (*audit.QueryError)(nil); errors.As(err, &bad) {
		err = fmt.Errorf("%w%s", err, pointAt(bad))
	}
	if err != nil {
		return f, failure{err, 2}
	}
	return f, nil
}

// pointAt shows the place of a mistake below the query, as much of it as a line
// has room for.
func pointAt(e *audit.QueryError) string {
	const before, behind = 50, 25 // bytes
	from, at := 0, min(max(e.Offset, 0), len(e.Query))
	if at > before {
		for from = at - before; from < at && !utf8.RuneStart(e.Query[from]); {
			from++
		}
	}
	to := min(len(e.Query), at+behind)
	for to < len(e.Query) && !utf8.RuneStart(e.Query[to]) {
		to++
	}
	lead := audit.Safe(e.Query[from:at])
	return "\n  " + lead + audit.Safe(e.Query[at:to]) + "\n  " + strings.Repeat(" ", utf8.RuneCountInString(lead)) + "^"
}

// nothing tells a person that no record matches, and where none was found.
func (r *reading) nothing(g *global, c *cobra.Command) error {
	if g.json() {
		return nil
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "attache: no records match%s; looked at %s, %s\n", aside(r.terms), r.place(), r.period())
	return err
}

func aside(terms string) string {
	if terms == "" {
		return ""
	}
	return " " + audit.Safe(terms)
}

// place says where records are looked for, without a password.
func (r *reading) place() string {
	if r.p.store != "" {
		return storeName(string(r.p.store))
	}
	switch len(r.dirs) {
	case 0:
		state, err := r.p.g.stateDir()
		if err != nil {
			return "no spool"
		}
		return "the spools below " + filepath.Join(state, "audit") + ", of which there are none yet"
	case 1:
		return "the spool " + r.dirs[0]
	}
	return fmt.Sprintf("%d spools below %s", len(r.dirs), filepath.Dir(r.dirs[0]))
}

// storeName is a store's URL without a password.
func storeName(at string) string {
	if strings.HasPrefix(at, "sqlite:") {
		return at
	}
	u, err := url.Parse(at)
	if err != nil {
		return "the store"
	}
	u.RawQuery = ""
	return u.Redacted()
}

func (r *reading) period() string {
	since, until := r.f.Range()
	at := func(t time.Time) string { return t.Local().Format(time.DateTime) }
	switch {
	case since.IsZero() && until.IsZero():
		return "at all times"
	case until.IsZero():
		return "since " + at(since)
	case since.IsZero():
		return "until " + at(until)
	}
	return "from " + at(since) + " until " + at(until)
}

// eachRow gives every record of a store that q matches to fn.
func eachRow(ctx context.Context, d *store.DB, q store.Query, fn func(*audit.Record) error, looked func(until time.Time) error) error {
	for page, err := range d.Pages(ctx, q) {
		if err != nil {
			return err
		}
		for i := range page.Rows {
			if err := fn(&page.Rows[i].Record); err != nil {
				return err
			}
		}
		if page.Partial && page.Next != "" && looked != nil {
			if err := looked(page.Until); err != nil {
				return err
			}
		}
	}
	return nil
}

// each gives every record that was asked for to fn: of the store, oldest first,
// or of one spool after the other. Damage of spools is an error behind what could
// be read.
func (r *reading) each(ctx context.Context, fn func(*audit.Record) error) error {
	if r.p.store != "" {
		return r.p.withStore(ctx, func(d *store.DB) error {
			return eachRow(ctx, d, store.Query{Filter: r.f, Oldest: true}, fn, nil)
		})
	}
	return r.inSpools(ctx, fn)
}

func (r *reading) inSpools(ctx context.Context, fn func(*audit.Record) error) error {
	var damage []error
	for _, d := range r.dirs {
		if err := eachInSpool(ctx, d, r.f, fn); errors.Is(err, audit.ErrDamaged) {
			damage = append(damage, fmt.Errorf("%s: %w", d, err))
		} else if err != nil {
			return err
		}
	}
	return errors.Join(damage...)
}

// eachInSpool gives every record of a spool that f matches to fn.
func eachInSpool(ctx context.Context, dir string, f audit.Filter, fn func(*audit.Record) error) error {
	var failed error
	err := audit.Read(dir, f, func(r audit.Record) bool {
		if failed = ctx.Err(); failed == nil {
			failed = fn(&r)
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// recordHere writes down on this machine that records were exported, as the
// review page does.
func recordHere(ctx context.Context, g *global, r reads.Read) error {
	state, err := g.stateDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(state, "audit", "commands")
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		s, err := audit.Open(audit.Options{Dir: dir})
		if err == nil { // only as long as it takes: other commands write there too
			err = s.Write(&audit.Record{Type: audit.TypeEvent, ID: audit.NewID(), Event: &audit.Event{Name: r.Event, Fields: r.Fields(userName())}})
			return errors.Join(err, s.Close())
		}
		if !errors.Is(err, audit.ErrInUse) {
			return err
		}
		select {
		case <-wait.Done():
			return err
		case <-again.C:
		}
	}
}
