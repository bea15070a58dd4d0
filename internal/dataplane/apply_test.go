package dataplane

import (
	"errors"
	"os"
	"slices"
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
	dir := t.TempDir()
	p := &Plane{cfg: Config{Bundle: bundle(dir + "/key")}}
	if _, err := p.minters(bundle(dir + "/key")); err != nil {
		t.Errorf("the file of the start: %v", err)
	}
	if _, err := p.minters(bundle(dir + "/other")); err == nil || !strings.Contains(err.Error(), "hidden from the agent at the start only") {
		t.Errorf("another file: got %v, want a refusal", err)
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
	p := &Plane{cfg: Config{Bundle: b}}
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

// bundle parses documents.
func bundle(t *testing.T, text string) *api.Bundle {
	t.Helper()
	b, err := api.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const provider = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: p}
spec:
  destinations: [{host: api.example.com}]
`

func TestWaitsForRestart(t *testing.T) {
	base := provider + "  jwt: {}\n"
	tests := []struct {
		name, text string
		want       []string
	}{
		{"nothing", base, nil},
		{"a label", strings.Replace(base, "name: p", "name: p, labels: {a: b}", 1), nil},
		{"placeholder", base + "  placeholders: [{env: K}]\n", []string{"placeholder K is made at the start"}},
		{"base URL", base + "  baseURLs: [{env: U, host: api.example.com}]\n", []string{"base URL U is made at the start"}},
		{"AWS doors", strings.Replace(base, "jwt: {}", `aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1, endpoints: [{host: api.example.com, service: s3}]}`, 1),
			[]string{"AWS environment of p is made at the start", "placeholder AWS_ACCESS_KEY_ID is made at the start", "placeholder AWS_SECRET_ACCESS_KEY is made at the start"}},
		{"settings", base + "---\napiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {trustDomain: other.example}\n", []string{"AttacheConfig is read at the start"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := waitsForRestart(bundle(t, base), bundle(t, tt.text)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
