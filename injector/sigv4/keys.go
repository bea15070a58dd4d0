package sigv4

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"math/big"
	"slices"
	"sync"
)

// maxKeys bounds each cache of derived keys; the oldest goes first.
const maxKeys = 512

// key signs strings. Implementations of one request are used by one goroutine.
type key interface {
	// sign appends the signature of sts, in hex, to dst.
	sign(dst, sts []byte) ([]byte, error)
}

// hmacKey is a derived v4 key. It is not safe for concurrent use.
type hmacKey struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

func newHMACKey(derived []byte) *hmacKey { return &hmacKey{mac: hmac.New(sha256.New, derived)} }

func (k *hmacKey) sign(dst, sts []byte) ([]byte, error) {
	k.mac.Reset()
	k.mac.Write(sts)
	return hex.AppendEncode(dst, k.mac.Sum(k.sum[:0])), nil
}

func deriveV4(secretKey, day, region, service string) []byte {
	k := []byte("AWS4" + secretKey)
	for _, part := range []string{day, region, service, terminator} {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(part))
		k = m.Sum(nil)
	}
	return k
}

// maxV4ASignature is the length, in hex, of the longest DER signature of P-256.
const maxV4ASignature = 144

// v4aKey is a derived SigV4a key. It is safe for concurrent use.
type v4aKey struct{ private *ecdsa.PrivateKey }

func (k *v4aKey) sign(dst, sts []byte) ([]byte, error) {
	sum := sha256.Sum256(sts)
	der, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	if err != nil {
		return nil, err
	}
	return hex.AppendEncode(dst, der), nil
}

// deriveV4A derives the P-256 key of SigV4a from a key pair: NIST SP 800-108
// section 4.1 (KDF in counter mode, HMAC-SHA256), label the algorithm, context
// the access key id and a counter that grows until the candidate is at most
// n-2; the key is the candidate plus one (FIPS 186-4 appendix B.4.2).
func deriveV4A(accessKeyID, secretKey string) (*v4aKey, error) {
	curve := elliptic.P256()
	most := new(big.Int).Sub(curve.Params().N, big.NewInt(2))
	for counter := 1; counter <= 0xff; counter++ {
		// One block of SHA-256 is all of the 256 bits: the KDF's own counter is 1.
		m := hmac.New(sha256.New, []byte("AWS4A"+secretKey))
		m.Write([]byte{0, 0, 0, 1})
		m.Write([]byte(V4A))
		m.Write([]byte{0})
		m.Write([]byte(accessKeyID))
		m.Write([]byte{byte(counter)})
		m.Write(binary.BigEndian.AppendUint32(nil, sha256.Size*8))
		candidate := new(big.Int).SetBytes(m.Sum(nil))
		if candidate.Cmp(most) > 0 {
			continue
		}
		d := candidate.Add(candidate, big.NewInt(1)).FillBytes(make([]byte, sha256.Size))
		private, err := ecdsa.ParseRawPrivateKey(curve, d)
		if err != nil {
			return nil, err
		}
		return &v4aKey{private}, nil
	}
	return nil, errors.New("no candidate is below the order of the curve")
}

// cacheKey names a derived key without holding the secret.
type cacheKey struct {
	accessKeyID     string
	secret          [sha256.Size]byte
	region, service string
}

func newCacheKey(c Credentials, region, service string) cacheKey {
	return cacheKey{c.AccessKeyID, sha256.Sum256([]byte(c.SecretAccessKey.Reveal())), region, service}
}

// cache is a bounded map of derived keys.
type cache[V any] struct {
	mu    sync.Mutex // guards the rest
	m     map[cacheKey]V
	order []cacheKey // by age
}

func (c *cache[V]) get(k cacheKey, derive func() V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.m[k]; ok {
		return v
	}
	if c.m == nil {
		c.m = make(map[cacheKey]V)
	}
	if len(c.order) >= maxKeys {
		delete(c.m, c.order[0])
		c.order = slices.Delete(c.order, 0, 1)
	}
	v := derive()
	c.m[k] = v
	c.order = append(c.order, k)
	return v
}

func (c *cache[V]) forget(accessKeyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order = slices.DeleteFunc(c.order, func(k cacheKey) bool {
		if k.accessKeyID != accessKeyID {
			return false
		}
		delete(c.m, k)
		return true
	})
}
