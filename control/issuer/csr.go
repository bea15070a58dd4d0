package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/subtle"
	"crypto/x509"

	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/identity/kubernetes"
)

// maxCSR bounds a certificate request; ours have some 300 bytes.
const maxCSR = 4 << 10

// request is a checked certificate request.
type request struct {
	pub *ecdsa.PublicKey
	key string // peer.KeyID of pub
}

// readCSR checks that whoever sends token and instance holds the key: the
// request's signature is by it, and covers both, so that a request seen
// elsewhere is worth nothing with another token.
func readCSR(der []byte, token, instance string) (request, error) {
	if len(der) == 0 || len(der) > maxCSR {
		return request{}, invalid(reasonCSR, "the certificate request is missing or longer than %d bytes", maxCSR)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return request{}, invalid(reasonCSR, "the certificate request is not PKCS #10")
	}
	pub, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return request{}, invalid(reasonCSR, "the key must be ECDSA on P-256")
	}
	if r.CheckSignature() != nil {
		return request{}, deny(reasonCSR, "the certificate request is not signed by its key")
	}
	want := kubernetes.Binding(token, instance)
	if subtle.ConstantTimeCompare([]byte(r.Subject.CommonName), []byte(want)) != 1 {
		return request{}, deny(reasonCSR, "the certificate request was made for another token")
	}
	return request{pub: pub, key: peer.KeyID(r.RawSubjectPublicKeyInfo)}, nil
}

// validInstance accepts 128 random bits in hex.
func validInstance(s string) bool {
	if len(s) != 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
