package sigv4_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/injector/sigv4/sigv4test"
)

// verifier is a service that checks every signature by itself.
type verifier struct {
	id, secret, token string
	tokenField        string
	single            bool // S3's canonical path
	mu                sync.Mutex
	seen              []seen
}

type seen struct {
	method, uri, body, auth, payload string
	header                           http.Header
	length                           int64
	trailers                         map[string]string
	chunks                           []int
}

func (v *verifier) last(t *testing.T) seen {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) == 0 {
		t.Fatal("no request came through")
	}
	return v.seen[len(v.seen)-1]
}

func (v *verifier) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, err := v.check(r)
	if err != nil {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>%v</Message></Error>", err)
		return
	}
	v.mu.Lock()
	v.seen = append(v.seen, s)
	v.mu.Unlock()
	w.Header().Set("ETag", `"0"`)
	if r.Method == http.MethodPost && r.URL.Query().Has("uploads") {
		fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
	} else if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
		fmt.Fprint(w, "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
	}
}

func (v *verifier) check(r *http.Request) (seen, error) {
	s := seen{method: r.Method, uri: r.RequestURI, header: r.Header.Clone(), length: r.ContentLength, auth: r.Header.Get("Authorization")}
	lookup := func(id string) (string, string, bool) { return v.secret, v.token, id == v.id }
	c, err := (&sigv4test.Verifier{Lookup: lookup, Single: v.single, TokenField: v.tokenField, PublicKey: sigv4.DeriveV4A}).Verify(r)
	s.body, s.payload, s.trailers, s.chunks = string(c.Body), c.Payload, c.Trailers, c.Chunks
	return s, err
}

func mac(k []byte, s string) []byte {
	m := hmac.New(sha256.New, k)
	m.Write([]byte(s))
	return m.Sum(nil)
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// start serves a verifier, and before it a proxy that signs anew what its
// clients signed with placeholder keys.
func start(t *testing.T, v *verifier, change func(*sigv4.Params)) (proxy string) {
	t.Helper()
	return newServer(t, newResigner(t, v, change))
}

func newResigner(t *testing.T, v *verifier, change func(*sigv4.Params)) *resigner {
	t.Helper()
	target, err := url.Parse(newServer(t, v))
	if err != nil {
		t.Fatal(err)
	}
	return &resigner{target: target, creds: v.credentials(), signer: sigv4.NewSigner(), change: change}
}

func crcTrailer(data []byte) string {
	return "x-amz-checksum-crc32:" + base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)))
}

func newServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
