package sigv4

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/injector/internal/names"
	"github.com/attache-dev/attache/internal/secret"
)

// Errors that callers tell apart. None holds a secret.
var (
	// ErrUnsigned is matched when the request carries no AWS signature.
	ErrUnsigned = errors.New("the request carries no AWS signature")
	// ErrMalformed is matched when a signature, or a body that is signed in
	// chunks, is not what the protocol allows.
	ErrMalformed = errors.New("malformed AWS signature")
	// ErrSeveral is matched when the request carries more than one signature.
	ErrSeveral = errors.New("the request carries more than one AWS signature")
	// ErrExpired is matched when a presigned request is used too late, or
	// before its time.
	ErrExpired = errors.New("the presigned request is not valid now")
	// ErrEventStream is matched by bodies whose every message is signed.
	ErrEventStream = errors.New("event streams are signed message by message and cannot be signed anew; use the operation without streaming input")
	// ErrTooLarge is matched when a body must be hashed before it is sent and is
	// over [MaxHashedBody], or declares a length that no service takes.
	ErrTooLarge = errors.New("the body is too large to be signed")
)

// Bounds on what an agent may send.
const (
	maxAuthorization = 8 << 10 // bytes of the Authorization field
	maxQuery         = 64 << 10
	maxToken         = 16 << 10 // bytes of a session token
	maxSignedHeaders = 128
	maxName          = 128
	maxRegions       = 32
	maxExpires       = 7 * 24 * time.Hour // AWS's own limit for v4
	maxEarly         = 15 * time.Minute   // how far ahead a clock may be
)

const (
	timeFormat = "20060102T150405Z"
	dayFormat  = "20060102"
	terminator = "aws4_request"
)

// Algorithm is the kind of a signature.
type Algorithm string

// The algorithms that clients use.
const (
	V4  Algorithm = "AWS4-HMAC-SHA256"
	V4A Algorithm = "AWS4-ECDSA-P256-SHA256"
)

// Place says where in the request a signature stands.
type Place string

// The places of a signature.
const (
	InHeader Place = "header"
	InQuery  Place = "query"
	InForm   Place = "form"
)

// Payload is the value of X-Amz-Content-Sha256: how the body is covered.
type Payload string

// The payload modes. Any other valid value is the body's SHA-256 in lower-case
// hex; the zero value means that the client did not say.
const (
	PayloadUnsigned        Payload = "UNSIGNED-PAYLOAD"
	PayloadEmpty           Payload = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	PayloadUnsignedTrailer Payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	PayloadV4              Payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	PayloadV4Trailer       Payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	PayloadV4A             Payload = "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"
	PayloadV4ATrailer      Payload = "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER"
)

// signedChunks reports whether each chunk of the body carries a signature.
func (p Payload) signedChunks() bool {
	return p == PayloadV4 || p == PayloadV4Trailer || p == PayloadV4A || p == PayloadV4ATrailer
}

// chunked reports whether the body is aws-chunked.
func (p Payload) chunked() bool { return p.signedChunks() || p == PayloadUnsignedTrailer }

func (p Payload) trailer() bool { return strings.HasSuffix(string(p), "-TRAILER") }

// Claim is what the agent's own signature says. Everything in it is a claim:
// nothing was verified but the shape.
type Claim struct {
	Place         Place
	Algorithm     Algorithm
	AccessKeyID   string
	Date          time.Time // UTC
	Region        string    // V4 only
	RegionSet     []string  // V4A only
	Service       string
	SignedHeaders []string // lower case, sorted; empty for InForm
	Expires       time.Duration
	Payload       Payload
	// SessionToken is what the client sent as one: a placeholder, or by mistake
	// a real one.
	SessionToken secret.Value
	// S3Session is set when the token stood in X-Amz-S3session-Token.
	S3Session bool
}

// Parse reads the one AWS signature of r and leaves r as it is. It matches
// [ErrUnsigned], [ErrSeveral], [ErrMalformed] or [ErrEventStream] otherwise.
// A signature in the fields of a POST form is read by [ParseForm].
func Parse(r *http.Request) (Claim, error) {
	params, err := signatureParams(r.URL.RawQuery)
	if err != nil {
		return Claim{}, err
	}
	auth := values(r.Header, "authorization")
	header := slices.ContainsFunc(auth, isSignature)
	query := len(params) > 0 && params.signs()
	switch {
	case len(auth) > 1 && (header || query), header && query, query && len(auth) > 0:
		return Claim{}, ErrSeveral
	case !header && !query:
		return Claim{}, ErrUnsigned
	}
	if err := refuseEventStream(r.Header); err != nil {
		return Claim{}, err
	}
	if header {
		return parseHeader(r.Header, auth[0])
	}
	return parseQuery(r.Header, params)
}

