// Package chain makes records tamper-evident: a hash chain for each start of a
// producer, and numbered, chained and signed checkpoints over the heads of all
// chains. It is pure: it reads no clock, file or network.
package chain

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

// Hash is a SHA-256 digest: the head of a chain, a leaf, a root.
type Hash [sha256.Size]byte

// TextSize is the length of [Hash.String] in bytes.
const TextSize = 43

// firstPrefix separates the beginning of a chain from every other digest.
const firstPrefix = "attache.audit.chain/v1\n"

// First returns what the first line of an epoch is chained to.
func First(epoch string) Hash { return sha256.Sum256([]byte(firstPrefix + epoch)) }

// Next returns the head after one more line: SHA-256 over the head before it
// and the line's JSON text, byte for byte as it was written.
func Next(prev Hash, json []byte) Hash {
	h := sha256.New()
	h.Write(prev[:])
	h.Write(json)
	var next Hash
	h.Sum(next[:0])
	return next
}

// String returns h in base64url without padding, 43 characters.
func (h Hash) String() string { return string(h.Append(nil)) }

// Append appends what String returns.
func (h Hash) Append(b []byte) []byte { return base64.RawURLEncoding.AppendEncode(b, h[:]) }

// ParseHash reads what [Hash.String] wrote. Other spellings of the same bits
// are refused, so that a text stands for one hash and a hash for one text.
func ParseHash[T ~string | ~[]byte](text T) (Hash, error) {
	var h Hash
	if len(text) != TextSize {
		return h, fmt.Errorf("hash of a chain: has %d characters; must have %d", len(text), TextSize)
	}
	n, err := base64.RawURLEncoding.Strict().Decode(h[:], []byte(text))
	if err != nil || n != len(h) {
		return Hash{}, fmt.Errorf("hash of a chain: %q is not base64url of 32 bytes", string(text))
	}
	return h, nil
}
