package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/control/selftest"
)

func selftestCommand(g *global) *cobra.Command {
	o := selftest.Options{}
	c := &cobra.Command{
		Use: "selftest", Short: "Prove that the pods of a namespace are injected and guarded", Args: cobra.NoArgs,
		Long: `selftest makes a pod in an opted-in namespace, looks at what admission made of it,
and tries what the guards must refuse. helm test runs it.`,
		Example: "  attache-control selftest --test-namespace attache-selftest --image registry.example/attache-control:1.0",
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Namespace == "" || o.Image == "" {
				return fmt.Errorf("%w: give --test-namespace and --image", errUsage)
			}
			config, err := g.restConfig()
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("reach the cluster: %w", err)
			}
			return selftest.Run(c.Context(), client, o, c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.Namespace, "test-namespace", "", "opted-in namespace in which the pod is made")
	f.StringVar(&o.Image, "image", "", "image of this program, which the pod runs")
	f.BoolVar(&o.Wait, "wait", true, "wait until the pod ran beside its sidecar, and ended")
	f.BoolVar(&o.Guards, "guards", true, "try attacks")
	f.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "time for all of it")
	return c
}