// isSignature finds signatures of every version, so that the old ones are
// refused and not taken for another scheme.
func isSignature(auth string) bool {
	return strings.HasPrefix(auth, "AWS4-") || strings.HasPrefix(auth, "AWS ") || strings.HasPrefix(auth, "AWS3")
}

func refuseEventStream(h http.Header) error {
	for _, v := range values(h, "content-type") {
		if t, _, _ := mime.ParseMediaType(v); t == "application/vnd.amazon.eventstream" {
			return ErrEventStream
		}
	}
	for _, v := range values(h, "x-amz-content-sha256") {
		if strings.HasSuffix(v, "-EVENTS") {
			return ErrEventStream
		}
	}
	return nil
}

func parseHeader(h http.Header, auth string) (Claim, error) {
	c := Claim{Place: InHeader}
	if len(auth) > maxAuthorization {
		return c, malformed("Authorization is longer than %d bytes", maxAuthorization)
	}
	alg, rest, _ := strings.Cut(auth, " ")
	if c.Algorithm = Algorithm(alg); c.Algorithm != V4 && c.Algorithm != V4A {
		return c, malformed("algorithm is %q; must be %s or %s", clip(alg), V4, V4A)
	}
	fields, err := authFields(rest)
	if err != nil {
		return c, err
	}
	date, err := headerDate(h)
	if err != nil {
		return c, err
	}
	if err := c.setDate(date); err != nil {
		return c, err
	}
	if err := c.setCommon(fields["Credential"], fields["SignedHeaders"], fields["Signature"]); err != nil {
		return c, err
	}
	regions, err := one(h, "x-amz-region-set")
	if err != nil {
		return c, err
	}
	return c, errors.Join(c.setRegions(regions), c.setToken(h), c.setPayload(h))
}

// authFields splits the three parameters of an Authorization field.
func authFields(s string) (map[string]string, error) {
	fields := make(map[string]string, 3)
	for part := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if _, dup := fields[k]; !ok || dup || (k != "Credential" && k != "SignedHeaders" && k != "Signature") {
			return nil, malformed("Authorization must hold Credential, SignedHeaders and Signature, each once")
		}
		fields[k] = v
	}
	if len(fields) != 3 {
		return nil, malformed("Authorization must hold Credential, SignedHeaders and Signature, each once")
	}
	return fields, nil
}

// headerDate is X-Amz-Date or, when that is missing, Date, in X-Amz-Date's
// form.
func headerDate(h http.Header) (string, error) {
	d, err := one(h, "x-amz-date")
	if err != nil || d != "" {
		return d, err
	}
	if d, err = one(h, "date"); err != nil {
		return "", err
	}
	if t, err := http.ParseTime(d); err == nil {
		return t.UTC().Format(timeFormat), nil
	}
	return d, nil
}

func parseQuery(h http.Header, p params) (Claim, error) {
	c := Claim{Place: InQuery, Algorithm: Algorithm(p["x-amz-algorithm"])}
	if c.Algorithm != V4 && c.Algorithm != V4A {
		return c, malformed("X-Amz-Algorithm is %q; must be %s or %s", clip(string(c.Algorithm)), V4, V4A)
	}
	for _, name := range []string{"x-amz-date", "x-amz-security-token", "x-amz-region-set", "x-amz-s3session-token"} {
		if len(values(h, name)) > 0 && p[name] != "" {
			return c, fmt.Errorf("%w: %s stands in the query and in a header", ErrSeveral, name)
		}
	}
	if err := c.setDate(p["x-amz-date"]); err != nil {
		return c, err
	}
	if err := c.setCommon(p["x-amz-credential"], p["x-amz-signedheaders"], p["x-amz-signature"]); err != nil {
		return c, err
	}
	secs, err := strconv.ParseUint(p["x-amz-expires"], 10, 32)
	if c.Expires = time.Duration(secs) * time.Second; err != nil || c.Expires > maxExpires || secs == 0 {
		return c, malformed("X-Amz-Expires is %q; must be 1 to %d seconds", clip(p["x-amz-expires"]), int(maxExpires.Seconds()))
	}
	regions := p["x-amz-region-set"]
	if hs, err := one(h, "x-amz-region-set"); err != nil {
		return c, err
	} else if regions == "" {
		regions = hs
	}
	if err := errors.Join(c.setRegions(regions), c.setToken(h), c.setPayload(h)); err != nil {
		return c, err
	}
	if t := p["x-amz-security-token"]; t != "" {
		c.SessionToken = secret.New(t)
	}
	if t := p["x-amz-s3session-token"]; t != "" {
		c.SessionToken, c.S3Session = secret.New(t), true
	}
	if v := p["x-amz-content-sha256"]; v != "" {
		if c.Payload != "" && c.Payload != Payload(v) {
			return c, fmt.Errorf("%w: two values of X-Amz-Content-Sha256", ErrSeveral)
		}
		if c.Payload, err = parsePayload(v); err != nil {
			return c, err
		}
	}
	return c, c.matchPayload()
}

