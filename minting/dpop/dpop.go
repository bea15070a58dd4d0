// Package dpop proves possession of a token's key (RFC 9449).
package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// NewKey returns a fresh ES256 key.
func NewKey() (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make proof key: %w", err)
	}
	return k, nil
}

// Thumbprint is the RFC 7638 SHA-256 thumbprint of key's public half,
// base64url: the jkt of RFC 9449 section 6.
func Thumbprint(key crypto.Signer) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint of proof key: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// claims of a proof, RFC 9449 section 4.2.
type claims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	URL    string `json:"htu"`
	Issued int64  `json:"iat"` // seconds
	Nonce  string `json:"nonce,omitempty"`
	Hash   string `json:"ath,omitempty"`
}

// Proof returns the DPoP header for one request. method and target are the
// request's; query and fragment of target are left out (RFC 9449 section 4.2).
// accessToken is empty at the token endpoint; nonce is empty until the server
// has given one. A proof is good for one request only.
func Proof(key crypto.Signer, method, target, accessToken, nonce string, now time.Time) (string, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return "", fmt.Errorf("dpop proof: the request's URL is not absolute")
	}
	u.RawQuery, u.Fragment, u.RawFragment, u.User, u.ForceQuery = "", "", "", nil, false
	c := claims{ID: rand.Text(), Method: method, URL: u.String(), Issued: now.Unix(), Nonce: nonce}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		c.Hash = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("dpop proof: %w", err)
	}
	opaque := cryptosigner.Opaque(key)
	algs := opaque.Algs()
	if len(algs) == 0 {
		return "", fmt.Errorf("dpop proof: a key of type %T cannot sign; use ECDSA P-256", key)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algs[0], Key: opaque},
		(&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		return "", fmt.Errorf("dpop proof: %w", err)
	}
	jws, err := signer.Sign(body)
	if err != nil {
		return "", fmt.Errorf("dpop proof: sign: %w", err)
	}
	return jws.CompactSerialize()
}

// maxNonce bounds a server's nonce; RFC 9449 section 8 asks for no more than
// visible characters.
const (
	maxNonce  = 1024
	maxNonces = 1024
)

// Nonces remembers the newest nonce of each origin (RFC 9449 section 8.2). It
// is safe for concurrent use.
type Nonces struct {
	mu  sync.Mutex // guards lru
	lru *simplelru.LRU[string, string]
}

// NewNonces returns an empty store.
func NewNonces() *Nonces {
	l, _ := simplelru.NewLRU[string, string](maxNonces, nil) // fails for sizes < 1 only
	return &Nonces{lru: l}
}

// Get returns the nonce to use for origin (scheme://host:port), or nothing.
func (n *Nonces) Get(origin string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, _ := n.lru.Get(origin)
	return s
}

// Set remembers the DPoP-Nonce field of an answer; text that is no nonce is
// ignored. It reports whether the nonce was taken.
func (n *Nonces) Set(origin, nonce string) bool {
	if nonce == "" || len(nonce) > maxNonce {
		return false
	}
	for i := range len(nonce) {
		if nonce[i] < '!' || nonce[i] > '~' || nonce[i] == '"' || nonce[i] == '\\' { // NQCHAR
			return false
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lru.Add(origin, nonce)
	return true
}
