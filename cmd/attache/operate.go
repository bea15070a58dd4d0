package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// someRuns is runs for what makes no sense without one: whoever revokes in the
// wrong state folder must not believe that it is done.
func (g *global) someRuns(id string) ([]run.Info, error) {
	rs, err := g.runs(id)
	if err == nil && len(rs) == 0 {
		state, _ := g.stateDir() // g.runs has found it
		return nil, fmt.Errorf("no run is alive below %s; name another folder with --state", state)
	}
	return rs, err
}

// runs returns the live runs, or the one that id begins.
func (g *global) runs(id string) ([]run.Info, error) {
	state, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	all, err := run.Runs(state)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return all, nil
	}
	for _, r := range all {
		if strings.HasPrefix(r.Run, id) {
			return []run.Info{r}, nil
		}
	}
	return nil, fmt.Errorf("no live run begins with %q; attache status lists them", id)
}

func statusCommand(g *global) *cobra.Command {
	return acceptsCluster(&cobra.Command{
		Use: "status", Short: "List the runs that are alive, or show a cluster", Args: cobra.NoArgs, Example: "  attache status --output json\n  attache status --cluster --only team-a",
		RunE: func(c *cobra.Command, _ []string) error {
			rs, err := g.runs("")
			if err != nil {
				return err
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), append([]run.Info{}, rs...)) // a list, also of none
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "RUN\tPID\tWORKLOAD\tSINCE\tREADY\tCOMMAND")
			for _, r := range rs {
				fmt.Fprintf(w, "%.12s\t%d\t%s\t%s\t%s\t%s\n", r.Run, r.PID, r.Workload, r.Started.Local().Format(time.DateTime), ready(r), audit.Safe(strings.Join(r.Command, " ")))
			}
			return w.Flush()
		},
	}, "show a cluster's namespaces, sidecars and policies")
}

func ready(r run.Info) string {
	resp, err := r.Client().Get("http://attache/readyz")
	if err != nil {
		return "no: " + err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	if resp.StatusCode != http.StatusOK {
		return "no: " + strings.TrimSpace(string(b))
	}
	if _, sinks, ok := strings.Cut(strings.TrimSpace(string(b)), "\n"); ok {
		return "yes, but " + audit.Safe(strings.ReplaceAll(sinks, "\n", "; "))
	}
	return "yes"
}

// answer decodes an admin answer into v.
func answer(resp *http.Response, err error, v any) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("the run answered %s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

func inventoryCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "inventory", Short: "List the credentials that issuers still accept, never their values", Args: cobra.NoArgs,
		Example: "  attache inventory",
		RunE: func(c *cobra.Command, _ []string) error {
			rs, err := g.someRuns("")
			if err != nil {
				return err
			}
			all := []minting.LiveCredential{}
			for _, r := range rs {
				var live []minting.LiveCredential
				resp, err := r.Client().Get("http://attache/v1/inventory")
				if err := answer(resp, err, &live); err != nil {
					return err
				}
				all = append(all, live...)
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), all)
			}
			return printInventory(c.OutOrStdout(), all)
		},
	}
}

// printInventory writes a table. What a session may do names objects as the
// agent named them, so that it is made safe for terminals.
func printInventory(out io.Writer, all []minting.LiveCredential) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "HANDLE\tPROVIDER\tKIND\tDESTINATION\tSCOPE\tTASK\tENDS")
	for _, l := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.12s\t%s\n", l.Handle, l.Provider, l.Kind, l.Destination, audit.Safe(strings.Join(l.Scope, " ")), l.TaskID, l.Ends.Local().Format(time.TimeOnly))
	}
	return w.Flush()
}

