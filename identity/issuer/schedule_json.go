package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// scheduleVersion changes when an older program could not read the text.
const scheduleVersion = 1

type scheduleText struct {
	Version int        `json:"version"`
	JWT     []termText `json:"jwt"`
	CA      []termText `json:"ca"`
	Serving []termText `json:"serving"`
}

type termText struct {
	Published   time.Time `json:"published"`
	From        time.Time `json:"from"`
	Key         string    `json:"key"` // PKCS #8 in PEM
	Certificate string    `json:"certificate,omitempty"`
	Cross       string    `json:"cross,omitempty"`
}

// MarshalSecret writes s, private keys included, for a store that only the
// issuers can read. It is not called MarshalJSON, so that no logger calls it.
func (s *Schedule) MarshalSecret() ([]byte, error) {
	out := scheduleText{Version: scheduleVersion}
	for _, l := range []struct {
		from []Term
		to   *[]termText
	}{{s.jwt, &out.JWT}, {s.ca, &out.CA}, {s.serving, &out.Serving}} {
		for _, t := range l.from {
			der, err := x509.MarshalPKCS8PrivateKey(t.key)
			if err != nil {
				return nil, fmt.Errorf("issuer: encode key: %w", err)
			}
			text := termText{Published: t.published.UTC(), From: t.from.UTC(), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
			if t.cert != nil {
				text.Certificate = string(EncodePEM(t.cert))
			}
			text.Cross = string(EncodePEM(t.cross...))
			*l.to = append(*l.to, text)
		}
	}
	return json.MarshalIndent(out, "", "  ")
}

// ParseSchedule reads what [Schedule.MarshalSecret] wrote. An error holds
// nothing of the text.
func ParseSchedule(b []byte) (*Schedule, error) {
	var in scheduleText
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, errors.New("issuer: key schedule is no JSON of ours; restore it from a backup, or delete it to begin anew: all pods must then be made again")
	}
	if in.Version != scheduleVersion {
		return nil, fmt.Errorf("issuer: key schedule has version %d; this program reads %d: upgrade it", in.Version, scheduleVersion)
	}
	s := &Schedule{}
	for _, l := range []struct {
		name string
		from []termText
		to   *[]Term
		ca   bool
	}{{"jwt", in.JWT, &s.jwt, false}, {"ca", in.CA, &s.ca, true}, {"serving", in.Serving, &s.serving, true}} {
		if len(l.from) == 0 {
			return nil, fmt.Errorf("issuer: key schedule has no %s keys", l.name)
		}
		for i, text := range l.from {
			t, err := text.term(l.ca)
			if err != nil {
				return nil, fmt.Errorf("issuer: key schedule: %s[%d]: %w", l.name, i, err)
			}
			if i > 0 && !t.from.After((*l.to)[i-1].from) {
				return nil, fmt.Errorf("issuer: key schedule: %s[%d] begins before its predecessor", l.name, i)
			}
			*l.to = append(*l.to, t)
		}
	}
	return s, nil
}

func (t termText) term(ca bool) (Term, error) {
	block, _ := pem.Decode([]byte(t.Key))
	if block == nil {
		return Term{}, errors.New("no key in PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Term{}, errors.New("key is not PKCS #8")
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return Term{}, errors.New("key is not ECDSA on P-256")
	}
	out := Term{key: key, published: t.Published, from: t.From}
	if out.cross, err = ParsePEM([]byte(t.Cross)); err != nil {
		return Term{}, err
	}
	if !ca {
		return out, nil
	}
	certs, err := ParsePEM([]byte(t.Certificate))
	if err != nil {
		return Term{}, err
	}
	if len(certs) != 1 || !key.PublicKey.Equal(certs[0].PublicKey) {
		return Term{}, errors.New("certificate is missing or not of the key")
	}
	out.cert = certs[0]
	return out, nil
}

// EncodePEM writes certificates in PEM.
func EncodePEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer takes all
	}
	return b.Bytes()
}

// ParsePEM reads certificates in PEM; none in an empty text. Blocks of other
// kinds are an error.
func ParsePEM(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		out, b = append(out, c), rest
	}
	return out, nil
}
