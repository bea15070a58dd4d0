package run

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
)

// TestLaterKeyFileIsRefused: the sandbox hides what the documents named at the
// start. A key file that an edit names is readable by the agent.
func TestLaterKeyFileIsRefused(t *testing.T) {
	bundle := func(file string) *api.Bundle {
		return &api.Bundle{Providers: []v1alpha1.CredentialProvider{{
			Metadata: v1alpha1.ObjectMeta{Name: "p"},
			Spec:     v1alpha1.CredentialProviderSpec{APIKey: &v1alpha1.APIKey{File: file}},
		}}}
	}
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	dir := t.TempDir()
	p := &plane{o: &Options{}, first: bundle(dir + "/key")}
	if _, err := p.minters(bundle(dir + "/key")); err != nil {
		t.Errorf("the file of the start: %v", err)
	}
	if _, err := p.minters(bundle(dir + "/other")); err == nil || !strings.Contains(err.Error(), "hidden from the agent at the start only") {
		t.Errorf("another file: got %v, want a refusal", err)
	}
	if hide := (&Options{State: "/state"}).hidden(bundle(dir + "/key")); len(hide) != 2 || hide[1] != dir+"/key" {
		t.Errorf("hidden are %q", hide)
	}
}

// TestReloadMeanwhile: a call that was decided by the documents before an edit,
// and perhaps for a destination that the provider lists no more, gets no
// credential of the edited provider.
func TestReloadMeanwhile(t *testing.T) {
	key := t.TempDir() + "/key"
	if err := os.WriteFile(key, []byte("of-the-new-destination"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &api.Bundle{Generations: map[string]string{"p": "after"}, Providers: []v1alpha1.CredentialProvider{{
		Metadata: v1alpha1.ObjectMeta{Name: "p"},
		Spec:     v1alpha1.CredentialProviderSpec{APIKey: &v1alpha1.APIKey{File: key}},
	}}}
	p := &plane{o: &Options{}, first: b}
	minters, err := p.minters(b)
	if err != nil {
		t.Fatal(err)
	}
	r := minting.NewRouter(minters)
	if _, err := r.Mint(t.Context(), minting.Request{Provider: "p", Generation: "after"}, minting.Evidence{}); err != nil {
		t.Errorf("decided after the edit: %v", err)
	}
	c, err := r.Mint(t.Context(), minting.Request{Provider: "p", Generation: "before"}, minting.Evidence{})
	if !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("decided before the edit: got %v, %v; want ErrUnavailable", c.Handle, err)
	}
}
