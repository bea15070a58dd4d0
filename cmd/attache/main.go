// Command attache gives an AI agent access without giving it secrets.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/version"
)

// exit is an error that carries the exit status of the agent.
type exit int

// Error implements error; main prints nothing for it.
func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// failure is an error with an exit status of its own.
type failure struct {
	error
	status int
}

// Unwrap gives the error itself.
func (f failure) Unwrap() error { return f.error }

func main() {
	sandbox.MaybeStage() // must be first: the child's own re-exec ends here
	if args, ok := forCluster(os.Args[1:]); ok {
		err := becomeCluster(args)
		fmt.Fprintln(os.Stderr, "attache:", err)
		os.Exit(2)
	}
	c, began := root()
	c.SetArgs(exclusionsLast(os.Args[1:]))
	if err := c.ExecuteContext(context.Background()); err != nil {
		if e, ok := errors.AsType[exit](err); ok {
			os.Exit(int(e))
		}
		fmt.Fprintln(os.Stderr, "attache:", err)
		if f, ok := errors.AsType[failure](err); ok {
			os.Exit(f.status)
		}
		if errors.Is(err, run.ErrUsage) || !*began {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// global holds the flags that every command has.
type global struct {
	state  string
	output string
	log    string
}

// root makes the command, and tells whether a line was understood and its work
// has begun: an error before is a mistake of whoever typed it.
func root() (c *cobra.Command, began *bool) {
	g := &global{}
	began = new(bool)
	c = &cobra.Command{
		Use:   "attache",
		Short: "Give AI agents access without giving them secrets",
		Long: `Attaché stands between an AI agent and the APIs it calls. It attests the
calling process, asks policy, mints a short-lived credential for that call, puts
it on the wire, and writes one record. The agent never holds a secret.

  attache run --config examples/quickstart -- python3 agent.py
  attache audit tail`,
		SilenceUsage: true, SilenceErrors: true,
	}
	f := c.PersistentFlags()
	f.StringVar(&g.state, "state", "", "state folder (default $ATTACHE_STATE, $XDG_STATE_HOME/attache or ~/.local/state/attache)")
	f.StringVarP(&g.output, "output", "o", "text", "output format: text or json")
	f.StringVar(&g.log, "log-level", "warn", "log level: debug, info, warn or error")
	c.PersistentPreRunE = func(*cobra.Command, []string) error {
		if g.output != "text" && g.output != "json" {
			return fmt.Errorf("%w: --output is %q; must be text or json", run.ErrUsage, g.output)
		}
		*began = true
		return nil
	}
	c.AddCommand(runCommand(g), policyCommand(g), auditCommand(g), taskCommand(g), statusCommand(g), inventoryCommand(g),
		revokeCommand(g), doctorCommand(g), issuerCommand(), versionCommand(g))
	for _, group := range c.Commands() {
		if group.HasSubCommands() {
			group.Args, group.RunE = namesACommand, func(c *cobra.Command, _ []string) error { return c.Help() }
		}
		sayUsage(group)
	}
	return c, began
}

// namesACommand refuses a word that is no command of c: cobra would print help
// and succeed.
func namesACommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unknown command %q for %q; %s --help lists them", args[0], c.CommandPath(), c.CommandPath())
}

// sayUsage lets c and the commands below it name, where arguments are missing
// or too many, what they take.
func sayUsage(c *cobra.Command) {
	for _, sub := range c.Commands() {
		sayUsage(sub)
	}
	check := c.Args
	if check == nil || c.HasSubCommands() {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return fmt.Errorf("%w; usage: %s", err, c.UseLine())
		}
		return nil
	}
}

// logger writes JSON lines to standard error.
func (g *global) logger(w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(g.log)); err != nil {
		return nil, fmt.Errorf("%w: --log-level is %q; must be debug, info, warn or error", run.ErrUsage, g.log)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
}

func (g *global) stateDir() (string, error) {
	if g.state != "" {
		return g.state, nil
	}
	return run.StateDir()
}

func (g *global) json() bool { return g.output == "json" }

// writeJSON prints v as indented JSON.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// interruptible returns a context that ends at SIGINT or SIGTERM.
func interruptible(c *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
}

func versionCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version and build information", Args: cobra.NoArgs,
		Example: "  attache version --output json",
		RunE: func(c *cobra.Command, _ []string) error {
			i := version.Get()
			if g.json() {
				return writeJSON(c.OutOrStdout(), i)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "attache %s (%s, %s)\n", i.Version, i.Go, i.Platform)
			return err
		},
	}
}
