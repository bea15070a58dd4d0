package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/attache-dev/attache/internal/secret"
)

// MaxHashedBody bounds, in bytes, a body that must be read before the request
// can be signed: one without X-Amz-Content-Sha256, where the service has no
// unsigned payload. Bedrock takes 25 MB, Lambda 6 MB, DynamoDB 16 MB.
const MaxHashedBody = 32 << 20

// Credentials are what a request is signed with.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey secret.Value
	SessionToken    secret.Value // zero for long-lived keys
}

// Params say how to sign. Algorithm, Service, Time and either Region or
// RegionSet are required.
type Params struct {
	Algorithm Algorithm
	Service   string
	Region    string   // V4
	RegionSet []string // V4A
	Time      time.Time
	// Payload is the mode that the client claimed; zero when it did not say.
	Payload Payload
	// SignedHeaders, when not empty, are the only fields to sign besides those
	// that AWS demands (Host, Content-Type, X-Amz-*). When empty every field is
	// signed that a proxy has no business with.
	SignedHeaders []string
	// S3Session sends the session token as X-Amz-S3session-Token, as S3 Express
	// wants it for sessions of CreateSession.
	S3Session bool
	// TLS says that the request travels encrypted: then S3 takes a body whose
	// hash the client did not tell as UNSIGNED-PAYLOAD.
	TLS bool
}

// Signer signs requests and keeps the keys that it derives, by credential,
// region and service. It is safe for concurrent use.
type Signer struct {
	v4  cache[*v4.Signer]
	v4a cache[*v4aKey]
}

// NewSigner returns a Signer with empty caches.
func NewSigner() *Signer { return &Signer{} }

// Forget drops what was derived from the credentials of this access key id.
func (s *Signer) Forget(accessKeyID string) {
	s.v4.forget(accessKeyID)
	s.v4a.forget(accessKeyID)
}

// Sign puts a signature on r, which must be as it will be sent: after it only
// fields may change that are never signed (hop-by-hop, forwarding, tracing,
// User-Agent, Accept-Encoding, Expect). It sets X-Amz-Date, the session token
// and, where needed, X-Amz-Content-Sha256 and X-Amz-Region-Set. A body in
// chunks is replaced by one that is checked, framed and, where its chunks are,
// signed anew as it is read, and ContentLength with it; a body that must be
// hashed is read into memory.
//
// Errors match [ErrMalformed], [ErrTooLarge] or [ErrEventStream]; what is wrong
// with a chunked body shows when it is read, and matches the same.
func (s *Signer) Sign(ctx context.Context, r *http.Request, c Credentials, p Params) error {
	if err := errors.Join(c.check(), p.check(), refuseEventStream(r.Header)); err != nil {
		return err
	}
	// The SDK leaves out what it cannot parse: it would sign less than is sent.
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return malformed("the query cannot be signed: it holds a semicolon, bad percent-encoding or too much")
	}
	payload, err := preparePayload(ctx, r, p)
	if err != nil {
		return err
	}
	var chunks chunking
	if payload.chunked() {
		if chunks, err = prepareChunks(r, payload); err != nil {
			return err
		}
	}
	setSigningFields(r.Header, c, p)
	sign := s.signV4
	if p.Algorithm == V4A {
		sign = s.signV4A
	}
	signature, key, err := sign(ctx, r, c, p, string(payload))
	if err != nil {
		return err
	}
	if payload.chunked() {
		var signatures *chain
		if payload.signedChunks() {
			signatures = newChain(p, signature, key)
		}
		r.Body = newRechunker(r.Body, chunks, signatures)
		r.GetBody = nil
	}
	return nil
}

func (c Credentials) check() error {
	if !isName(c.AccessKeyID) || c.SecretAccessKey.IsZero() {
		return errors.New("sign: the credentials hold no access key id or no secret access key")
	}
	return nil
}

func (p Params) check() error {
	switch {
	case !isName(p.Service) || p.Time.IsZero():
		return errors.New("sign: service and time are required")
	case p.Algorithm == V4 && !isName(p.Region):
		return errors.New("sign: a region is required")
	case p.Algorithm == V4A && len(p.RegionSet) == 0:
		return errors.New("sign: a region set is required")
	case p.Algorithm != V4 && p.Algorithm != V4A:
		return fmt.Errorf("sign: algorithm is %q; must be %s or %s", p.Algorithm, V4, V4A)
	}
	return (&Claim{Algorithm: p.Algorithm, Payload: p.Payload}).matchPayload()
}

// singleEncoded reports whether the service takes paths as they are: encoded
// once and never normalised.
func singleEncoded(service string) bool {
	switch service {
	case "s3", "s3express", "s3-object-lambda", "s3-outposts":
		return true
	}
	return false
}

// preparePayload settles what stands for the body in the signature.
func preparePayload(ctx context.Context, r *http.Request, p Params) (Payload, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	payload := p.Payload
	s3 := singleEncoded(p.Service)
	if payload == "" {
		var err error
		if payload, err = hashPayload(r, s3 && p.TLS); err != nil {
			return "", err
		}
	} else if parsed, err := parsePayload(string(payload)); err != nil || parsed != payload {
		return "", malformed("payload mode is %q", clip(string(payload)))
	}
	if s3 || p.Payload != "" { // the others take it, but do not ask for it
		r.Header.Set("X-Amz-Content-Sha256", string(payload))
	}
	return payload, nil
}

