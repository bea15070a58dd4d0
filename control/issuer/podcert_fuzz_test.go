package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	certsv1 "k8s.io/api/certificates/v1"
)

// FuzzReadRequest: whatever is in a request for a pod's certificate, a key that
// is taken is on P-256 and has signed it.
func FuzzReadRequest(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "")
	f.Add(good[:len(good)-1], "")
	f.Add([]byte{}, "example.com/a")
	f.Fuzz(func(t *testing.T, csr []byte, annotation string) {
		q := &certsv1.PodCertificateRequest{Spec: certsv1.PodCertificateRequestSpec{StubPKCS10Request: csr}}
		if annotation != "" {
			q.Spec.UnverifiedUserAnnotations = map[string]string{annotation: ""}
		}
		pub, id, err := readRequest(q)
		if err != nil {
			if reasonOf(err).outcome() != outcomeRefused {
				t.Fatalf("asks to come again: %v", err)
			}
			return
		}
		r, err := x509.ParseCertificateRequest(csr)
		if err != nil || r.CheckSignature() != nil || pub.Curve != elliptic.P256() || len(id) != 64 || annotation != "" {
			t.Fatalf("took %x with %q", csr, annotation)
		}
	})
}
