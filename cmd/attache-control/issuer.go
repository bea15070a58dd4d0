package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	certsv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/issuer/spire"
	idissuer "github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/webhook/inject"
)

// identityParts are what roles share of the identity of pods. Each is made by
// the first role that needs it.
type identityParts struct {
	once     sync.Mutex // guards the three below
	keysOf   *issuer.Keys
	setOf    *issuer.Set
	serverOf *issuer.Server
	selfOf   *issuer.Self

	// What policy says, set by the role that compiles it before anything is
	// served; nil says nothing, and then no JWT-SVID is issued.
	audiences func(podUID string) []string
	clientIDs func(podUID string) []string
	cluster   func() *v1alpha1.ClusterConfig
	frozen    func(namespace, label string) bool
}

// live is a client that reads the API server, not a cache.
func (h *host) live() (client.Client, error) {
	return client.New(h.mgr.GetConfig(), client.Options{Scheme: scheme.Scheme, Mapper: h.mgr.GetRESTMapper()})
}

// keys are the control plane's, kept up to date from now on.
func (h *host) keys(ctx context.Context) (*issuer.Keys, error) {
	h.once.Lock()
	defer h.once.Unlock()
	if h.keysOf != nil {
		return h.keysOf, nil
	}
	c, err := h.live()
	if err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(h.trustDomain)
	if err != nil {
		return nil, fmt.Errorf("%w: --trust-domain is %q: %w", errUsage, h.trustDomain, err)
	}
	u, err := h.issuerAt(ctx, c)
	if err != nil {
		return nil, err
	}
	bundle := ""
	if h.trustBundle {
		bundle = issuer.DefaultSigner
	}
	up, err := h.upstream(ctx, td)
	if err != nil {
		return nil, err
	}
	k, err := issuer.OpenKeys(ctx, issuer.KeysConfig{
		TrustBundle: bundle, Client: c, Namespace: h.namespace, Secret: h.caSecret, TrustDomain: td, URL: u, Upstream: up, Changed: h.trail.Keys, Metrics: h.registry, Log: h.log,
	})
	if err != nil {
		return nil, err
	}
	h.keysOf = k
	return k, h.mgr.Add(k)
}

// upstream is the authority of --ca-source; nil is the Secret's own.
func (h *host) upstream(ctx context.Context, td spiffeid.TrustDomain) (issuer.Upstream, error) {
	if h.caSource != caSPIRE {
		return nil, nil
	}
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := spire.Open(open, spire.Config{Socket: h.spireSocket, Server: h.spireServer, TrustDomain: td, Metrics: h.registry, Log: h.log})
	if err != nil {
		return nil, err
	}
	return a, h.run(func(ctx context.Context) error { return errors.Join(a.Start(ctx), a.Close()) })
}

// issuerAt is the issuer's URL: the flag's, else that of the AttacheConfig,
// else the Service.
func (h *host) issuerAt(ctx context.Context, c client.Client) (string, error) {
	if h.issuerURL != "" {
		return h.issuerURL, nil
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(crd.GroupVersion().WithKind(v1alpha1.KindAttacheConfig))
	err := c.Get(ctx, types.NamespacedName{Name: "default"}, u)
	if err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
		return "", fmt.Errorf("read AttacheConfig default: %w", err)
	}
	if s, ok, _ := unstructured.NestedString(u.Object, "spec", "cluster", "issuer", "url"); ok && s != "" {
		return s, nil
	}
	return fmt.Sprintf("https://%s.%s.svc:8444", h.service, h.namespace), nil
}

// templates are the accepted ones.
func (h *host) templates() (*issuer.Set, error) {
	h.once.Lock()
	defer h.once.Unlock()
	if h.setOf != nil {
		return h.setOf, nil
	}
	c, err := h.live()
	if err != nil {
		return nil, err
	}
	s, err := issuer.NewSet(c, h.namespace, func(pod map[string]any) (string, error) {
		t, err := inject.TemplateOf(pod)
		return t.Hash, err
	}, h.log)
	if err != nil {
		return nil, err
	}
	s.Config(h.clusterConfig)
	h.setOf = s
	return s, nil
}

func (h *host) clusterConfig() *v1alpha1.ClusterConfig {
	if h.cluster != nil {
		if c := h.cluster(); c != nil {
			return c
		}
	}
	return &v1alpha1.ClusterConfig{}
}

