package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/policy/suggest"
	"github.com/attache-dev/attache/proxy/destination"
)

// history says which records a command about policies reads.
type history struct {
	places
	since string
}

func (h *history) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&h.since, "since", "7d", "records from here on: 24h, 7d, or a time")
	f.StringVar(&h.dir, "dir", "", "one spool folder (default the configured audit.dir, else all of the state folder)")
	f.Var(&h.store, "store", storeHelp)
}

// each gives every finished request that the terms match to fn, and says where
// it looked.
func (h *history) each(ctx context.Context, c *cobra.Command, terms []string, fn func(*audit.Record) error) (*reading, error) {
	r, err := h.read(c, append(append([]string{}, terms...), "since:"+h.since))
	if err != nil {
		return nil, err
	}
	return r, r.each(ctx, fn)
}

// loadFor loads documents as they count for the records: in a cluster
// namespaces count, on one machine they do not.
func loadFor(dir string, cluster bool) (*api.Bundle, error) {
	place := api.PlaceRun
	if cluster {
		place = api.PlaceReview
	}
	b, _, err := loadPolicies(dir, place)
	return b, err
}

// inCluster reports whether a record is of a pod.
func inCluster(r *audit.Record) bool {
	return r.Workload != nil && r.Workload.Namespace != "" && r.Workload.Namespace != "local"
}

func policyReplay(g *global) *cobra.Command {
	h := history{places: places{g: g}}
	var fail bool
	c := &cobra.Command{
		Use: "replay DIR [QUERY]", Short: "List the decisions on recorded requests that documents would change", Args: cobra.MinimumNArgs(1),
		Long: `Replay decides recorded requests again, as if the documents in DIR were in
force, and lists what would change: equal changes once, with how often, when
first and last, and ids of records. Records that cannot be decided again, since
a rule looks at what no record holds, are counted with what is missing.`,
		Example: "  attache policy replay --since 7d ./new-policies\n  attache policy replay --fail --store sqlite:records.db ./new-policies agent:*/writer",
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			var p *replay.Replay
			begin := func(cluster bool) error {
				b, err := loadFor(args[0], cluster)
				if err != nil {
					return err
				}
				p, err = replay.New(b, replay.Options{PathOK: destination.CheckPath})
				return err
			}
			from, err := h.each(ctx, c, args[1:], func(r *audit.Record) error {
				if r.Request == nil {
					return nil
				}
				if p == nil {
					if err := begin(inCluster(r)); err != nil {
						return err
					}
				}
				p.Add(r)
				return nil
			})
			if err != nil && !errors.Is(err, audit.ErrDamaged) {
				return err
			}
			if err != nil {
				fmt.Fprintln(c.ErrOrStderr(), "attache:", err)
			}
			if p == nil { // no record: the documents are looked at all the same
				if err := begin(false); err != nil {
					return err
				}
			}
			r := p.Report()
			if r.Requests == 0 {
				err := from.nothing(g, c)
				if fail { // what was not tried is not fine
					return errors.Join(err, failure{errors.New("no recorded request was decided again, so that --fail says nothing"), 2})
				}
				if err != nil || !g.json() {
					return err
				}
			}
			if g.json() {
				err = writeJSON(c.OutOrStdout(), r)
			} else {
				err = r.Text(c.OutOrStdout(), time.Local)
			}
			if err == nil && fail && r.Changed > 0 {
				return exit(1)
			}
			return err
		},
	}
	h.flags(c)
	c.Flags().StringVarP(&h.config, "config", "c", "", "folder of documents, whose audit.dir is read (default $ATTACHE_CONFIG)")
	c.Flags().BoolVar(&fail, "fail", false, "exit with 1 if a decision would change, and with 2 if there is no request to decide")
	return c
}

func policySuggest(g *global) *cobra.Command {
	h := history{places: places{g: g}}
	var agent string
	c := &cobra.Command{
		Use: "suggest --agent NAME [QUERY]", Short: "Write the narrowest policy that still allows what an agent used",
		Long: `Suggest reads what an agent was allowed, and writes rules for that and no more:
hosts, methods, paths with ids as variables, actions and resources of AWS,
providers. Conditions of the present rules (--config) are kept, and what of
them was never used is said. Nothing that was denied is opened.`,
		Example: "  attache policy suggest --agent writer --since 30d --config ./policies > ./new/writer.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			if agent == "" {
				return fmt.Errorf("%w: name the agent with --agent: a SPIFFE ID, or the end of one; attache audit search lists them", run.ErrUsage)
			}
			ctx, stop := interruptible(c)
			defer stop()
			s, err := h.suggest(ctx, c, agent, args)
			if err != nil {
				return err
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), s)
			}
			text, err := s.YAML(time.Local)
			if err == nil {
				_, err = c.OutOrStdout().Write(text)
			}
			return err
		},
	}
	h.flags(c)
	c.Flags().StringVar(&agent, "agent", "", "SPIFFE ID of the agent, or the end of one (required)")
	c.Flags().StringVarP(&h.config, "config", "c", "", "folder of the documents in force, for their providers, conditions and what is unused (default $ATTACHE_CONFIG)")
	return c
}

func (h *history) suggest(ctx context.Context, c *cobra.Command, agent string, terms []string) (*suggest.Suggestion, error) {
	var b *suggest.Builder
	dir := h.policyDir()
	from, err := h.each(ctx, c, terms, func(r *audit.Record) error {
		if b == nil {
			o := suggest.Options{PathOK: destination.CheckPath}
			if dir != "" {
				var err error
				if o.Bundle, err = loadFor(dir, inCluster(r)); err != nil {
					return fmt.Errorf("the documents in force: %w", err)
				}
			}
			b = suggest.New(agent, o)
		}
		return b.Add(r)
	})
	if err != nil && !errors.Is(err, audit.ErrDamaged) {
		return nil, err
	}
	if b == nil {
		return nil, failure{fmt.Errorf("%w: no records match%s; looked at %s, %s", suggest.ErrNothing, aside(strings.Join(terms, " ")), from.place(), from.period()), 1}
	}
	return b.Suggest()
}

// policyDir is the folder of the documents in force, if it is known.
func (h *history) policyDir() string { return h.g.policyDir(&h.places) }
