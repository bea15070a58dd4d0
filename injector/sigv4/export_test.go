package sigv4

import (
	"crypto/ecdsa"
	"io"
	"net/http"
)

// CanonicalRequest is the text that is signed.
func CanonicalRequest(r *http.Request, p Params, payload string) (text, signed string) {
	return canonicalRequest(r, p, payload)
}

// DeriveV4A is the public half of a derived SigV4a key.
func DeriveV4A(accessKeyID, secretKey string) (*ecdsa.PublicKey, error) {
	k, err := deriveV4A(accessKeyID, secretKey)
	if err != nil {
		return nil, err
	}
	return &k.private.PublicKey, nil
}

// DecodeAll reads a chunked body.
func DecodeAll(body io.Reader, decoded int64, p Payload, trailers []string) (data []byte, got map[string]string, err error) {
	c := chunking{decoded: decoded, sigLen: 64, trailers: trailers}
	if p == PayloadV4A || p == PayloadV4ATrailer {
		c.sigLen = maxV4ASignature
	} else if p == PayloadUnsignedTrailer {
		c.sigLen = 0
	}
	d := newDecoder(body, c)
	data, err = io.ReadAll(d)
	got = map[string]string{}
	for _, t := range d.trailers {
		got[t.name] = t.value
	}
	return data, got, err
}

// KeysHeld counts the cached keys.
func (s *Signer) KeysHeld() int { return len(s.v4.m) + len(s.v4a.m) }

// ChunkSize and MaxKeys are bounds that tests go beyond.
const (
	ChunkSize = chunkSize
	MaxKeys   = maxKeys
)