func (c *Claim) setDate(s string) error {
	t, err := time.Parse(timeFormat, s)
	if err != nil {
		return malformed("date is %q; must look like %s", clip(s), timeFormat)
	}
	c.Date = t
	return nil
}

// setCommon reads the parts that header and query share.
func (c *Claim) setCommon(credential, signed, signature string) error {
	if err := c.setCredential(credential); err != nil {
		return err
	}
	if err := checkSignature(c.Algorithm, signature); err != nil {
		return err
	}
	list := strings.Split(signed, ";")
	if len(list) > maxSignedHeaders {
		return malformed("more than %d signed headers", maxSignedHeaders)
	}
	for i, name := range list {
		if !isToken(name) || name != strings.ToLower(name) || (i > 0 && list[i-1] >= name) {
			return malformed("SignedHeaders must be lower-case names, sorted, each once")
		}
	}
	if !slices.Contains(list, "host") {
		return malformed("SignedHeaders must hold host")
	}
	c.SignedHeaders = list
	return nil
}

func (c *Claim) setCredential(s string) error {
	parts := strings.Split(s, "/")
	want := 5 // key / day / region / service / aws4_request
	if c.Algorithm == V4A {
		want = 4 // SigV4a names its regions in X-Amz-Region-Set
	}
	if len(parts) != want || parts[want-1] != terminator {
		return malformed("Credential must have %d parts and end in %s", want, terminator)
	}
	if parts[1] != c.Date.Format(dayFormat) {
		return malformed("Credential's day is %q, the request's is %q", clip(parts[1]), c.Date.Format(dayFormat))
	}
	for _, p := range parts {
		if !isName(p) {
			return malformed("Credential holds an empty, long or odd part")
		}
	}
	c.AccessKeyID, c.Service = parts[0], parts[want-2]
	if c.Algorithm == V4 {
		c.Region = parts[2]
	}
	return nil
}

func (c *Claim) setRegions(s string) error {
	if c.Algorithm == V4 {
		if s != "" {
			return malformed("X-Amz-Region-Set goes with %s only", V4A)
		}
		return nil
	}
	set := strings.Split(s, ",")
	if len(set) > maxRegions {
		return malformed("more than %d regions in X-Amz-Region-Set", maxRegions)
	}
	for i := range set {
		if set[i] = strings.TrimSpace(set[i]); set[i] != "*" && !isRegionPattern(set[i]) {
			return malformed("X-Amz-Region-Set must hold regions or *")
		}
	}
	c.RegionSet = set
	return nil
}

func (c *Claim) setToken(h http.Header) error {
	for _, name := range []string{"x-amz-security-token", "x-amz-s3session-token"} {
		t, err := one(h, name)
		if err != nil {
			return err
		}
		if len(t) > maxToken {
			return malformed("%s is longer than %d bytes", name, maxToken)
		}
		if t == "" {
			continue
		}
		if !c.SessionToken.IsZero() {
			return fmt.Errorf("%w: two session tokens", ErrSeveral)
		}
		c.SessionToken, c.S3Session = secret.New(t), name == "x-amz-s3session-token"
	}
	return nil
}

func (c *Claim) setPayload(h http.Header) error {
	v, err := one(h, "x-amz-content-sha256")
	if err != nil || v == "" {
		return err
	}
	if c.Payload, err = parsePayload(v); err != nil {
		return err
	}
	return c.matchPayload()
}

func parsePayload(v string) (Payload, error) {
	p := Payload(v)
	if p == PayloadUnsigned || p.chunked() || isLowerHex(v, 64, 64) {
		return p, nil
	}
	return "", malformed("X-Amz-Content-Sha256 is %q", clip(v))
}

// matchPayload refuses chunks of one algorithm under a header of the other.
func (c *Claim) matchPayload() error {
	v4a := c.Payload == PayloadV4A || c.Payload == PayloadV4ATrailer
	if c.Payload.signedChunks() && v4a != (c.Algorithm == V4A) {
		return malformed("payload mode %s does not go with %s", c.Payload, c.Algorithm)
	}
	return nil
}

