// Command attache-sidecar stands beside an agent in its pod: redirect takes the
// pod's connections to it, proxy serves them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/sidecar"
	"github.com/attache-dev/attache/internal/version"
)

func main() {
	c := root()
	if err := c.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "attache-sidecar:", err)
		if errors.Is(err, sidecar.ErrUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "attache-sidecar",
		Short: "Give the agent in this pod access without giving it secrets",
		Long: `attache-sidecar is put into pods by Attaché's admission webhook: redirect runs
first and ends, proxy stays beside the agent. Neither is meant to be started by
hand, but for trying (proxy --config DIR).`,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(redirectCommand(), proxyCommand(), versionCommand())
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%v", err) })
	return c
}

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", sidecar.ErrUsage, fmt.Errorf(format, args...))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version and build information", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i := version.Get()
			_, err := fmt.Fprintf(c.OutOrStdout(), "attache-sidecar %s (%s, %s)\n", i.Version, i.Go, i.Platform)
			return err
		},
	}
}