func hashPayload(r *http.Request, mayStayUnsigned bool) (Payload, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return PayloadEmpty, nil
	}
	if mayStayUnsigned {
		return PayloadUnsigned, nil
	}
	if r.ContentLength > MaxHashedBody {
		return "", fmt.Errorf("%w: %d bytes without X-Amz-Content-Sha256; at most %d", ErrTooLarge, r.ContentLength, MaxHashedBody)
	}
	var body bytes.Buffer
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(&body, h), io.LimitReader(r.Body, MaxHashedBody+1))
	if err != nil {
		return "", fmt.Errorf("read the body to sign it: %w", err)
	}
	if n > MaxHashedBody {
		return "", fmt.Errorf("%w: more than %d bytes without X-Amz-Content-Sha256", ErrTooLarge, MaxHashedBody)
	}
	if err := r.Body.Close(); err != nil {
		return "", fmt.Errorf("read the body to sign it: %w", err)
	}
	setBody(r, body.Bytes())
	return Payload(hex.EncodeToString(h.Sum(nil))), nil
}

// setBody replaces a body by one that is in memory.
func setBody(r *http.Request, b []byte) {
	r.GetBody = func() (io.ReadCloser, error) {
		if len(b) == 0 {
			return http.NoBody, nil
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	r.Body, _ = r.GetBody()
	setLength(r, int64(len(b)))
}

func setLength(r *http.Request, n int64) {
	r.ContentLength = n
	r.TransferEncoding = nil
	if n < 0 {
		r.Header.Del("Content-Length")
	} else if r.Header.Get("Content-Length") != "" {
		r.Header.Set("Content-Length", strconv.FormatInt(n, 10))
	}
}

func setSigningFields(h http.Header, c Credentials, p Params) {
	h.Set("X-Amz-Date", p.Time.UTC().Format(timeFormat))
	if p.Algorithm == V4A {
		h.Set("X-Amz-Region-Set", strings.Join(p.RegionSet, ","))
	}
	if c.SessionToken.IsZero() {
		return
	}
	if p.S3Session {
		h.Set("X-Amz-S3session-Token", c.SessionToken.Reveal())
	} else {
		h.Set("X-Amz-Security-Token", c.SessionToken.Reveal())
	}
}

// signV4 has the SDK sign a shadow of r that holds what may be signed, and
// copies the signature.
func (s *Signer) signV4(ctx context.Context, r *http.Request, c Credentials, p Params, payload string) (string, key, error) {
	shadow := &http.Request{
		Method:        r.Method,
		Host:          hostOf(r),
		Header:        signable(r.Header, p.SignedHeaders),
		ContentLength: signedLength(r, p.SignedHeaders),
		// Without a scheme the SDK leaves the port of Host alone; with an opaque
		// URL it takes the path as it is.
		URL: &url.URL{Opaque: "//host" + canonicalPath(r.URL, p.Service), RawQuery: r.URL.RawQuery},
	}
	secretKey := c.SecretAccessKey.Reveal()
	signer := s.v4.get(newCacheKey(c, p.Region, p.Service), newSDKSigner)
	creds := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: secretKey}
	err := signer.SignHTTP(ctx, creds, shadow, payload, p.Service, p.Region, p.Time.UTC())
	if err != nil {
		return "", nil, fmt.Errorf("sign: %w", err)
	}
	auth := shadow.Header.Get("Authorization")
	r.Header.Set("Authorization", auth)
	_, signature, _ := strings.Cut(auth, "Signature=")
	if !Payload(payload).signedChunks() {
		return signature, nil, nil
	}
	return signature, newHMACKey(deriveV4(secretKey, p.Time.UTC().Format(dayFormat), p.Region, p.Service)), nil
}

// newSDKSigner makes a signer for one credential, region and service: its own
// cache, which has no bound, then holds one key. Paths come to it canonical,
// and the session token is among the fields already.
func newSDKSigner() *v4.Signer {
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping, o.DisableSessionToken = true, true })
}

// signV4A signs with the key that is derived from the credentials.
func (s *Signer) signV4A(_ context.Context, r *http.Request, c Credentials, p Params, payload string) (string, key, error) {
	var err error
	k := s.v4a.get(newCacheKey(c, "", ""), func() *v4aKey {
		var k *v4aKey
		k, err = deriveV4A(c.AccessKeyID, c.SecretAccessKey.Reveal())
		return k
	})
	if err != nil || k == nil {
		s.v4a.forget(c.AccessKeyID)
		return "", nil, errors.Join(errors.New("sign: no key can be derived from the credentials"), err)
	}
	canonical, signed := canonicalRequest(r, p, payload)
	scope := credentialScope(p)
	sum := sha256.Sum256([]byte(canonical))
	sts := string(V4A) + "\n" + p.Time.UTC().Format(timeFormat) + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	signature, err := k.sign(nil, []byte(sts))
	if err != nil {
		return "", nil, fmt.Errorf("sign: %w", err)
	}
	r.Header.Set("Authorization", string(V4A)+" Credential="+c.AccessKeyID+"/"+scope+", SignedHeaders="+signed+", Signature="+string(signature))
	return string(signature), k, nil
}

// credentialScope is what follows the access key id in Credential.
func credentialScope(p Params) string {
	day := p.Time.UTC().Format(dayFormat)
	if p.Algorithm == V4A {
		return day + "/" + p.Service + "/" + terminator
	}
	return day + "/" + p.Region + "/" + p.Service + "/" + terminator
}
