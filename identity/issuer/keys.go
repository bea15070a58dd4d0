package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// KeySource holds the keys that sign JWTs: in this process ([Memory]), in an
// ssh-agent ([SSHAgent]), or wherever else a crypto.Signer reaches (TPM, KMS,
// PKCS#11). Keys are ECDSA P-256. A signer that can only sign whole messages
// implements crypto.MessageSigner.
//
// Implementations are safe for concurrent use, honour the context's deadline,
// and answer errors that say what an operator should look at.
type KeySource interface {
	// Next returns the key that is to sign after current, which is nil at
	// first. Returning the same key again means: go on with it.
	Next(ctx context.Context, current crypto.Signer) (crypto.Signer, error)
	// Held returns the public keys that the source may sign with now or
	// later. They are published at once, before Next returns them. A source
	// that makes keys as they are needed returns none.
	Held(ctx context.Context) ([]*ecdsa.PublicKey, error)
}

// Memory makes each key in this process, where it dies. The zero value is
// ready.
type Memory struct{}

// Next implements [KeySource] with a new key at each call.
func (Memory) Next(context.Context, crypto.Signer) (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// Held implements [KeySource]: there are no keys in store.
func (Memory) Held(context.Context) ([]*ecdsa.PublicKey, error) { return nil, nil }

// publicJWK describes a public key as it stands in the JWKS. The key id is
// the RFC 7638 thumbprint: a key held outside keeps its id over restarts.
func publicJWK(pub crypto.PublicKey) (jose.JSONWebKey, error) {
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return jose.JSONWebKey{}, fmt.Errorf("signing key is a %T; must be ECDSA on P-256 (ES256)", pub)
	}
	k := jose.JSONWebKey{Key: p, Algorithm: string(jose.ES256), Use: "sig"}
	sum, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("thumbprint of signing key: %w", err)
	}
	k.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	return k, nil
}

// opaque lets go-jose sign with a key it cannot see.
type opaque struct{ k *key }

func (o opaque) Public() *jose.JSONWebKey {
	j := o.k.jwk
	return &j
}

func (o opaque) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{jose.ES256} }

// SignPayload implements jose.OpaqueSigner: R and S as two 32-octet numbers,
// RFC 7518 section 3.4.
func (o opaque) SignPayload(payload []byte, alg jose.SignatureAlgorithm) ([]byte, error) {
	if alg != jose.ES256 {
		return nil, fmt.Errorf("algorithm %q; must be ES256", alg)
	}
	der, err := crypto.SignMessage(o.k.signer, rand.Reader, payload, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	r, s, err := parseDER(der)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

var errNoSignature = errors.New("signer returned no ECDSA P-256 signature")
