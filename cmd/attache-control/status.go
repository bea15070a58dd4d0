package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/status"
)

// errWrong is the error of status --check.
var errWrong = errors.New("not all is well")

// home is the control plane's namespace, as commands take it without a flag: in
// one of its pods that pod's own.
func home() string { return cmp.Or(os.Getenv("POD_NAMESPACE"), "attache-system") }

// statusCommand shows the cluster to its operator.
func statusCommand(g *global) *cobra.Command {
	var namespace, only string
	var all, check bool
	c := &cobra.Command{
		Use: "status", Short: "Show opted-in namespaces, their pods' sidecars, and what policies are in force", Args: cobra.NoArgs,
		Long: `Show opted-in namespaces, their pods' sidecars, and what policies are in force.
Pods are listed that are not current and ready; --all lists the others, too.

A sidecar is current (what admission makes now), old (accepted still; make the
pod anew at leisure), retired or unaccepted (it gets no identity: make the pod
anew), foreign (something changed it), or not there: uninjected, opted-out.`,
		Example: "  attache-control status\n  attache-control status --only team-a --all -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := g.restConfig()
			if err != nil {
				return err
			}
			api, err := client.New(config, client.Options{Scheme: scheme.Scheme})
			if err != nil {
				return fmt.Errorf("reach the cluster: %w", err)
			}
			set, err := issuer.NewSet(api, namespace, func(map[string]any) (string, error) { return "", nil }, nil)
			if err != nil {
				return err
			}
			r, err := status.Read(c.Context(), status.Options{Reader: api, Namespace: namespace, Only: only, Set: set})
			if err != nil {
				return err
			}
			d, err := discovery.NewDiscoveryClientForConfig(config)
			if err != nil {
				return fmt.Errorf("reach the cluster: %w", err)
			}
			v, err := d.ServerVersion()
			if err != nil {
				return fmt.Errorf("ask the cluster's version: %w", err)
			}
			r.Kubernetes = v.GitVersion
			if g.output == "json" {
				err = writeJSON(c.OutOrStdout(), r)
			} else {
				err = r.Text(c.OutOrStdout(), all)
			}
			if wrong := r.Wrong(); err == nil && check && wrong != nil {
				err = fmt.Errorf("%w: %w", errWrong, wrong)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&namespace, "namespace", home(), "namespace of the control plane")
	f.StringVar(&only, "only", "", "this opted-in namespace alone")
	f.BoolVar(&all, "all", false, "list current and opted-out pods, too")
	f.BoolVar(&check, "check", false, "exit with 1 if a pod or an object needs somebody")
	return c
}
