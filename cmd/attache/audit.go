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
)

// places says where the records are.
type places struct {
	g      *global
	dir    string // one spool
	config string // folder of documents, which may name one
	store  string // URL of a record store; empty: spools are read
}

func auditCommand(g *global) *cobra.Command {
	pl := &places{g: g}
	c := &cobra.Command{
		Use: "audit", Short: "Read the records",
		Long: "Read the records of this machine's runs. A query is terms like owner:ana host:*.example.com\nverdict:deny status:4xx since:24h, and free words; -key:value excludes.\nKeys: " + strings.Join(audit.FilterKeys(), " "),
	}
	f := c.PersistentFlags()
	f.StringVar(&pl.dir, "dir", "", "one spool folder (default the configured audit.dir, else all of the state folder)")
	f.StringVarP(&pl.config, "config", "c", "", "folder of documents, whose audit.dir is read (default $ATTACHE_CONFIG)")
	f.StringVar(&pl.store, "store", "", storeHelp)
	c.AddCommand(auditTail(g, pl), auditSearch(g, pl), auditShow(g, pl), auditFacets(g, pl), auditImport(g, pl), auditVerify(g, pl), auditWitness(), auditUI(g, pl), &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of a record", Args: cobra.NoArgs, Example: "  attache audit schema > record.schema.json",
		RunE: func(c *cobra.Command, _ []string) error { _, err := c.OutOrStdout().Write(audit.Schema()); return err },
	})
	return c
}

// spools lists the folders to read: --dir, else the audit.dir of the documents,
// else those of the state folder.
func (p *places) spools() ([]string, error) {
	if p.dir != "" {
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

// query reads the terms of a command that filters records, and says where they
// are.
func (p *places) query(args []string) (audit.Filter, []string, error) {
	f, err := filterOf(args)
	if err != nil {
		return f, nil, err
	}
	if p.store != "" {
		return f, nil, nil
	}
	dirs, err := p.spools()
	return f, dirs, err
}

func (g *global) printer(w io.Writer) *audit.Printer {
	return audit.NewPrinter(w, audit.PrinterOptions{JSON: g.json(), Color: audit.WantColor(w, os.Getenv), Location: time.Local})
}

func auditTail(g *global, pl *places) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "tail [QUERY]", Short: "Follow records as they finish", Example: "  attache audit tail verdict:deny",
		RunE: func(c *cobra.Command, args []string) error {
			f, ds, err := pl.query(args)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(c)
			defer stop()
			if pl.store != "" {
				return pl.withStore(ctx, func(d *store.DB) error {
					return tailStore(ctx, d, f, last, g.printer(c.OutOrStdout()))
				})
			}
			return tailAll(ctx, ds, f, last, g.printer(c.OutOrStdout()))
		},
	}
	c.Flags().IntVarP(&last, "lines", "n", 10, "begin with this many past records")
	return c
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
		Use: "search [QUERY]", Short: "Find finished records", Example: "  attache audit search owner:ana host:*.example.com verdict:deny since:24h",
		RunE: func(c *cobra.Command, args []string) error {
			f, ds, err := pl.query(args)
			if err != nil {
				return err
			}
			if pl.store != "" {
				return pl.withStore(c.Context(), func(d *store.DB) error {
					return searchStore(c, d, f, limit, g.printer(c.OutOrStdout()))
				})
			}
			var found []audit.Record
			for _, d := range ds {
				if err := audit.Read(d, f, func(r audit.Record) bool { found = append(found, r); return true }); err != nil {
					return err
				}
			}
			slices.SortStableFunc(found, func(a, b audit.Record) int { return a.Time.Compare(b.Time) })
			if limit > 0 && len(found) > limit {
				found = found[len(found)-limit:]
			}
			p := g.printer(c.OutOrStdout())
			for _, r := range found {
				if err := p.Print(r); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().IntVarP(&limit, "lines", "n", 1000, "print at most the newest N; 0: all")
	return c
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
			if pl.store != "" {
				return pl.withStore(c.Context(), func(d *store.DB) error { return showStore(c, d, args[0], show) })
			}
			ds, err := pl.spools()
			if err != nil {
				return err
			}
			var found []audit.Record
			for _, d := range ds {
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
