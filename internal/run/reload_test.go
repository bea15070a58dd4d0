package run

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
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
