package server

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// Certificates are for clusters that have them; elsewhere pods would wait for
// ever.
func TestIdentityOfPods(t *testing.T) {
	for _, tt := range []struct {
		asked string
		has   bool
		want  inject.Identity
	}{
		{"", true, ""}, {"token", true, inject.Token}, {"podCertificate", true, inject.PodCertificate}, {"podCertificate", false, ""},
	} {
		c := &v1alpha1.ClusterConfig{Injection: v1alpha1.InjectionConfig{Identity: tt.asked}}
		got, err := Fixed{Image: "registry.example/attache-sidecar@sha256:" + strings.Repeat("1", 64), PodCertificates: tt.has}.config(c, "")
		if err != nil {
			t.Fatal(err)
		}
		if got.Identity != tt.want {
			t.Errorf("%q, with pod certificates %v: %q, want %q", tt.asked, tt.has, got.Identity, tt.want)
		}
	}
	c := &v1alpha1.ClusterConfig{Injection: v1alpha1.InjectionConfig{Identity: "magic"}}
	if _, err := (Fixed{Image: "x", PodCertificates: true}).config(c, ""); err == nil || !strings.Contains(err.Error(), "must be token or podCertificate") {
		t.Errorf("got %v", err)
	}
}

// Templates of pods that have a token are those of before there was a choice.
func TestTemplatesOfTokenPodsStay(t *testing.T) {
	base := inject.Config{Image: "registry.example/attache-sidecar@sha256:" + strings.Repeat("1", 64)}
	hashes := map[inject.Identity]string{}
	for _, id := range []inject.Identity{"", inject.Token, inject.PodCertificate} {
		base.Identity = id
		list, err := base.Templates()
		if err != nil {
			t.Fatal(err)
		}
		hashes[id] = list[0].Hash
	}
	if hashes[""] != hashes[inject.Token] || hashes[""] == hashes[inject.PodCertificate] {
		t.Errorf("hashes: %v", hashes)
	}
}
