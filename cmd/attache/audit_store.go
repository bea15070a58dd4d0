package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/storeurl"
)

const storeHelp = "ask a record store in place of spools: " + storeurl.Forms

// searchStore prints the newest limit records (0: all), oldest first.
func searchStore(c *cobra.Command, d *store.DB, f audit.Filter, limit int, print func(audit.Record) error) error {
	looked := func(until time.Time) error {
		_, err := fmt.Fprintf(c.ErrOrStderr(), "looked at records up to %s; going on\n", until.Local().Format(time.RFC3339))
		return err
	}
	if limit == 0 {
		return eachRow(c.Context(), d, store.Query{Filter: f, Oldest: true}, func(r *audit.Record) error { return print(*r) }, looked)
	}
	var found []audit.Record
	err := eachRow(c.Context(), d, store.Query{Filter: f}, func(r *audit.Record) error {
		if found = append(found, *r); len(found) == limit {
			return errEnough
		}
		return nil
	}, looked)
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	for _, r := range slices.Backward(found) {
		if err := print(r); err != nil {
			return err
		}
	}
	return nil
}

// errEnough ends a search that has found what it is to print.
var errEnough = errors.New("enough")

func printRows(show func(audit.Record) error, rows []store.Row) error {
	for i := range rows {
		if err := show(rows[i].Record); err != nil {
			return err
		}
	}
	return nil
}

// showStore prints what goes by a name.
func showStore(c *cobra.Command, d *store.DB, name string, show func(audit.Record) error) error {
	q := store.Query{Limit: store.MaxLimit, Oldest: true}
	found := 0
	for {
		page, err := d.Related(c.Context(), name, q)
		if err != nil {
			return err
		}
		found += len(page.Rows)
		if err := printRows(show, page.Rows); err != nil {
			return err
		}
		if page.Next == "" {
			break
		}
		q.After = page.Next
	}
	if found == 0 {
		return fmt.Errorf("%w: %s; look for it with attache audit search", audit.ErrNotFound, audit.Safe(name))
	}
	return nil
}

// storePoll is how often a store is asked for what is new.
const storePoll = 500 * time.Millisecond

