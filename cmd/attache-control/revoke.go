package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// errOutstanding ends a revocation that not every sidecar acknowledged.
var errOutstanding = errors.New("not every sidecar has acknowledged")

type revokeOptions struct {
	v1alpha1.RevocationSpec
	pod  string
	wait time.Duration
}

// revokeCommand ends credentials in all sidecars that it concerns.
func revokeCommand(g *global) *cobra.Command {
	o := &revokeOptions{}
	c := &cobra.Command{
		Use: "revoke", Short: "End credentials at once, and say which sidecars have not heard of it", Args: cobra.NoArgs,
		Long: `Make a Revocation, which every sidecar that it concerns carries out before
anything else: credentials minted before now end, and connections that carry
them are cut. What matches every flag given is revoked.

It waits for the sidecars' acknowledgements and lists those that are missing,
each with the time at which the last of what it may hold ends by itself. The
Revocation stays: whoever comes back is told. Delete it when it is complete
(kubectl get revocations.attache.dev).

To keep an agent from getting new credentials, change its policy, too.`,
		Example: `  attache-control revoke --owner team@example.com --reason "laptop stolen"
  attache-control revoke --pod agents/writer-0
  attache-control revoke --provider agents/github`,
		RunE: func(cmd *cobra.Command, _ []string) error { return revoke(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	f := c.Flags()
	f.StringVar(&o.Provider, "provider", "", "credentials of NAMESPACE/NAME of a CredentialProvider, or NAME of a ClusterCredentialProvider")
	f.StringVar(&o.Handle, "handle", "", "one credential, by the handle in the audit record")
	f.StringVar(&o.Task, "task", "", "credentials of a task, by its id")
	f.StringVar(&o.Owner, "owner", "", "credentials of pods of an accountable owner")
	f.StringVar(&o.pod, "pod", "", "credentials of a pod, NAMESPACE/NAME")
	f.StringVar(&o.PodUID, "pod-uid", "", "credentials of a pod, by its uid")
	f.StringVar(&o.Reason, "reason", "", "why; it stands in the records")
	f.DurationVar(&o.wait, "wait", 10*time.Second, "how long to wait for acknowledgements")
	return c
}

func revoke(ctx context.Context, g *global, o *revokeOptions, w io.Writer) error {
	if o.Provider == "" && o.Handle == "" && o.Task == "" && o.Owner == "" && o.pod == "" && o.PodUID == "" {
		return fmt.Errorf("%w: name what to revoke: --provider, --handle, --task, --owner, --pod or --pod-uid", errUsage)
	}
	namespace, name, ok := strings.Cut(o.pod, "/")
	if o.pod != "" && (!ok || namespace == "" || name == "" || o.PodUID != "") {
		return fmt.Errorf("%w: --pod is %q; must be NAMESPACE/NAME, and without --pod-uid", errUsage, o.pod)
	}
	config, err := g.restConfig()
	if err != nil {
		return err
	}
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), crd.AddToScheme(s)); err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	if o.pod != "" {
		p := &corev1.Pod{}
		if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
			return fmt.Errorf("find the pod: %w; one that is gone can be named by --pod-uid", err)
		}
		o.PodUID = string(p.UID)
	}
	r := &crd.Revocation{ObjectMeta: metav1.ObjectMeta{GenerateName: "revoke-"}, Spec: o.RevocationSpec}
	if err := c.Create(ctx, r); err != nil {
		return fmt.Errorf("make the Revocation: %w", err)
	}
	complete, err := awaitRevocation(ctx, c, r, o.wait)
	if err != nil {
		return fmt.Errorf("revocation %s is made and goes out, but cannot be followed: %w", r.Name, err)
	}
	if g.output == "json" {
		err = writeJSON(w, map[string]any{"name": r.Name, "complete": complete, "status": r.Status})
	} else {
		err = printRevocation(w, r, complete)
	}
	if err == nil && !complete {
		err = errOutstanding
	}
	return err
}

// awaitRevocation asks until it is complete or the time is up. Status is
// written a few times a second, so that to watch would gain nothing.
func awaitRevocation(ctx context.Context, c client.Client, r *crd.Revocation, wait time.Duration) (bool, error) {
	deadline := time.After(wait)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(r), r); err != nil {
			return false, err
		}
		if meta.IsStatusConditionTrue(r.Status.Conditions, crd.ConditionComplete) {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline:
			return false, nil
		case <-tick.C:
		}
	}
}

func printRevocation(w io.Writer, r *crd.Revocation, complete bool) error {
	if len(r.Status.Conditions) == 0 {
		_, err := fmt.Fprintf(w, "%s: no control plane has taken it up; is the xds role running?\n", r.Name)
		return err
	}
	if _, err := fmt.Fprintf(w, "%s: %d of %d sidecars acknowledged\n", r.Name, r.Status.Acknowledged, r.Status.Total); err != nil || complete {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAMESPACE\tPOD\tLAST HEARD\tWHAT IT HOLDS ENDS BY")
	for _, p := range r.Status.Outstanding {
		heard := "never"
		if !p.LastHeard.IsZero() {
			heard = p.LastHeard.UTC().Format(time.RFC3339)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Namespace, p.Pod, heard, p.LatestExpiry.UTC().Format(time.RFC3339))
	}
	if more := int(r.Status.Total-r.Status.Acknowledged) - len(r.Status.Outstanding); more > 0 {
		_, _ = fmt.Fprintf(t, "and %d more\n", more)
	}
	return t.Flush()
}
