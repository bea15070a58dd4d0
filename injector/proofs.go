package injector

import (
	"net/http"
	"net/url"
	"time"

	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/dpop"
)

// Proofs makes DPoP proofs for resource requests and remembers the nonces that
// origins ask for (RFC 9449 sections 7 and 9).
type Proofs struct {
	nonces *dpop.Nonces
	now    func() time.Time
}

// NewProofs returns an empty store of nonces.
func NewProofs(now func() time.Time) *Proofs { return &Proofs{nonces: dpop.NewNonces(), now: now} }

// Prove implements [Prover].
func (p *Proofs) Prove(c minting.Credential, method, htu string) (string, error) {
	u, err := url.Parse(htu)
	if err != nil {
		return "", err
	}
	return dpop.Proof(c.Key, method, htu, c.Secret.Reveal(), p.nonces.Get(origin(u)), p.now())
}

// Learn keeps a nonce from an answer and reports whether the answer asks for
// the same request again with it.
func (p *Proofs) Learn(r *http.Request, resp *http.Response) bool {
	n := resp.Header.Get("Dpop-Nonce")
	return n != "" && p.nonces.Set(origin(r.URL), n) && resp.StatusCode == http.StatusUnauthorized
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }
