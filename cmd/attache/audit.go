package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/storeurl"
)

// places says where the records are.
type places struct {
	g      *global
	dir    string        // one spool
	config string        // folder of documents, which may name one
	store  storeurl.Flag // of a record store; empty: spools are read
}

func auditCommand(g *global) *cobra.Command {
	pl := &places{g: g}
	c := &cobra.Command{
		Use: "audit", Short: "Read, export and verify records",
		Long: `Read the records of this machine's runs, or with --store those of a record store.

A query is terms that must all hold: owner:ana host:*.example.com verdict:deny status:4xx.
  key:a,b      one of them; * stands for any text, quotes keep spaces and commas
  -key:value   not that
  since:24h    also 7d, 2026-01-31, 2026-01-31T08:00:00Z; until: likewise
  word         some field has it
  type:all     also what only shows that a producer lives

Keys: ` + wrapped(audit.FilterKeys(), 6, 90),
		Example: "  attache audit search host:*.amazonaws.com verdict:deny since:24h\n  attache audit show rec_5f0c…\n  attache audit export owner:ana since:7d -o ana.csv\n  attache audit ui",
	}
	f := c.PersistentFlags()
	f.StringVar(&pl.dir, "dir", "", "one spool folder (default the configured audit.dir, else all of the state folder)")
	f.StringVarP(&pl.config, "config", "c", "", "folder of documents, whose audit.dir is read (default $ATTACHE_CONFIG)")
	f.Var(&pl.store, "store", storeHelp)
	c.AddCommand(auditTail(g, pl), auditSearch(g, pl), auditShow(g, pl), auditFacets(g, pl), auditExport(g, pl), auditImport(g, pl), auditVerify(g, pl), auditWitness(), auditUI(g, pl), unused(&cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of a record", Args: cobra.NoArgs, Example: "  attache audit schema > record.schema.json",
		RunE: func(c *cobra.Command, _ []string) error { _, err := c.OutOrStdout().Write(audit.Schema()); return err },
	}, "config", "dir", "store", "state", "log-level"))
	return c
}

// wrapped is words in lines of at most width, the first of which has begun.
func wrapped(words []string, begun, width int) string {
	var b strings.Builder
	for _, w := range words {
		if begun+1+len(w) > width {
			b.WriteString("\n")
			begun = -1
		} else if b.Len() > 0 {
			b.WriteString(" ")
		}
		b.WriteString(w)
		begun += 1 + len(w)
	}
	return b.String()
}

// spools lists the folders to read: --dir, else the audit.dir of the documents,
// else those of the state folder.
func (p *places) spools() ([]string, error) {
	if p.dir != "" {
		if fi, err := os.Stat(p.dir); err != nil || !fi.IsDir() { // a word mistyped is no folder without records
			return nil, failure{fmt.Errorf("--dir %s: is no folder with a spool", p.dir), 2}
		}
		return []string{p.dir}, nil
	}
	config := p.config
	if config == "" {
		config = os.Getenv("ATTACHE_CONFIG")
	}
	if config != "" {
		dir, err := run.ConfiguredSpool(config)
		if err != nil {
			return nil, failure{fmt.Errorf("find audit.dir: %w; or name the spool with --dir", err), 2}
		}
		if dir != "" {
			return []string{dir}, nil
		}
	}
	state, err := p.g.stateDir()
	if err != nil {
		return nil, err
	}
	return run.Spools(state)
}

func (g *global) printer(w io.Writer) *audit.Printer {
	return audit.NewPrinter(w, audit.PrinterOptions{JSON: g.json(), Color: audit.WantColor(w, os.Getenv), Location: time.Local})
}

func auditTail(g *global, pl *places) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "tail [QUERY]", Short: "Follow records as they finish", Example: "  attache audit tail verdict:deny\n  attache audit tail -n 0 -outcome:ok --output json | jq .request.host",
		Long: "Print the last records that match, and each one as it is finished, until Ctrl-C.\nWith --output json a record is a line.",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := pl.read(c, args)
			if err != nil {
				return err
			}
			if len(r.dirs) == 0 && pl.store == "" {
				return r.nothing(g, c)
			}
			ctx, stop := interruptible(c)
			defer stop()
			if pl.store != "" {
				return pl.withStore(ctx, func(d *store.DB) error {
					return tailStore(ctx, d, r.f, last, g.printer(c.OutOrStdout()))
				})
			}
			return tailAll(ctx, r.dirs, r.f, last, g.printer(c.OutOrStdout()))
		},
	}
	c.Flags().IntVarP(&last, "lines", "n", 10, "begin with this many past records")
	return unused(c, "log-level")
}

// tailAll follows several spools; one printer serves them all.
func tailAll(ctx context.Context, dirs []string, f audit.Filter, last int, p *audit.Printer) error {
	var mu sync.Mutex // guards p
	var wg sync.WaitGroup
	errs := make([]error, len(dirs))
	for i, d := range dirs {
		wg.Go(func() {
			errs[i] = audit.Tail(ctx, d, f, last, func(r audit.Record) bool {
				mu.Lock()
				defer mu.Unlock()
				return p.Print(r) == nil
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func auditSearch(g *global, pl *places) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "search [QUERY]", Short: "Find finished records", Example: "  attache audit search owner:ana host:*.example.com verdict:deny since:24h\n  attache audit search -outcome:ok 'path:/v1/invoices/*' --output json",
		Long: "Print the newest records that match, oldest first. With --output json a record is a line.\nAll of millions are for attache audit export.",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := pl.read(c, args)
			if err != nil {
				return err
			}
			if limit < 0 {
				return failure{fmt.Errorf("--lines is %d; must be 0 (all) or more", limit), 2}
			}
			p, found := g.printer(c.OutOrStdout()), 0
			print := func(x audit.Record) error {
				found++
				return p.Print(x)
			}
			if pl.store != "" {
				err = pl.withStore(c.Context(), func(d *store.DB) error { return searchStore(c, d, r.f, limit, print) })
			} else {
				err = r.searchSpools(c.Context(), limit, print)
			}
			if err == nil && found == 0 {
				err = r.nothing(g, c)
			}
			return err
		},
	}
	c.Flags().IntVarP(&limit, "lines", "n", 1000, "print at most the newest N; 0: all")
	return unused(c, "log-level")
}

// searchSpools prints the newest limit records (0: all), oldest first. Damage is
// an error behind what could be read.
func (r *reading) searchSpools(ctx context.Context, limit int, print func(audit.Record) error) error {
	var found []audit.Record
	newest := func() {
		slices.SortStableFunc(found, func(a, b audit.Record) int { return a.Time.Compare(b.Time) })
		if limit > 0 && len(found) > limit {
			found = slices.Delete(found, 0, len(found)-limit)
		}
	}
	damage := r.inSpools(ctx, func(x *audit.Record) error {
		if found = append(found, *x); limit > 0 && len(found) >= 2*limit+1024 {
			newest()
		}
		return nil
	})
	if damage != nil && !errors.Is(damage, audit.ErrDamaged) {
		return damage
	}
	newest()
	for _, x := range found {
		if err := print(x); err != nil {
			return err
		}
	}
	return damage
}

func auditShow(g *global, pl *places) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Tell the story of one record, or of each use of a credential's handle", Args: cobra.ExactArgs(1),
		Example: "  attache audit show rec_5f0c…\n  attache audit show cred_9a41… --output json",
		RunE: func(c *cobra.Command, args []string) error {
			p := g.printer(c.OutOrStdout())
			show := p.Show
			if g.json() {
				show = p.Print
			}
			r, err := pl.reading(c, args, audit.Filter{})
			if err != nil {
				return err
			}
			if pl.store != "" {
				return pl.withStore(c.Context(), func(d *store.DB) error { return showStore(c, d, args[0], show) })
			}
			var found []audit.Record
			for _, d := range r.dirs {
				rs, err := audit.Find(d, args[0])
				if err != nil && !errors.Is(err, audit.ErrNotFound) {
					return err
				}
				found = append(found, rs...)
			}
			if len(found) == 0 {
				return fmt.Errorf("%w: %s; look for it with attache audit search", audit.ErrNotFound, audit.Safe(args[0]))
			}
			for _, r := range found {
				if err := show(r); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
