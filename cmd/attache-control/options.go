package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/attache-dev/attache/proxy/relay"
)

// Values of --ca-source.
const (
	caSecret = "secret"
	caSPIRE  = "spire"
)

// options are the flags of serve. What all clusters share with their operator
// is in the AttacheConfig named default, not here.
type options struct {
	roles []string

	namespace, service     string
	trustDomain, issuerURL string

	image, imagePullPolicy string

	apiListen, webhookListen, discoveryListen, relayListen, metricsListen string
	relayRate                                                             int

	webhookSecret, webhookCertDir, webhookConfiguration string
	webhookNames                                        []string
	caSecret                                            string
	caSource, spireSocket, spireServer                  string

	recordOptions

	trustBundle bool
	defaults    string
	leaderElect bool
	drain       time.Duration
}

func (o *options) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.roles, "roles", defaultRoles(), "roles of this replica; beside these: collector and ui, which keep and show the records")
	f.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the control plane (default $POD_NAMESPACE)")
	f.StringVar(&o.service, "service", "attache-control", "Service by which API server and sidecars reach this program")
	f.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "trust domain of the SPIFFE IDs")
	f.StringVar(&o.issuerURL, "issuer-url", "", "public https URL of the JWT-SVIDs' issuer")
	f.StringVar(&o.image, "sidecar-image", "", "image of the sidecar, best with its digest")
	f.StringVar(&o.imagePullPolicy, "sidecar-image-pull-policy", "IfNotPresent", "Always, IfNotPresent or Never")
	f.StringVar(&o.apiListen, "api-listen", ":8443", "gRPC for sidecars")
	f.StringVar(&o.webhookListen, "webhook-listen", ":10250", "admission webhook")
	f.StringVar(&o.discoveryListen, "discovery-listen", ":8444", "OpenID discovery of the issuer")
	f.StringVar(&o.relayListen, "relay-listen", ":"+relay.Port, "calls whose credential is put on here (inject.by: relay)")
	f.IntVar(&o.relayRate, "relay-rate", defaultRelayRate, "calls a second that one pod may make through the relay on average, and four times as many at once")
	f.StringVar(&o.metricsListen, "metrics-listen", ":8080", "/metrics, /healthz and /readyz; plain http")
	f.StringVar(&o.webhookSecret, "webhook-secret", "attache-webhook-cert", "Secret of the webhook's certificate, which this program rotates")
	f.StringVar(&o.webhookCertDir, "webhook-cert-dir", "", "folder with tls.crt and tls.key that something else rotates, such as cert-manager; then --webhook-secret is unused")
	f.StringVar(&o.webhookConfiguration, "webhook-configuration", "attache", "name of the mutating and of the validating webhook configuration, whose caBundle this program sets")
	f.StringSliceVar(&o.webhookNames, "webhook-names", nil, "further DNS names of the webhook's certificate, for an API server that reaches it by URL")
	f.BoolVar(&o.trustBundle, "cluster-trust-bundle", false, "publish the roots of the sidecars' port as ClusterTrustBundle attache.dev:control:roots, too (Kubernetes 1.37)")
	f.StringVar(&o.caSecret, "ca-secret", "attache-ca", "Secret of the authority of the trust domain")
	f.StringVar(&o.caSource, "ca-source", caSecret, "who has the authority of the X.509-SVIDs: secret, or spire: an intermediate one of a SPIRE server")
	f.StringVar(&o.spireSocket, "spire-socket", "unix:///run/spire/sockets/agent.sock", "SPIFFE Workload API, for --ca-source spire")
	f.StringVar(&o.spireServer, "spire-server", "", "HOST:PORT of the SPIRE server, for --ca-source spire")
	f.StringVar(&o.defaults, "defaults", "", "file with the AttacheConfig that the leader applies at its start; its audit.redact holds for this replica's records, too")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "let one replica at a time write status")
	o.recordOptions.flags(f)
	f.DurationVar(&o.drain, "drain", 10*time.Second, "how long to keep serving after SIGTERM, until no endpoint names this replica")
}

// check refuses what cannot work, before anything is started.
func (o *options) check() error {
	bad := func(flag, format string, args ...any) error {
		return fmt.Errorf("%w: --%s %s", errUsage, flag, fmt.Sprintf(format, args...))
	}
	if len(o.roles) == 0 {
		return bad("roles", "is empty; name some of %s", strings.Join(roleNames(), ", "))
	}
	for _, r := range o.roles {
		if !slices.Contains(roleNames(), r) {
			return bad("roles", "has %q; must be of %s", r, strings.Join(roleNames(), ", "))
		}
	}
	if o.namespace == "" {
		return bad("namespace", "is missing; set it, or $POD_NAMESPACE")
	}
	if o.has("webhook") && o.image == "" {
		return bad("sidecar-image", "is missing; name the image that pods get, best as NAME@sha256:DIGEST")
	}
	switch o.caSource {
	case "", caSecret:
	case caSPIRE:
		if o.spireServer == "" {
			return bad("spire-server", "is missing; --ca-source spire needs the HOST:PORT of the SPIRE server")
		}
	default:
		return bad("ca-source", "is %q; must be %s or %s", o.caSource, caSecret, caSPIRE)
	}
	for _, l := range []struct{ flag, addr string }{
		{"api-listen", o.apiListen}, {"webhook-listen", o.webhookListen},
		{"discovery-listen", o.discoveryListen}, {"relay-listen", o.relayListen}, {"metrics-listen", o.metricsListen},
	} {
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			return bad(l.flag, "is %q; must be HOST:PORT or :PORT", l.addr)
		}
	}
	if o.relayRate < 1 || o.relayRate > maxRelayRate {
		return bad("relay-rate", "is %d; must be 1 to %d", o.relayRate, maxRelayRate)
	}
	if err := o.recordOptions.check(o.has); err != nil {
		return err
	}
	if o.drain < 0 || o.drain > 5*time.Minute {
		return bad("drain", "is %s; must be 0 to 5m", o.drain)
	}
	return nil
}

func (o *options) has(role string) bool { return slices.Contains(o.roles, role) }

func serveCommand(g *global) *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use: "serve", Short: "Run the control plane, or some of its roles", Args: cobra.NoArgs,
		Example: "  attache-control serve --roles webhook,issuer --sidecar-image registry.example/attache-sidecar@sha256:…",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			log, err := g.logger(c.ErrOrStderr())
			if err != nil {
				return err
			}
			return serve(c.Context(), g, *o, log)
		},
	}
	o.flags(c.Flags())
	// Completion of --roles by name.
	_ = c.RegisterFlagCompletionFunc("roles", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return roleNames(), cobra.ShellCompDirectiveNoFileComp
	})
	return c
}
