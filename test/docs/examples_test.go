package docs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/policy"
)

// Every folder of examples loads and compiles as it stands.
func TestExamples(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(root, "examples", "*"))
	if err != nil {
		t.Fatal(err)
	}
	loaded := 0
	for _, dir := range dirs {
		if i, err := os.Stat(dir); err != nil || !i.IsDir() {
			continue
		}
		loaded++
		t.Run(filepath.Base(dir), func(t *testing.T) {
			place := api.PlaceRun
			if filepath.Base(dir) == "kubernetes" { // it has Secrets: see TestClusterExample
				place = api.PlaceReview
			}
			b, err := api.LoadFor(place, withAuthority(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := policy.Compile(b); err != nil {
				t.Fatal(err)
			}
			if len(b.Policies) == 0 || len(b.Providers) == 0 {
				t.Errorf("got %d policies and %d providers, want some", len(b.Policies), len(b.Providers))
			}
		})
	}
	if loaded < 5 {
		t.Errorf("found %d examples only", loaded)
	}
}

// withAuthority copies an example to where the certificate that `make
// quickstart` writes stands at the path that the documents name.
func withAuthority(t *testing.T, dir string) string {
	t.Helper()
	tmp := t.TempDir()
	to := filepath.Join(tmp, "examples", filepath.Base(dir))
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	files := filepath.Join(tmp, ".cache", "quickstart")
	if err := os.MkdirAll(files, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(files, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}
