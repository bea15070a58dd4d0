package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/audit/chain"
)

// What a producer is.
const (
	KindSidecar = "sidecar"
	KindRun     = "run"
	KindControl = "control"
)

// Signature is what a signer says of a text.
type Signature struct {
	Value []byte // ECDSA (ASN.1) over SHA-256, or Ed25519
	KeyID string
	// Certificates are PEM blocks, the signer's first: its X.509-SVID or,
	// where it has none, its public key.
	Certificates string
}

// CloseText is what the signature of an epoch.close is over: last is its own
// sequence, head the chain's value before it.
func CloseText(epoch string, last uint64, head chain.Hash) []byte {
	return []byte("attache.audit.close/v1\n" + epoch + "\n" + strconv.FormatUint(last, 10) + "\n" + head.String())
}

// maxField is what an event's field holds, in bytes.
const maxField = 2048

// closeFields tells where the epoch ends, signed if there is a signer. An epoch
// that cannot be signed is closed all the same, and says why. The caller holds
// s.mu, with nothing left to write before the close.
func (s *Spool) closeFields(f map[string]string) map[string]string {
	last := s.seq + 1
	f["last"], f["head"] = utoa(last), s.head.String()
	if s.opts.Signer == nil {
		return f
	}
	sig, err := s.opts.Signer(CloseText(s.epoch, last, s.head))
	if err != nil {
		s.opts.Logger.Error("the end of the audit epoch is not signed", "error", err)
		f["unsigned"] = err.Error()
		return f
	}
	own, issuers := sig.Certificates, ""
	if block, rest := pem.Decode([]byte(own)); block != nil && len(own) > maxField {
		own, issuers = string(pem.EncodeToMemory(block)), strings.TrimSpace(string(rest))
	}
	f["signature"], f["key_id"], f["certificate"] = base64.RawURLEncoding.EncodeToString(sig.Value), sig.KeyID, own
	if issuers != "" && len(issuers) <= maxField {
		f["issuers"] = issuers
	}
	return f
}

// errSignature is matched by a signature that does not hold.
var errSignature = errors.New("signature does not hold")

// VerifyClose checks the signature that an epoch.close carries and returns the
// key that made it, with its certificate if it has one. Whether that key is to
// be trusted is the caller's to say. A close without a signature gives nil.
func VerifyClose(r *Record) (crypto.PublicKey, *x509.Certificate, error) {
	if r.Event == nil || r.Event.Fields["signature"] == "" {
		return nil, nil, nil
	}
	f := r.Event.Fields
	head, err := chain.ParseHash(f["head"])
	if err != nil {
		return nil, nil, err
	}
	if f["last"] != utoa(r.Sequence) {
		return nil, nil, fmt.Errorf("%w: it closes sequence %s and stands at %d", errSignature, Safe(f["last"]), r.Sequence)
	}
	value, err := base64.RawURLEncoding.DecodeString(f["signature"])
	if err != nil {
		return nil, nil, fmt.Errorf("%w: it is not base64url", errSignature)
	}
	key, cert, err := publicKey(f["certificate"])
	if err != nil {
		return nil, nil, err
	}
	text := CloseText(r.Epoch, r.Sequence, head)
	digest := sha256.Sum256(text)
	ok := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest[:], value)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, text, value)
	}
	if !ok {
		return nil, nil, fmt.Errorf("%w under key %s", errSignature, Safe(f["key_id"]))
	}
	return key, cert, nil
}

func publicKey(text string) (crypto.PublicKey, *x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, nil, fmt.Errorf("%w: no key or certificate in PEM", errSignature)
	}
	if block.Type == "PUBLIC KEY" {
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		return k, nil, err
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errSignature, err)
	}
	return c.PublicKey, c, nil
}

// Signer returns a signer by key, which is ECDSA or Ed25519, with what it says
// of itself in certificates (PEM); empty: its public key.
func Signer(key crypto.Signer, certificates string) func(text []byte) (Signature, error) {
	return func(text []byte) (Signature, error) {
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return Signature{}, err
		}
		var value []byte
		if _, ok := key.Public().(ed25519.PublicKey); ok {
			value, err = key.Sign(nil, text, crypto.Hash(0))
		} else {
			digest := sha256.Sum256(text)
			value, err = key.Sign(nil, digest[:], crypto.SHA256)
		}
		if err != nil {
			return Signature{}, fmt.Errorf("sign: %w", err)
		}
		id := sha256.Sum256(spki)
		if certificates == "" {
			certificates = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
		}
		return Signature{value, hex.EncodeToString(id[:]), certificates}, nil
	}
}

// producerName is the file that holds the id of a spool whose producer has
// none of its own.
const producerName = "producer"

// ownProducer returns the spool's own id, made at its first start. Where it
// cannot be kept, the id lasts as long as the process.
func (s *Spool) ownProducer() string {
	path := filepath.Join(s.opts.Dir, producerName)
	b, err := os.ReadFile(path) //nolint:gosec // our own directory
	if id := strings.TrimSpace(string(b)); err == nil && validID(id) {
		return id
	}
	id := randomHex()
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		s.opts.Logger.Warn("the audit spool's id cannot be kept", "error", err)
	}
	return id
}