func revokeCommand(g *global) *cobra.Command {
	var q run.Revocation
	c := &cobra.Command{
		Use: "revoke [HANDLE]", Short: "End credentials now: caches, running calls, and at the issuer", Args: cobra.MaximumNArgs(1),
		Example: "  attache revoke cred_…\n  attache revoke --task ID\n  attache revoke --all",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.Handle = args[0]
			}
			if q == (run.Revocation{}) {
				return fmt.Errorf("%w: name a HANDLE, --task, --provider or --all; attache inventory lists what lives", run.ErrUsage)
			}
			rs, err := g.someRuns("")
			if err != nil {
				return err
			}
			if len(args) == 1 && (q.Task != "" || q.Provider != "" || q.All) {
				return fmt.Errorf("%w: a HANDLE cannot be combined with --task, --provider or --all", run.ErrUsage)
			}
			body, err := json.Marshal(q)
			if err != nil {
				return err
			}
			all := []run.Revoked{}
			for _, r := range rs {
				var done []run.Revoked
				resp, err := r.Client().Post("http://attache/v1/revoke", "application/json", bytes.NewReader(body))
				if err := answer(resp, err, &done); err != nil {
					return err
				}
				all = append(all, done...)
			}
			if q.Handle != "" && len(all) == 0 {
				return fmt.Errorf("no live credential has the handle %s; attache inventory lists them", q.Handle)
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), all)
			}
			for _, d := range all {
				fmt.Fprintf(c.OutOrStdout(), "%s (%s): %s\n", d.Handle, d.Provider, d.Result)
			}
			if len(all) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "nothing to revoke")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&q.Task, "task", "", "end a task and every credential minted for it")
	f.StringVar(&q.Provider, "provider", "", "end every credential of a provider")
	f.BoolVar(&q.All, "all", false, "end every credential and every call of all runs")
	c.MarkFlagsMutuallyExclusive("task", "provider", "all")
	return acceptsCluster(c, "revoke in a cluster")
}

func taskCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "task", Short: "Open, list and close tasks of a live run, as its orchestrator"}
	var runID, tokenFile string
	var ttl time.Duration
	one := func() (run.Info, error) {
		rs, err := g.someRuns(runID)
		if err != nil {
			return run.Info{}, err
		}
		if len(rs) != 1 {
			return run.Info{}, fmt.Errorf("%d runs are alive; name one with --run", len(rs))
		}
		return rs[0], nil
	}
	open := &cobra.Command{
		Use: "open PURPOSE", Short: "Open a task; the agent names it in the Attache-Task header", Args: cobra.ExactArgs(1),
		Example: `  attache task open "triage issue 7" --human-token-file token.jwt --ttl 15m`,
		RunE: func(c *cobra.Command, args []string) error {
			r, err := one()
			if err != nil {
				return err
			}
			q := task.ClientRequest{Purpose: args[0], TTL: ttl}
			if tokenFile != "" {
				b, err := os.ReadFile(tokenFile)
				if err != nil {
					return err
				}
				text := strings.TrimSpace(string(b))
				if text == "" { // must not become a task without a human
					return fmt.Errorf("%s is empty", tokenFile)
				}
				q.HumanToken = secret.New(text)
			}
			t, err := r.Tasks().Open(c.Context(), q)
			if err != nil {
				return err
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), t)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), t.ID)
			return err
		},
	}
	open.Flags().StringVar(&tokenFile, "human-token-file", "", "file with the human's OpenID token")
	open.Flags().DurationVar(&ttl, "ttl", 0, "lifetime (default the configured maximum)")
	list := &cobra.Command{
		Use: "list", Short: "List open tasks", Args: cobra.NoArgs, Example: "  attache task list",
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := one()
			if err != nil {
				return err
			}
			ts, err := r.Tasks().List(c.Context())
			if err != nil {
				return err
			}
			if g.json() {
				return writeJSON(c.OutOrStdout(), ts)
			}
			for _, t := range ts {
				fmt.Fprintf(c.OutOrStdout(), "%s  %-12s  until %s  %s  %s\n", t.ID, t.OpenedBy, t.Expires.Local().Format(time.TimeOnly), t.Subject, t.Purpose)
			}
			return nil
		},
	}
	closeTask := &cobra.Command{
		Use: "close ID", Short: "Close a task: its credentials are revoked, its calls cut", Args: cobra.ExactArgs(1), Example: "  attache task close 5f0c…",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := one()
			if err != nil {
				return err
			}
			return r.Tasks().Close(c.Context(), args[0])
		},
	}
	c.PersistentFlags().StringVar(&runID, "run", "", "run id, or its beginning (default the only one)")
	c.AddCommand(open, list, closeTask)
	return c
}
