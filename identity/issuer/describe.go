package issuer

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"
)

// Uses of the keys of a [Schedule].
const (
	UseJWT     = "jwt"     // signs JWT-SVIDs
	UseX509    = "x509"    // signs X.509-SVIDs
	UseServing = "serving" // signs the control plane's own certificates
)

// KeyInfo tells of one key of a [Schedule], and not the key.
type KeyInfo struct {
	Use       string
	ID        string    // SHA-256 of the public key, hex
	Published time.Time // verifiers can know it since
	From      time.Time // it signs from
}

// Describe lists the keys of s; none if s is nil.
func (s *Schedule) Describe() (out []KeyInfo) {
	if s == nil {
		return nil
	}
	for _, of := range []struct {
		use   string
		terms []Term
	}{{UseJWT, s.jwt}, {UseX509, s.ca}, {UseServing, s.serving}} {
		for _, t := range of.terms {
			der, err := x509.MarshalPKIXPublicKey(t.key.Public())
			if err != nil {
				continue // an ECDSA key on P-256 has an encoding
			}
			sum := sha256.Sum256(der)
			out = append(out, KeyInfo{of.use, hex.EncodeToString(sum[:]), t.published, t.from})
		}
	}
	return out
}
