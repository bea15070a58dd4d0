package aws_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
)

const (
	anchorARN  = "arn:aws:rolesanywhere:eu-west-1:" + account + ":trust-anchor/0f0e0d0c-0000-4000-8000-000000000001"
	profileARN = "arn:aws:rolesanywhere:eu-west-1:" + account + ":profile/0f0e0d0c-0000-4000-8000-000000000002"
)

// holder is an identity source with an X.509-SVID.
type holder struct {
	*mintingtest.Source
	svid *x509svid.SVID
	err  error
}

func (h *holder) X509(context.Context, *identity.Workload) (*x509svid.SVID, error) {
	return h.svid, h.err
}

// authority signs SVIDs, by an intermediate if asked to.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, parent *authority) *authority {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: k}
	a.cert = a.sign(t, parent, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, k.Public())
	return a
}

func (a *authority) sign(t *testing.T, parent *authority, c *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	t.Helper()
	c.SerialNumber, _ = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	by, key := c, a.key
	if parent != nil {
		by, key = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (a *authority) leaf(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	u, _ := url.Parse("spiffe://example.org/agent/a")
	return a.sign(t, a, &x509.Certificate{URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature}, key.Public())
}

// fakeAnywhere follows the user guide of IAM Roles Anywhere (CreateSession and
// its signing process): it verifies the certificate against its trust anchor
// and the signature with the certificate's key.
type fakeAnywhere struct {
	sts  *fakeSTS
	root *x509.Certificate
	lie  func(map[string]string)
}

func (f *fakeAnywhere) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	refuse := func(kind, text string) {
		w.Header().Set("X-Amzn-ErrorType", kind+":http://internal.amazon.com/")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"message":%q}`, text)
	}
	var in struct {
		DurationSeconds                     int
		ProfileArn, RoleArn, TrustAnchorArn string
		RoleSessionName                     *string
	}
	if r.Method != http.MethodPost || r.URL.Path != "/sessions" || json.Unmarshal(body, &in) != nil || in.DurationSeconds < 900 || in.RoleArn == "" ||
		in.ProfileArn != profileARN || in.TrustAnchorArn != anchorARN || in.RoleSessionName != nil {
		refuse("ValidationException", "what is that")
		return
	}
	if err := f.verify(r, body); err != nil {
		refuse("AccessDeniedException", err.Error())
		return
	}
	c := map[string]string{
		"accessKeyId": "ASIA" + rand.Text()[:16], "secretAccessKey": "secret-" + rand.Text(), "sessionToken": "token-" + rand.Text(),
		"expiration": time.Now().Add(15 * time.Minute).UTC().Format(time.RFC3339),
	}
	if f.lie != nil {
		f.lie(c)
	}
	f.sts.mu.Lock()
	f.sts.sessions[c["accessKeyId"]] = credentials{AccessKeyID: c["accessKeyId"], SecretAccessKey: c["secretAccessKey"], SessionToken: c["sessionToken"]}
	f.sts.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"credentialSet": []any{map[string]any{"credentials": c, "roleArn": in.RoleArn}}, "subjectArn": "arn:aws:rolesanywhere:eu-west-1:" + account + ":subject/x"})
}

func (f *fakeAnywhere) verify(r *http.Request, body []byte) error {
	der, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Amz-X509"))
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	roots, more := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(f.root)
	if chain := r.Header.Get("X-Amz-X509-Chain"); chain != "" {
		for one := range strings.SplitSeq(chain, ",") {
			der, err := base64.StdEncoding.DecodeString(one)
			if err != nil {
				return err
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			more.AddCert(c)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: more, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	if err != nil || time.Since(at).Abs() > 5*time.Minute {
		return errors.New("the date is off")
	}
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	part := map[string]string{}
	for p := range strings.SplitSeq(rest, ", ") {
		k, v, _ := strings.Cut(p, "=")
		part[k] = v
	}
	scope := date[:8] + "/eu-west-1/rolesanywhere/aws4_request"
	if part["Credential"] != leaf.SerialNumber.String()+"/"+scope {
		return errors.New("the credential is not the certificate's")
	}
	for _, must := range []string{"host", "x-amz-date", "x-amz-x509"} {
		if !strings.Contains(";"+part["SignedHeaders"]+";", ";"+must+";") {
			return errors.New(must + " is not signed")
		}
	}
	if r.Header.Get("X-Amz-X509-Chain") != "" && !strings.Contains(part["SignedHeaders"], "x-amz-x509-chain") {
		return errors.New("the chain is not signed")
	}
	text := "POST\n/sessions\n\n"
	for name := range strings.SplitSeq(part["SignedHeaders"], ";") {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		text += name + ":" + value + "\n"
	}
	text += "\n" + part["SignedHeaders"] + "\n" + sha256hex(body)
	sum := sha256.Sum256([]byte(algorithm + "\n" + date + "\n" + scope + "\n" + sha256hex([]byte(text))))
	sig, err := hex.DecodeString(part["Signature"])
	if err != nil {
		return err
	}
	switch k := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if algorithm != "AWS4-X509-ECDSA-SHA256" || !ecdsa.VerifyASN1(k, sum[:], sig) {
			return errors.New("the signature is not right")
		}
	case *rsa.PublicKey:
		if algorithm != "AWS4-X509-RSA-SHA256" {
			return errors.New("the algorithm is not the key's")
		}
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig)
	default:
		return errors.New("a key of another kind")
	}
	return nil
}

func anywhere(t *testing.T, root *authority, change func(*v1alpha1.AWS)) (*provider.Minter, *fakeAnywhere) {
	t.Helper()
	f := &fakeAnywhere{sts: newSTS(t), root: root.cert}
	srv := httptest.NewTLSServer(f)
	t.Cleanup(srv.Close)
	m := connect(t, f.sts, func(s *v1alpha1.AWS) {
		s.RolesAnywhere = &v1alpha1.AWSRolesAnywhere{TrustAnchorARN: anchorARN, ProfileARN: profileARN, Endpoint: srv.URL}
		if change != nil {
			change(s)
		}
	})
	return m, f
}

// TestRolesAnywhere: keys of both kinds, with and without an intermediate; the
// session policy goes with the second hop.
func TestRolesAnywhere(t *testing.T) {
	root := newAuthority(t, nil)
	middle := newAuthority(t, root)
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key   crypto.Signer
		by    *authority
		more  []*x509.Certificate
		chain string
	}{
		"ecdsa":        {ec, root, nil, ""},
		"rsa":          {rs, root, nil, ""},
		"intermediate": {ec, middle, []*x509.Certificate{middle.cert}, ""},
		"chained":      {ec, root, nil, chainARN},
	} {
		t.Run(name, func(t *testing.T) {
			last := roleARN
			m, f := anywhere(t, root, func(s *v1alpha1.AWS) {
				if tc.chain != "" {
					s.Chain, last = &v1alpha1.AWSChain{RoleARN: tc.chain}, tc.chain
				}
			})
			svid := &x509svid.SVID{ID: mintingtest.Workload().ID, Certificates: append([]*x509.Certificate{tc.by.leaf(t, tc.key)}, tc.more...), PrivateKey: tc.key}
			e := minting.Evidence{Workload: mintingtest.Workload(), Source: &holder{Source: f.sts.src, svid: svid}}
			c, err := m.Mint(t.Context(), request(e), e)
			if err != nil {
				t.Fatal(err)
			}
			q := f.sts.asked()
			if len(q) != 1 || q[0].Get("Action") != "AssumeRole" || q[0].Get("RoleArn") != last || q[0].Get("RoleSessionName") != c.Handle || !strings.Contains(q[0].Get("Policy"), "alpha") {
				t.Errorf("asked %v", q)
			}
			if len(f.sts.src.Signed()) != 0 {
				t.Error("a JWT was signed")
			}
		})
	}
}

func TestRolesAnywhereRefuses(t *testing.T) {
	root, stranger := newAuthority(t, nil), newAuthority(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	svid := func(a *authority, k crypto.Signer) *x509svid.SVID {
		return &x509svid.SVID{Certificates: []*x509.Certificate{a.leaf(t, k)}, PrivateKey: k}
	}
	tests := []struct {
		name string
		h    holder
		lie  func(map[string]string)
		want error
	}{
		{"a stranger's certificate", holder{svid: svid(stranger, key)}, nil, minting.ErrDenied},
		{"a key of another certificate", holder{svid: &x509svid.SVID{Certificates: svid(root, key).Certificates, PrivateKey: stranger.key}}, nil, minting.ErrDenied},
		{"a key of another kind", holder{svid: svid(root, ed)}, nil, minting.ErrDenied},
		{"no certificate", holder{svid: &x509svid.SVID{PrivateKey: key}}, nil, minting.ErrDenied},
		{"no SVID now", holder{err: identity.ErrUnavailable}, nil, minting.ErrUnavailable},
		{"no SVID ever", holder{err: errors.New("no")}, nil, minting.ErrDenied},
		{"no key id", holder{svid: svid(root, key)}, func(c map[string]string) { c["accessKeyId"] = "" }, minting.ErrUnavailable},
		{"no end", holder{svid: svid(root, key)}, func(c map[string]string) { delete(c, "expiration") }, minting.ErrUnavailable},
		{"ends too late", holder{svid: svid(root, key)}, func(c map[string]string) { c["expiration"] = "2099-01-01T00:00:00Z" }, minting.ErrUnavailable},
		{"an end that is none", holder{svid: svid(root, key)}, func(c map[string]string) { c["expiration"] = "soon" }, minting.ErrUnavailable},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m, f := anywhere(t, root, nil)
			f.lie = tc.lie
			tc.h.Source = f.sts.src
			e := minting.Evidence{Workload: mintingtest.Workload(), Source: &tc.h}
			_, err := m.Mint(t.Context(), request(e), e)
			if !errors.Is(err, tc.want) || len(f.sts.asked()) != 0 {
				t.Errorf("Mint = %v, want %v", err, tc.want)
			}
		})
	}
}

// TestRolesAnywhereEndpoints: AWS's own, by region and variant.
func TestRolesAnywhereEndpoints(t *testing.T) {
	root := newAuthority(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		partition, region string
		fips, dualStack   bool
		want              string
	}{
		{"aws", "eu-west-1", false, false, "rolesanywhere.eu-west-1.amazonaws.com"},
		{"aws", "us-east-1", true, false, "rolesanywhere-fips.us-east-1.amazonaws.com"},
		{"aws", "eu-west-1", false, true, "rolesanywhere.eu-west-1.api.aws"},
		{"aws-cn", "cn-north-1", false, false, "rolesanywhere.cn-north-1.amazonaws.com.cn"},
	} {
		var went string
		down := errors.New("the line is down")
		deps := minting.Deps{Client: func([]string, []byte) *http.Client {
			return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) { went = r.URL.String(); return nil, down })}
		}}
		move := strings.NewReplacer("arn:aws:", "arn:"+tc.partition+":", "eu-west-1", tc.region)
		m, err := provider.New("p", v1alpha1.AWS{RoleARN: move.Replace(roleARN), Region: tc.region, FIPS: tc.fips, DualStack: tc.dualStack,
			RolesAnywhere: &v1alpha1.AWSRolesAnywhere{TrustAnchorARN: move.Replace(anchorARN), ProfileARN: move.Replace(profileARN)}}, deps)
		if err != nil {
			t.Fatal(err)
		}
		e := minting.Evidence{Workload: mintingtest.Workload(), Source: &holder{svid: &x509svid.SVID{Certificates: []*x509.Certificate{root.leaf(t, key)}, PrivateKey: key}}}
		r := request(e)
		r.Role = ""
		if _, err := m.Mint(t.Context(), r, e); !errors.Is(err, down) || went != "https://"+tc.want+"/sessions" {
			t.Errorf("went to %s (%v), want %s", went, err, tc.want)
		}
	}
}
