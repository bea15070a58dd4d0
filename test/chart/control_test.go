package chart

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/attache-dev/attache/control/defaults"
)

// asControl calls as the control plane's service account.
func asControl(t *testing.T, g *guarded) *rest.Config {
	t.Helper()
	r, err := g.admin.CoreV1().ServiceAccounts(release).CreateToken(t.Context(), "attache-control", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return g.ServiceAccount(r.Status.Token)
}

// The control plane may do what its roles need, by name where RBAC can say so,
// and no more.
func TestPermissions(t *testing.T) {
	g := newGuarded(t)
	values := "broker: {secrets: [{namespace: team-a, names: [key]}]}\nguards: {enabled: false}\ncrds: {install: false}\nclusterTrustBundle: true\n"
	g.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: team-a}\n")
	text := policiesAside(render(t, values, "--no-hooks", "--api-versions", "certificates.k8s.io/v1/ClusterTrustBundle"))
	g.apply(t, text)
	c := kubernetes.NewForConfigOrDie(asControl(t, g))
	may := func(verb, group, resource, ns, name string) bool {
		resource, sub, _ := strings.Cut(resource, "/")
		r, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: verb, Group: group, Resource: resource, Subresource: sub, Namespace: ns, Name: name,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Allowed
	}
	const hooks = "admissionregistration.k8s.io"
	for _, p := range []struct{ verb, group, resource, ns, name string }{
		{"list", "", "pods", "", ""}, {"watch", "", "namespaces", "", ""}, {"list", "", "limitranges", "", ""},
		{"create", "authentication.k8s.io", "tokenreviews", "", ""},
		{"update", hooks, "mutatingwebhookconfigurations", "", "attache"},
		{"patch", hooks, "validatingadmissionpolicybindings", "", "attache-pods"},
		{"update", "", "secrets", release, "attache-ca"}, {"list", "", "secrets", release, ""},
		{"get", "", "secrets", "team-a", "key"},
		{"patch", "attache.dev", "accesspolicies/status", "", ""}, {"patch", "attache.dev", "attacheconfigs/status", "", "default"},
		{"create", "coordination.k8s.io", "leases", release, ""}, {"delete", "coordination.k8s.io", "leases", release, "attache-key-x"},
		{"create", "", "events", "team-a", ""},
		{"attest", "certificates.k8s.io", "signers", "", "attache.dev/control"},
		{"create", "events.k8s.io", "events", "", ""},
	} {
		await(t, "for the right "+p.verb+" "+p.resource, func() bool { return may(p.verb, p.group, p.resource, p.ns, p.name) })
	}
	for _, p := range []struct{ verb, group, resource, ns, name string }{
		{"get", "", "secrets", "team-a", "other"}, {"list", "", "secrets", "team-a", ""}, {"list", "", "secrets", "", ""},
		{"create", "", "secrets", release, ""}, {"update", "", "secrets", release, "other"}, {"delete", "", "secrets", release, "attache-ca"},
		{"create", "", "pods", "", ""}, {"patch", "", "pods", "", ""}, {"create", "", "pods/exec", "", ""}, {"delete", "", "pods", "", ""},
		{"update", "", "namespaces", "", ""}, {"create", "", "serviceaccounts/token", "", ""},
		{"update", hooks, "mutatingwebhookconfigurations", "", "other"}, {"create", hooks, "mutatingwebhookconfigurations", "", ""},
		{"update", hooks, "validatingadmissionpolicies", "", "attache-pods"}, {"delete", hooks, "validatingadmissionpolicies", "", "attache-pods"},
		{"create", "attache.dev", "accesspolicies", "", ""}, {"update", "attache.dev", "credentialproviders", "", ""},
		{"disable", "attache.dev", "injection", "", ""},
		{"create", "rbac.authorization.k8s.io", "clusterrolebindings", "", ""}, {"escalate", "rbac.authorization.k8s.io", "clusterroles", "", ""},
		{"impersonate", "", "users", "", ""}, {"get", "", "nodes/proxy", "", ""},
		{"attest", "certificates.k8s.io", "signers", "", "other.example/x"}, {"sign", "certificates.k8s.io", "signers", "", "attache.dev/control"},
	} {
		if may(p.verb, p.group, p.resource, p.ns, p.name) {
			t.Errorf("may %s %s/%s %s/%s", p.verb, p.group, p.resource, p.ns, p.name)
		}
	}
	// Editors and administrators of a namespace get none of our kinds: nothing
	// of the chart's is aggregated.
	roles, err := g.admin.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=attache"})
	if err != nil || len(roles.Items) < 4 {
		t.Fatalf("%d roles, %v", len(roles.Items), err)
	}
	for _, r := range roles.Items {
		for l := range r.Labels {
			if strings.Contains(l, "aggregate-to") {
				t.Errorf("%s has label %s", r.Name, l)
			}
		}
	}
}

// policiesAside leaves out what would answer every pod of the shared server.
func policiesAside(text string) string {
	var kept []string
	for _, doc := range strings.Split(text, "\n---\n") {
		if !strings.Contains(doc, "kind: MutatingWebhookConfiguration") && !strings.Contains(doc, "kind: ValidatingWebhookConfiguration") {
			kept = append(kept, doc)
		}
	}
	return strings.Join(kept, "\n---\n")
}

// With the rights that the chart gives, the leader applies the chart's
// AttacheConfig, once the kind is served, and ties to the namespace's end what
// could refuse pods.
func TestDefaults(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	values := "crds: {install: false}\nguards: {frozenLabels: [tier]}\nconfig: {cluster: {injection: {mode: explicit}}}\n"
	out := render(t, values, "--no-hooks")
	g.apply(t, policiesAside(out))
	file := filepath.Join(t.TempDir(), "default.yaml")
	text, err := g.Kubectl(ctx, "", "get", "configmap", "-n", release, "attache-defaults", "-o", `jsonpath={.data.default\.yaml}`)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	run := func() {
		t.Helper()
		if err := defaults.Run(ctx, asControl(t, g), defaults.Options{File: file, Namespace: release, Log: log}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_, _ = g.Kubectl(context.WithoutCancel(ctx), "", "delete", "attacheconfig", "default")
	})
	run()
	mode := func() string {
		out, err := g.Kubectl(ctx, "", "get", "attacheconfig", "default", "-o", "jsonpath={.spec.cluster.injection.mode},{.spec.cluster.noProxy}")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := mode(); got != "explicit," {
		t.Errorf("mode is %q", got)
	}
	// What an operator sets beside the values stays; the values' own follow.
	if _, err := g.Kubectl(ctx, "", "patch", "attacheconfig", "default", "--type=merge", "-p", `{"spec":{"cluster":{"noProxy":["x.example"]}}}`); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(text, "mode: explicit", "mode: transparent", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	run()
	if got := mode(); got != `transparent,["x.example"]` {
		t.Errorf("after a change: %q", got)
	}
	ns, err := g.admin.CoreV1().Namespaces().Get(ctx, release, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"attache-pods", "attache-pod-updates", "attache-bindings"} {
		b, err := g.admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Get(ctx, name, metav1.GetOptions{})
		if err != nil || len(b.OwnerReferences) != 1 || b.OwnerReferences[0].UID != ns.UID {
			t.Errorf("%s is owned by %v (%v)", name, b.OwnerReferences, err)
		}
	}
}
