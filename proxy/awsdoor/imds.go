package awsdoor

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"time"

	"github.com/attache-dev/attache/proxy/destination"
)

// Names and bounds of IMDSv2 (Amazon EC2 User Guide, "Use the Instance
// Metadata Service to access instance metadata").
const (
	tokenPath   = "/latest/api/token"
	keysPath    = "/latest/meta-data/iam/security-credentials/"
	regionPath  = "/latest/meta-data/placement/region"
	zonePath    = "/latest/meta-data/placement/availability-zone"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	maxTokenTTL = 21600 // seconds
)

// imdsKeys is the answer of iam/security-credentials/ROLE.
type imdsKeys struct {
	Code            string
	LastUpdated     string
	Type            string
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	Token           string
	Expiration      string
}

// Metadata reports whether dest is the metadata service's own address (RFC 3927
// link-local and EC2's IPv6), which programs without a setting for it ask
// through the proxy, and the imds door stands for it.
func (d *Door) Metadata(dest destination.Destination) bool {
	return d.c.IMDS && dest.Scheme == "http" && dest.Port == 80 && (dest.Host == "169.254.169.254" || dest.Host == "fd00:ec2::254")
}

// imds answers as an instance that serves version 2 alone. Its hop limit is
// one: nothing that came through a proxy is answered.
func (d *Door) imds(r *http.Request) Answer {
	if !d.rate.Allow() {
		return plain("imds", http.StatusServiceUnavailable, "too many requests; keep the credentials until they expire")
	}
	if r.URL.Path == tokenPath {
		return d.imdsToken(r)
	}
	const op = "imds"
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return plain(op, http.StatusMethodNotAllowed, "use GET")
	}
	token, ok := one(r.Header, tokenHeader)
	if !ok || !d.tokens.valid(token, d.c.Now()) {
		a := plain(op, http.StatusUnauthorized, "a session token of this run is required (IMDSv2); PUT "+tokenPath+" gives one")
		a.Ambient = true
		return a
	}
	k, now := d.c.Keys, d.c.Now().UTC()
	switch r.URL.Path {
	case keysPath, keysPath[:len(keysPath)-1]:
		return Answer{Status: http.StatusOK, Type: "text/plain", Body: []byte(d.roleName()), Operation: "imds role name"}
	case keysPath + d.roleName():
		return Answer{Status: http.StatusOK, Type: "text/plain", Operation: "imds credentials", Body: marshal(imdsKeys{
			Code: "Success", LastUpdated: now.Truncate(time.Second).Format(time.RFC3339), Type: "AWS-HMAC",
			AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, Token: k.SessionToken, Expiration: d.expiration(validity)})}
	case regionPath:
		return Answer{Status: http.StatusOK, Type: "text/plain", Body: []byte(d.c.Region), Operation: "imds region"}
	case zonePath: // SDKs read the region from it: the zone's letter is cut off
		return Answer{Status: http.StatusOK, Type: "text/plain", Body: []byte(d.c.Region + "a"), Operation: "imds region"}
	}
	return plain(op, http.StatusNotFound, "only credentials and the region are known here")
}

// imdsToken answers PUT /latest/api/token.
func (d *Door) imdsToken(r *http.Request) Answer {
	const op = "imds token"
	if r.Method != http.MethodPut {
		return plain(op, http.StatusMethodNotAllowed, "use PUT")
	}
	if len(r.Header.Values("X-Forwarded-For")) > 0 {
		return plain(op, http.StatusForbidden, "a request that was forwarded gets no token")
	}
	text, ok := one(r.Header, ttlHeader)
	ttl, err := strconv.ParseUint(text, 10, 16)
	if !ok || err != nil || ttl < 1 || ttl > maxTokenTTL {
		return plain(op, http.StatusBadRequest, ttlHeader+" must be 1 to 21600")
	}
	token := d.tokens.issue(d.c.Now().Add(time.Duration(ttl) * time.Second)) //nolint:gosec // at most 21600
	return Answer{Status: http.StatusOK, Type: "text/plain", Body: []byte(token), Operation: op,
		Header: http.Header{ttlHeader: {strconv.FormatUint(ttl, 10)}}}
}

// tokens issues session tokens that need no memory: their end, and a MAC of it
// under a key of this run.
type tokens struct{ key [32]byte }

const rawToken = 8 + sha256.Size

func newTokens() tokens {
	var t tokens
	_, _ = rand.Read(t.key[:]) // never fails, crypto/rand.Read
	return t
}

func (t *tokens) issue(end time.Time) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, rawToken), uint64(end.UnixNano())) //nolint:gosec // after 1970
	return base64.RawURLEncoding.EncodeToString(t.mac(b))
}

// mac appends the code of end to it.
func (t *tokens) mac(end []byte) []byte {
	m := hmac.New(sha256.New, t.key[:])
	_, _ = m.Write(end) // hash.Hash never errs
	return m.Sum(end)
}

func (t *tokens) valid(token string, now time.Time) bool {
	if len(token) != base64.RawURLEncoding.EncodedLen(rawToken) {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return false
	}
	end := b[:8:8]
	return hmac.Equal(t.mac(end), b) && uint64(now.UnixNano()) < binary.BigEndian.Uint64(end) //nolint:gosec // after 1970
}
