package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
)

// Binding ties a certificate request to the token and the instance that it is
// sent with: it is the request's common name, which the request's signature
// covers. PKCS #10 has no nonce; so a request that somebody saw is worth
// nothing with another token.
func Binding(token, instance string) string {
	h := sha256.New()
	h.Write([]byte("attache attestation\x00" + instance + "\x00"))
	h.Write([]byte(token))
	return hex.EncodeToString(h.Sum(nil))
}
