package broker_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/test/cluster"
)

// The broker reads the Secrets that it was granted, by name, and no others; a
// changed one is used at once.
func TestSecretsOfACluster(t *testing.T) {
	env := cluster.API(t)
	admin, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	ns := env.Namespace(t, nil)
	put := func(name string, typ corev1.SecretType, data map[string][]byte) {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: typ, Data: data}
		if _, err := admin.CoreV1().Secrets(ns).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put("granted", corev1.SecretTypeOpaque, map[string][]byte{"key": []byte("first")})
	put("kept", corev1.SecretTypeOpaque, map[string][]byte{"key": []byte("not yours")})
	put("helm", "helm.sh/release.v1", map[string][]byte{"key": []byte("values")})
	put("own", corev1.SecretTypeOpaque, map[string][]byte{"key": []byte("signing key")})
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "roots"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}, ResourceNames: []string{"granted", "helm", "own", "gone"}}}}
	if _, err := admin.RbacV1().Roles(ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bind := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "roots"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "roots"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "broker-" + ns, APIGroup: rbacv1.GroupName}}}
	if _, err := admin.RbacV1().RoleBindings(ns).Create(t.Context(), bind, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config, err := env.User("broker-" + ns)
	if err != nil {
		t.Fatal(err)
	}
	user, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	b := broker.Cluster{Client: user.CoreV1(), Own: []string{ns + "/own"}}
	v, err := b.Read(t.Context(), ns, "granted", "key")
	if err != nil || v.Reveal() != "first" {
		t.Fatalf("granted: %v", err)
	}
	if _, err := admin.CoreV1().Secrets(ns).Patch(t.Context(), "granted", "application/merge-patch+json", []byte(`{"stringData":{"key":"second"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if v, err = b.Read(t.Context(), ns, "granted", "key"); err != nil || v.Reveal() != "second" {
		t.Errorf("a changed root: %v", err)
	}
	for name, c := range map[string]struct{ name, key, want string }{
		"not granted":      {"kept", "key", "broker.secrets"},
		"missing":          {"gone", "key", "does not exist"},
		"no such key":      {"granted", "other", `no key "other"`},
		"a release":        {"helm", "key", "no root of a provider"},
		"our own":          {"own", "key", "the control plane's own"},
		"another's by dot": {"../kept", "key", ""},
	} {
		v, err := b.Read(t.Context(), ns, c.name, c.key)
		if err == nil || !v.IsZero() || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "not yours") {
			t.Errorf("%s: %v", name, err)
		}
		if c.want != "" && !errors.Is(err, minting.ErrDenied) {
			t.Errorf("%s: %v is no denial", name, err)
		}
	}
	if _, err := user.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("the broker's user can list secrets: the test's role is too wide")
	}
}