// sidecarParts are the names that package inject gives.
func sidecarParts() issuer.Names {
	return issuer.Names{
		Container: inject.SidecarName, Redirect: inject.RedirectName, UID: inject.DefaultUID,
		Token: inject.TokenVolume, Private: inject.PrivateVolumes(),
	}
}

// identity is the server of pods' identities; roles that only describe pods
// use it, too.
func (h *host) identity(ctx context.Context) (*issuer.Server, error) {
	k, err := h.keys(ctx)
	if err != nil {
		return nil, err
	}
	set, err := h.templates()
	if err != nil {
		return nil, err
	}
	c, err := h.live()
	if err != nil {
		return nil, err
	}
	h.once.Lock()
	defer h.once.Unlock()
	if h.serverOf != nil {
		return h.serverOf, nil
	}
	h.serverOf, err = issuer.New(issuer.Config{
		Issuer: k.Issuer(), Client: c, Cache: h.mgr.GetCache(), Namespace: h.namespace, Templates: set, Sidecar: sidecarParts(),
		Audiences: func(uid string) []string { return ask(h.audiences, uid) },
		ClientIDs: func(uid string) []string { return ask(h.clientIDs, uid) },
		Cluster:   h.clusterConfig,
		Frozen:    func(ns, label string) bool { return h.frozen == nil || h.frozen(ns, label) },
		Record:    h.trail.Identity,
		Metrics:   h.registry, Log: h.log,
	})
	return h.serverOf, err
}

func ask(f func(string) []string, uid string) []string {
	if f == nil {
		return nil
	}
	return f(uid)
}

// podCertificates reports whether the API server has pod certificates
// (certificates.k8s.io/v1, Kubernetes 1.37).
func (h *host) podCertificates() bool {
	gvk := certsv1.SchemeGroupVersion.WithKind("PodCertificateRequest")
	_, err := h.mgr.GetRESTMapper().RESTMapping(gvk.GroupKind(), gvk.Version)
	return err == nil
}

// names are those of the Service, by which this program is reached.
func (h *host) names() []string {
	n := h.service + "." + h.namespace + ".svc"
	return append([]string{n, h.service + "." + h.namespace, h.service, n + ".cluster.local"}, h.webhookNames...)
}

// useAPITLS gives the sidecars' port its certificate, whichever role serves
// there first.
func (h *host) useAPITLS(ctx context.Context) error {
	k, err := h.keys(ctx)
	if err != nil {
		return err
	}
	h.apiTLS = k.ServerTLS(h.names()...)
	return nil
}

// addIssuer attests pods, issues their identities, and serves discovery.
func addIssuer(ctx context.Context, h *host) error {
	k, err := h.keys(ctx)
	if err != nil {
		return err
	}
	s, err := h.identity(ctx)
	if err != nil {
		return err
	}
	if _, _, err := h.policies(ctx); err != nil { // which audiences a pod may ask for
		return err
	}
	if err := h.useAPITLS(ctx); err != nil {
		return err
	}
	h.serveAPI(s.Register)
	if err := h.mgr.Add(s); err != nil {
		return err
	}
	if err := h.handOut(ctx); err != nil {
		return err
	}
	if h.podCertificates() {
		if err := builder.ControllerManagedBy(h.mgr).For(&certsv1.PodCertificateRequest{}).
			WithOptions(controller.Options{SkipNameValidation: new(true)}). // tests have several replicas in a process
			Complete(s.Signer()); err != nil {
			return fmt.Errorf("sign pod certificates: %w", err)
		}
	}
	hosts := h.names()
	if u, err := url.Parse(k.Issuer().URL()); err == nil && !slices.Contains(hosts, u.Hostname()) {
		hosts = append(hosts, u.Hostname())
	}
	return h.run(func(ctx context.Context) error {
		if err := serveHTTP(ctx, h.discoveryListen, k.WebTLS(hosts...), newServer(k.Issuer().Handler(), h.log)); err != nil {
			return fmt.Errorf("discovery: %w", err)
		}
		return nil
	})
}

