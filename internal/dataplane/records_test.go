package dataplane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

// TestSecretsOfSinksAreHidden: the sandbox hides what KeyFiles lists, so that no
// agent reads a collector's token or the key that we present.
func TestSecretsOfSinksAreHidden(t *testing.T) {
	b := &api.Bundle{}
	b.Config.Spec.Audit.Sinks = []v1alpha1.AuditSink{{
		Type: api.SinkOTLP, TLS: v1alpha1.SinkTLS{CertFile: "/c", KeyFile: "/k"}, HeadersFrom: []v1alpha1.SinkHeader{{Name: "authorization", File: "/token"}},
	}}
	got := KeyFiles(b)
	for _, want := range []string{"/k", "/token"} {
		if !slices.Contains(got, want) {
			t.Errorf("%v does not hide %s", got, want)
		}
	}
}

func TestHeaderFiles(t *testing.T) {
	for text, want := range map[string]string{
		"Bearer x\n":    "Bearer x",
		"":              "must hold one line",
		"a\nb\n":        "must hold one line",
		"a\r\nX: y\r\n": "must hold one line",
	} {
		path := filepath.Join(t.TempDir(), "h")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := readHeader(path)
		if err != nil {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "Bearer") {
				t.Errorf("%q: %v, want %s", text, err, want)
			}
			continue
		}
		if v.Reveal() != want {
			t.Errorf("%q is read as another value", text)
		}
	}
	if _, err := readHeader(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there gives a header")
	}
}

// TestSinkPresentsTheSVID: each handshake asks for the SVID of then, and an
// authority that is not one is told.
func TestSinkPresentsTheSVID(t *testing.T) {
	iss, err := issuer.New(t.Context(), issuer.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("attache.local"), URL: "https://issuer.invalid"})
	if err != nil {
		t.Fatal(err)
	}
	w := &identity.Workload{ID: spiffeid.RequireFromString("spiffe://attache.local/agent/a")}
	svid := SVIDOf(iss, func() *identity.Workload { return w })
	c, err := SinkTLS(&v1alpha1.SinkTLS{SVID: true}, api.SinkGRPC, "collector.example.com:4317", svid)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.GetClientCertificate(nil)
	if err != nil || cert.Leaf.URIs[0].String() != w.ID.String() || c.ServerName != "collector.example.com" {
		t.Errorf("%v presents %+v to %s", err, cert, c.ServerName)
	}
	if _, err := SinkTLS(&v1alpha1.SinkTLS{CABundle: "no certificate"}, api.SinkGRPC, "c:1", svid); err == nil {
		t.Error("a bundle without a certificate passes, and the system's roots would count")
	}
}
