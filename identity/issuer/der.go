package issuer

import (
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// parseDER reads an ECDSA-Sig-Value (RFC 3279 section 2.2.3), the form that
// crypto.Signer produces. Signers outside this process are foreign input.
func parseDER(der []byte) (r, s *big.Int, err error) {
	r, s = new(big.Int), new(big.Int)
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(r) || !seq.ReadASN1Integer(s) || !seq.Empty() || !fits(r) || !fits(s) {
		return nil, nil, errNoSignature
	}
	return r, s, nil
}

// marshalDER is the reverse of parseDER.
func marshalDER(r, s *big.Int) ([]byte, error) {
	if !fits(r) || !fits(s) {
		return nil, errNoSignature
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.Bytes()
}

func fits(n *big.Int) bool { return n != nil && n.Sign() > 0 && n.BitLen() <= 256 }
