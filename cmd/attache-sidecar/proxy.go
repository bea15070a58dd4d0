package main

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/sidecar"
	"github.com/attache-dev/attache/internal/sparselog"
	"github.com/attache-dev/attache/internal/version"
)

func proxyCommand() *cobra.Command {
	o := sidecar.Options{}
	var nameservers []string
	c := &cobra.Command{
		Use:   "proxy --mode MODE",
		Short: "Serve the pod's calls",
		Long: `proxy is the native sidecar: it attests the pod, takes its policy from the
control plane, and serves the agent's calls until SIGTERM, which the kubelet
sends when the last container has ended.`,
		Example: `  attache-sidecar proxy --mode=transparent --redirect-port=15001 --health=:15020
  attache-sidecar proxy --mode=explicit --config DIR --trust-dir T --state-dir S --spool-dir R --health=127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := sandbox.Harden(); err != nil { // before any secret is in memory
				return err
			}
			if err := o.FromEnv(os.Getenv); err != nil {
				return err
			}
			for _, s := range nameservers {
				a, err := netip.ParseAddr(strings.TrimSpace(s))
				if err != nil {
					return usage("--nameservers is %q; must be an address", s)
				}
				o.Nameservers = append(o.Nameservers, a)
			}
			log, err := logger(os.Getenv("ATTACHE_LOG_LEVEL"))
			if err != nil {
				return err
			}
			o.Log, o.Version = log, version.Get().Version
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return serve(ctx, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Mode, "mode", "", "explicit (programs are told of the proxy) or transparent (connections are redirected)")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:15002", "loopback address of the proxy, in explicit mode")
	f.Uint16Var(&o.RedirectPort, "redirect-port", 15001, "port on 127.0.0.1 and [::1] that connections are redirected to, in transparent mode")
	f.StringVar(&o.Health, "health", ":15020", "address of /started, /ready and /metrics")
	f.StringVar(&o.TrustDir, "trust-dir", "", "folder of the CA bundle, which all containers read (default $ATTACHE_TRUST_DIR)")
	f.StringVar(&o.StateDir, "state-dir", "/var/lib/attache/state", "folder in memory for the pod's interception root")
	f.StringVar(&o.SpoolDir, "spool-dir", "/var/lib/attache/spool", "folder of the records")
	f.StringVarP(&o.Config, "config", "c", "", "folder of documents, instead of a control plane: for trying")
	f.StringVar(&o.Name, "name", "", "workload name, with --config")
	f.StringSliceVar(&nameservers, "nameservers", nil, "resolvers (ADDRESS) where the configuration names none (default those of /etc/resolv.conf)")
	return c
}

func serve(ctx context.Context, o sidecar.Options) error {
	if err := o.Check(); err != nil {
		return err
	}
	var control sidecar.Control
	var err error
	if o.Config != "" {
		control, err = sidecar.NewFolder(ctx, o.Config, o.Name, o.Log)
	} else {
		control, err = sidecar.NewCluster(&o)
	}
	if err != nil {
		return err
	}
	return sidecar.Run(ctx, o, control)
}

// logger writes JSON lines to standard error.
func logger(level string) (*slog.Logger, error) {
	l := slog.LevelInfo
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, usage("ATTACHE_LOG_LEVEL is %q; must be debug, info, warn or error", level)
		}
	}
	return slog.New(sparselog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l}))), nil
}
