// Command attache-control is Attaché's part in a Kubernetes cluster: the
// admission webhook, the issuer of identities, the server of policies and the
// broker of credentials. Each is a role that can run alone.
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

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/attache-dev/attache/internal/version"
)

// errUsage is matched by mistakes of whoever typed the command.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, began := rootWith(setLoggers)
	if err := c.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "attache-control:", err)
		if errors.Is(err, errUsage) || !*began {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// global holds the flags that every command has.
type global struct {
	output     string
	log        string
	kubeconfig string
	loggers    func(*slog.Logger) // sets those of the libraries
}

// setLoggers gives the libraries our logger. Their loggers are the process's:
// only main sets them, before anything runs.
func setLoggers(log *slog.Logger) {
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
}

// root is the command without the libraries' loggers.
func root() (c *cobra.Command, began *bool) { return rootWith(func(*slog.Logger) {}) }

// rootWith makes the command, and tells whether a line was understood and its work
// has begun.
func rootWith(loggers func(*slog.Logger)) (c *cobra.Command, began *bool) {
	g := &global{loggers: loggers}
	began = new(bool)
	c = &cobra.Command{
		Use:   "attache-control",
		Short: "Attaché's control plane in a Kubernetes cluster",
		Long: `attache-control injects sidecars into the pods of opted-in namespaces, attests
them, and gives them policies and credentials.

  attache-control serve --roles webhook --sidecar-image registry.example/attache-sidecar@sha256:…`,
		SilenceUsage: true, SilenceErrors: true,
	}
	f := c.PersistentFlags()
	f.StringVarP(&g.output, "output", "o", "text", "output format: text or json")
	f.StringVar(&g.log, "log-level", "info", "log level: debug, info, warn or error")
	f.StringVar(&g.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, ~/.kube/config, else the pod's service account)")
	c.PersistentPreRunE = func(*cobra.Command, []string) error {
		if g.output != "text" && g.output != "json" {
			return fmt.Errorf("%w: --output is %q; must be text or json", errUsage, g.output)
		}
		*began = true
		return nil
	}
	c.AddCommand(serveCommand(g), statusCommand(g), selftestCommand(g), issuerCommand(g), templatesCommand(g), revokeCommand(g), versionCommand(g))
	for _, group := range c.Commands() {
		if group.HasSubCommands() { // cobra would print help for a mistyped one, and succeed
			group.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
			group.Args = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("unknown command %q for %q; %s --help lists them", args[0], c.CommandPath(), c.CommandPath())
				}
				return nil
			}
		}
	}
	return c, began
}

// logger writes JSON lines to w.
func (g *global) logger(w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(g.log)); err != nil {
		return nil, fmt.Errorf("%w: --log-level is %q; must be debug, info, warn or error", errUsage, g.log)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// writeJSON prints v as indented JSON.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func versionCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version and build information", Args: cobra.NoArgs,
		Example: "  attache-control version --output json",
		RunE: func(c *cobra.Command, _ []string) error {
			i := version.Get()
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), i)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "attache-control %s (%s, %s)\n", i.Version, i.Go, i.Platform)
			return err
		},
	}
}