// tailStore prints the last records and those that come, until ctx ends.
func tailStore(ctx context.Context, d *store.DB, f audit.Filter, last int, p *audit.Printer) error {
	next, err := d.End(ctx)
	if err != nil {
		return err
	}
	if last > 0 {
		page, err := d.Search(ctx, store.Query{Filter: f, Limit: min(last, store.MaxLimit)})
		if err != nil {
			return err
		}
		slices.Reverse(page.Rows)
		if err := printRows(p.Print, page.Rows); err != nil {
			return err
		}
	}
	tick := time.NewTicker(storePoll)
	defer tick.Stop()
	for {
		page, err := d.Tail(ctx, store.Query{Filter: f, Limit: store.MaxLimit}, next)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		next = page.Next
		if err := printRows(p.Print, page.Rows); err != nil {
			return err
		}
		if len(page.Rows) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func auditFacets(g *global, pl *places) *cobra.Command {
	var by []string
	var limit int
	c := &cobra.Command{
		Use: "facets [QUERY]", Short: "Count records by who, what and where",
		Example: "  attache audit facets verdict:deny since:7d --by agent,host\n  attache audit facets --store sqlite:$HOME/audit.db",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := pl.read(c, args)
			if err != nil {
				return err
			}
			return r.counting(c.Context(), func(d *store.DB) error {
				x, err := d.Facets(c.Context(), store.Query{Filter: r.f}, by, limit)
				if err != nil {
					return failure{err, 2}
				}
				if g.json() {
					return writeJSON(c.OutOrStdout(), x)
				}
				if x.Total.Count == 0 {
					return r.nothing(g, c)
				}
				return printFacets(c.OutOrStdout(), x)
			})
		},
	}
	c.Flags().StringSliceVar(&by, "by", nil, "keys to count by (default "+strings.Join(store.DefaultFacets(), ",")+")")
	c.Flags().IntVarP(&limit, "lines", "n", 10, "values a key, the most frequent ones")
	return unused(c, "log-level")
}

// counting runs fn with the store of --store, else with one that is made of the
// spools and removed again.
func (r *reading) counting(ctx context.Context, fn func(*store.DB) error) error {
	if r.p.store != "" {
		return r.p.withStore(ctx, fn)
	}
	tmp, err := os.MkdirTemp("", "attache-facets-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // best effort
	d, err := store.Open(ctx, "sqlite:"+filepath.Join(tmp, "audit.db"), store.Options{})
	if err != nil {
		return err
	}
	for _, dir := range r.dirs {
		if _, err := d.ImportSpool(ctx, dir); err != nil {
			return errors.Join(err, d.Close())
		}
	}
	return errors.Join(fn(d), d.Close())
}

func printFacets(w io.Writer, x store.Facets) error {
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%d records, %d denied, %d failed\n", x.Total.Count, x.Total.Denied, x.Total.Failed) //nolint:errcheck // Flush says it
	for _, f := range x.Facets {
		if len(f.Values) == 0 {
			continue
		}
		fmt.Fprintf(t, "\n%s\trecords\tdenied\tfailed\tfirst\tlast\n", f.Key) //nolint:errcheck // Flush says it
		for _, v := range f.Values {
			fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%s\t%s\n", audit.Safe(v.Value), v.Count.Count, v.Denied, v.Failed, //nolint:errcheck // Flush says it
				v.First.Local().Format(time.DateTime), v.Last.Local().Format(time.DateTime))
		}
		if f.More > 0 {
			fmt.Fprintf(t, "  and %d more\t%d\n", f.More, f.Others) //nolint:errcheck // Flush says it
		}
	}
	if x.Partial {
		fmt.Fprint(t, "\nThe bound on work was reached: only the newest records are counted. Ask for less time.\n") //nolint:errcheck // Flush says it
	}
	return t.Flush()
}

func auditImport(g *global, pl *places) *cobra.Command {
	return unused(&cobra.Command{
		Use: "import", Short: "Store what is new in this machine's spools", Args: cobra.NoArgs,
		Long:    "Import stores what is new in this machine's spools since the last import, in a store that is\nmade where there is none; its folder must be there. With --output json: a list, one element a\nspool. Exit status 1: lines were left out, since they are damaged.",
		Example: "  attache audit import --store sqlite:$HOME/audit.db",
		RunE: func(c *cobra.Command, _ []string) error {
			if pl.store == "" {
				return failure{errors.New("name the store: --store sqlite:PATH or postgres://USER@HOST/DATABASE"), 2}
			}
			dirs, err := pl.spools()
			if err != nil {
				return err
			}
			if err := folderOf(string(pl.store)); err != nil {
				return failure{err, 2}
			}
			d, err := store.Open(c.Context(), string(pl.store), store.Options{})
			if err != nil {
				return failure{err, 2}
			}
			err = importAll(c, d, dirs, g.json())
			return errors.Join(err, d.Close())
		},
	}, "log-level")
}

// folderOf refuses a store whose folder is not there: a path mistyped would be
// made, and be empty.
func folderOf(at string) error {
	path, ok := strings.CutPrefix(at, "sqlite:")
	if path = strings.TrimPrefix(path, "//"); !ok || path == "" {
		return nil // the store says what is wrong
	}
	dir := filepath.Dir(path)
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return fmt.Errorf("--store %s: there is no folder %s; make it first, or mend the path", at, dir)
	}
	return nil
}

// imported is what --output json says of a spool.
type imported struct {
	Dir      string   `json:"dir"`
	Stored   int      `json:"stored"`
	Repeated int      `json:"repeated"`
	LeftOut  int      `json:"left_out"`
	Problems []string `json:"problems,omitempty"`
}

func importAll(c *cobra.Command, d *store.DB, dirs []string, asJSON bool) error {
	left := 0
	all := []imported{}
	for _, dir := range dirs {
		x, err := d.ImportSpool(c.Context(), dir)
		if err != nil {
			return err
		}
		left += x.Damaged
		if asJSON {
			all = append(all, imported{dir, x.Lines, x.Duplicates, x.Damaged, x.Problems})
		} else {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d lines stored, %d were there, %d left out\n", dir, x.Lines, x.Duplicates, x.Damaged)
			for _, p := range x.Problems {
				_, e := fmt.Fprintln(c.OutOrStdout(), "  "+audit.Safe(p))
				err = errors.Join(err, e)
			}
		}
		if err != nil {
			return err
		}
	}
	if asJSON {
		if err := writeJSON(c.OutOrStdout(), all); err != nil {
			return err
		}
	}
	if left > 0 {
		return exit(1)
	}
	return nil
}