// Check refuses a presigned claim that has expired, or begins in the future,
// by the clock now. It returns nil for the others: they are signed anew with
// our own time.
func (c Claim) Check(now time.Time) error {
	if c.Place != InQuery {
		return nil
	}
	if end := c.Date.Add(c.Expires); now.After(end) {
		return fmt.Errorf("%w: it ended at %s", ErrExpired, end.Format(time.RFC3339))
	}
	if c.Date.After(now.Add(maxEarly)) {
		return fmt.Errorf("%w: it begins at %s", ErrExpired, c.Date.Format(time.RFC3339))
	}
	return nil
}

// Params are what to sign with to keep what the claim says, at time now.
func (c Claim) Params(now time.Time) Params {
	return Params{
		Algorithm: c.Algorithm, Service: c.Service, Region: c.Region, RegionSet: c.RegionSet,
		Time: now, Payload: c.Payload, SignedHeaders: c.SignedHeaders, S3Session: c.S3Session,
	}
}

// params are the query parameters of a presigned request by lower-case name.
type params map[string]string

func (p params) signs() bool {
	for _, n := range []string{"x-amz-signature", "x-amz-credential", "x-amz-algorithm"} {
		if _, ok := p[n]; ok {
			return true
		}
	}
	return false
}

// isQueryName finds the parameters that make up a presigned request.
func isQueryName(lower string) bool {
	switch lower {
	case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders",
		"x-amz-signature", "x-amz-security-token", "x-amz-region-set", "x-amz-s3session-token", "x-amz-content-sha256":
		return true
	}
	return false
}

// signatureParams collects the parameters of a signature. Names are compared
// without regard to case, because some services do, and each may stand once.
func signatureParams(raw string) (params, error) {
	if len(raw) > maxQuery {
		return nil, malformed("the query is longer than %d bytes", maxQuery)
	}
	var p params
	legacy := 0
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, err := splitPair(pair)
		if err != nil {
			if strings.Contains(strings.ToLower(pair), "amz") {
				return nil, malformed("a query parameter is not valid percent-encoding")
			}
			continue
		}
		lower := strings.ToLower(name)
		if name == "AWSAccessKeyId" || name == "Signature" {
			legacy++
		}
		if !isQueryName(lower) {
			continue
		}
		if p == nil {
			p = params{}
		}
		if _, dup := p[lower]; dup {
			return nil, fmt.Errorf("%w: %s stands twice in the query", ErrSeveral, lower)
		}
		if len(value) > maxToken {
			return nil, malformed("%s is longer than %d bytes", lower, maxToken)
		}
		p[lower] = value
	}
	if legacy == 2 {
		return nil, malformed("signature version 2 is not supported; sign with version 4 (boto3: Config(signature_version=\"s3v4\"))")
	}
	return p, nil
}

func splitPair(pair string) (name, value string, err error) {
	name, value, _ = strings.Cut(pair, "=")
	if name, err = url.QueryUnescape(name); err != nil {
		return "", "", err
	}
	value, err = url.QueryUnescape(value)
	return name, value, err
}

// values are all values of a field, however its name is spelled.
func values(h http.Header, lower string) []string {
	var out []string
	for name, vs := range h {
		if names.Fold(name) == lower {
			out = append(out, vs...)
		}
	}
	return out
}

// one is the only value of a field, or nothing.
func one(h http.Header, lower string) (string, error) {
	vs := values(h, lower)
	if len(vs) > 1 {
		return "", fmt.Errorf("%w: %s stands %d times", ErrSeveral, lower, len(vs))
	}
	if len(vs) == 0 {
		return "", nil
	}
	return strings.TrimSpace(vs[0]), nil
}

func checkSignature(a Algorithm, s string) error {
	ok := isLowerHex(s, 64, 64)
	if a == V4A { // DER of two integers below 2^256
		ok = isLowerHex(s, 16, maxV4ASignature) && len(s)%2 == 0
	}
	if !ok {
		return malformed("Signature is not the lower-case hex that %s makes", a)
	}
	return nil
}

func isLowerHex(s string, low, high int) bool {
	return len(s) >= low && len(s) <= high && strings.Trim(s, "0123456789abcdef") == ""
}

func isName(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+=@:") == ""
}

func isRegionPattern(s string) bool {
	return isName(strings.ReplaceAll(s, "*", "x")) && !strings.ContainsAny(s, "+=@:")
}

func isToken(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// clip shortens foreign text for an error.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