// templatesCommand shows and retires templates.
func templatesCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "templates", Short: "The sidecars' templates that are attested", Args: cobra.NoArgs}
	namespace := c.PersistentFlags().String("namespace", home(), "namespace of the control plane")
	open := func() (client.Client, *issuer.Set, error) {
		config, err := g.restConfig()
		if err != nil {
			return nil, nil, err
		}
		api, err := client.New(config, client.Options{Scheme: scheme.Scheme})
		if err != nil {
			return nil, nil, fmt.Errorf("reach the cluster: %w", err)
		}
		s, err := issuer.NewSet(api, *namespace, func(map[string]any) (string, error) { return "", nil }, nil)
		return api, s, err
	}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List templates with the number of pods that have them", Args: cobra.NoArgs,
		Example: "  attache-control templates list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, s, err := open()
			if err != nil {
				return err
			}
			return listTemplates(cmd.Context(), g, cmd.OutOrStdout(), api, s, *namespace)
		},
	}, &cobra.Command{
		Use: "retire NAME", Short: "Refuse identities to pods of a template and image from now on", Args: cobra.ExactArgs(1),
		Long: `Refuse identities to pods of a template and image from now on: at their next
token or renewal, within half an hour at most. Retire one when templates list
shows no pods of it, or when its image must not run any more.`,
		Example: "  attache-control templates retire 3f0c….1a2b…",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, s, err := open()
			if err != nil {
				return err
			}
			ok, err := s.Retire(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("retire %s: %w", args[0], err)
			}
			if !ok {
				return fmt.Errorf("%s is not accepted; templates list shows the names", args[0])
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is retired\n", args[0])
			return err
		},
	})
	return c
}

// templateLine is one line of templates list.
type templateLine struct {
	Name string `json:"name"`
	issuer.Accepted
	Pods int `json:"pods"`
}

func listTemplates(ctx context.Context, g *global, w io.Writer, c client.Client, s *issuer.Set, namespace string) error {
	set, err := s.List(ctx)
	if err != nil {
		return fmt.Errorf("read templates: %w", err)
	}
	pods, err := issuer.List(ctx, c, namespace)
	if err != nil {
		return fmt.Errorf("count pods: %w", err)
	}
	lines := make([]templateLine, len(set))
	for i, a := range set {
		lines[i].Name, lines[i].Accepted = a.Name(), a
		for _, p := range pods {
			if a.Has(p) {
				lines[i].Pods++
			}
		}
	}
	if g.output == "json" {
		return writeJSON(w, lines)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tPODS\tSTATE\tSINCE\tIMAGE")
	for _, l := range lines {
		state := "accepted"
		if l.Retired {
			state = "retired"
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", l.Name, l.Pods, state, l.Since.Format(time.RFC3339), l.Image)
	}
	return t.Flush()
}

// issuerCommand works on the issuer's keys.
func issuerCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "issuer", Short: "The issuer of the pods' identities", Args: cobra.NoArgs}
	o := &options{}
	export := &cobra.Command{
		Use: "export DIR", Short: "Write discovery and public keys for a static web host", Args: cobra.ExactArgs(1),
		Long: `Write the documents that stand below the issuer's URL: .well-known/openid-configuration
and keys. A key is in them a day before it signs: export at least every 12 hours,
and put DIR where the URL points. It reads the Secret with the keys; nothing
secret is written.`,
		Example: "  attache-control issuer export --issuer-url https://oidc.example.com/cluster-1 ./public",
		RunE: func(c *cobra.Command, args []string) error {
			return exportKeys(c.Context(), g, o, args[0], c)
		},
	}
	f := export.Flags()
	f.StringVar(&o.namespace, "namespace", home(), "namespace of the control plane")
	f.StringVar(&o.caSecret, "ca-secret", issuer.DefaultSecret, "Secret with the keys")
	f.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "trust domain of the SPIFFE IDs")
	f.StringVar(&o.issuerURL, "issuer-url", "", "URL of the issuer, as the control plane has it (required)")
	c.AddCommand(export)
	return c
}

func exportKeys(ctx context.Context, g *global, o *options, dir string, cmd *cobra.Command) error {
	if err := idissuer.CheckURL(o.issuerURL); err != nil {
		return fmt.Errorf("%w: --issuer-url: %w", errUsage, err)
	}
	td, err := spiffeid.TrustDomainFromString(o.trustDomain)
	if err != nil {
		return fmt.Errorf("%w: --trust-domain is %q: %w", errUsage, o.trustDomain, err)
	}
	config, err := g.restConfig()
	if err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	k, err := issuer.ReadKeys(ctx, issuer.KeysConfig{Client: c, Namespace: o.namespace, Secret: o.caSecret, TrustDomain: td, URL: o.issuerURL})
	if err != nil {
		return err
	}
	if err := k.Issuer().Export(ctx, dir); err != nil {
		return err
	}
	n := len(k.Issuer().Keys(ctx).Keys)
	if g.output == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"folder": dir, "issuer": o.issuerURL, "keys": n})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: discovery and %d keys for %s\n", dir, n, o.issuerURL)
	return err
}
