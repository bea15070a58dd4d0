package main

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/audit/checkpoint"
)

// namespaces answers for namespace kube-system.
type namespaces struct {
	client.Reader
	uid string
}

func (c namespaces) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	*o.(*corev1.Namespace) = corev1.Namespace{ObjectMeta: metav1.ObjectMeta{UID: types.UID(c.uid)}}
	return nil
}

// Two clusters of one trust domain do not meet at a witness; and what signs has
// the name, so that a key can be told from another's.
func TestOriginsOfClustersDiffer(t *testing.T) {
	h := &host{options: options{trustDomain: "cluster.local"}}
	a, err := h.originHere(t.Context(), namespaces{uid: "6fd0ac9f-1f3f-4d3b-8c36-0c2a3a1b5e11"})
	b, err2 := h.originHere(t.Context(), namespaces{uid: "9b1d0c55-6f04-4c57-9ac6-77f4c1d3a002"})
	if err != nil || err2 != nil || a == b || !strings.HasPrefix(a, "cluster.local/") {
		t.Fatalf("%s, %s, %v, %v", a, b, err, err2)
	}
	file := filepath.Join(t.TempDir(), "key")
	for _, name := range []string{a, b} { // the second finds the first one's key
		s, _, err := checkpoint.KeyFile(file, name)
		if err != nil || s.Name() != a {
			t.Errorf("%v, %v", s, err)
		}
	}
}

// A witness of a private authority is reached by its roots, and by no others.
func TestWitnessOfAPrivateAuthority(t *testing.T) {
	w := httptest.NewTLSServer(http.NotFoundHandler())
	defer w.Close()
	good := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(good, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(caFile string) error {
		c, err := witnessClient(caFile)
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", empty, good + ".not-there"} {
		if err := get(bad); err == nil {
			t.Errorf("%q: the witness is trusted", bad)
		}
	}
}
