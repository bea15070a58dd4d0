// Package sigv4test is a service that checks AWS signatures by itself.
package sigv4test

import (
	"bufio"
	"cmp"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // one of S3's checksums
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Verifier checks that a request is signed with credentials that it knows, by
// Signature Version 4, or 4a (AWS General Reference, "Create a signed AWS API request";
// Amazon S3 API Reference, "Signature calculations … transferring payload in
// multiple chunks" and "… including trailing headers"). It shares no code with
// the package sigv4 but the derivation of SigV4a's public key, which it is given.
type Verifier struct {
	// Lookup returns secret access key and session token of an access key id.
	Lookup func(id string) (secret, token string, ok bool)
	// PublicKey derives the key of SigV4a; nil: such signatures are refused.
	PublicKey func(id, secret string) (*ecdsa.PublicKey, error)
	// TokenField is where the session token stands, X-Amz-Security-Token if empty.
	TokenField string
	// Single says that the service is S3, which decodes paths once.
	Single bool
}

// Call is a request whose signature holds.
type Call struct {
	AccessKeyID string
	Scope       string // date/region/service/aws4_request
	Payload     string // X-Amz-Content-Sha256, or the body's hash where that is missing
	Body        []byte
	Trailers    map[string]string
	Chunks      []int
}

// Verify reads r to its end and says what is wrong with its signature.
func (v *Verifier) Verify(r *http.Request) (Call, error) {
	var c Call
	alg, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if alg != v4 && (alg != v4a || v.PublicKey == nil) {
		return c, fmt.Errorf("algorithm %q", alg)
	}
	f := map[string]string{}
	for part := range strings.SplitSeq(rest, ", ") {
		k, val, _ := strings.Cut(part, "=")
		f[k] = val
	}
	c.AccessKeyID, c.Scope, _ = strings.Cut(f["Credential"], "/")
	secret, token, ok := v.Lookup(c.AccessKeyID)
	if !ok {
		return c, fmt.Errorf("access key id %q is unknown", c.AccessKeyID)
	}
	if got := r.Header.Get(cmp.Or(v.TokenField, "X-Amz-Security-Token")); got != token {
		return c, fmt.Errorf("token %q", got)
	}
	for name := range r.URL.Query() {
		if strings.HasPrefix(name, "X-Amz-") {
			return c, fmt.Errorf("%s stands in the query of a request that is signed in its header", name)
		}
	}
	signed := strings.Split(f["SignedHeaders"], ";")
	for name := range r.Header {
		if l := strings.ToLower(name); strings.HasPrefix(l, "x-amz-") && !slices.Contains(signed, l) {
			return c, fmt.Errorf("%s is not signed", l)
		}
	}
	if c.Payload = r.Header.Get("X-Amz-Content-Sha256"); c.Payload == "" {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return c, err
		}
		c.Payload, c.Body = sum(b), b
	}
	canonical := strings.Join([]string{r.Method, v.path(r), queryOf(r), headersOf(r, signed), f["SignedHeaders"], c.Payload}, "\n")
	s := signing{alg: alg, key: secret, date: r.Header.Get("X-Amz-Date"), scope: c.Scope}
	if alg == v4a {
		var err error
		if s.public, err = v.PublicKey(c.AccessKeyID, secret); err != nil {
			return c, err
		}
	}
	if !s.made(alg+"\n"+s.date+"\n"+s.scope+"\n"+sum([]byte(canonical)), f["Signature"]) {
		return c, fmt.Errorf("signature over\n%s", canonical)
	}
	return c, s.body(r, &c, f["Signature"])
}

// The algorithms, as Authorization names them.
const (
	v4  = "AWS4-HMAC-SHA256"
	v4a = "AWS4-ECDSA-P256-SHA256"
)

// signing is what every signature of one request has in common.
type signing struct {
	alg, key, date, scope string
	public                *ecdsa.PublicKey // of SigV4a
}

func (s signing) made(sts, signature string) bool {
	if s.alg == v4a {
		der, err := hex.DecodeString(signature)
		digest := sha256.Sum256([]byte(sts))
		return err == nil && ecdsa.VerifyASN1(s.public, digest[:], der)
	}
	k := []byte("AWS4" + s.key)
	for part := range strings.SplitSeq(s.scope, "/") {
		k = mac(k, part)
	}
	return hmac.Equal([]byte(hex.EncodeToString(mac(k, sts))), []byte(signature))
}

func (s signing) body(r *http.Request, c *Call, seed string) error {
	br := bufio.NewReader(r.Body)
	switch {
	case r.Header.Get("X-Amz-Content-Sha256") == "":
		return nil
	case !strings.HasPrefix(c.Payload, "STREAMING-"):
		b, err := io.ReadAll(br)
		c.Body = b
		if err == nil && c.Payload != "UNSIGNED-PAYLOAD" && c.Payload != sum(b) {
			err = fmt.Errorf("the body is not %s", c.Payload)
		}
		return err
	}
	if err := s.chunks(br, c, seed); err != nil {
		return err
	}
	if n, _ := strconv.Atoi(r.Header.Get("X-Amz-Decoded-Content-Length")); n != len(c.Body) {
		return fmt.Errorf("%d bytes decoded, %d declared", len(c.Body), n)
	}
	return checksums(c.Trailers, c.Body)
}

// chunks reads aws-chunked, signed or not.
func (s signing) chunks(br *bufio.Reader, c *Call, prev string) error {
	signed := !strings.HasPrefix(c.Payload, "STREAMING-UNSIGNED")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		digits, sig, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ";chunk-signature=")
		n, err := strconv.ParseUint(digits, 16, 31)
		if err != nil {
			return err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(br, chunk); err != nil {
			return err
		}
		if signed {
			if s.alg == v4a && len(sig) != 144 {
				return fmt.Errorf("a signature of %d digits", len(sig))
			}
			sig = strings.TrimRight(sig, "*") // SigV4a pads its own
			if !s.made(strings.Join([]string{s.alg + "-PAYLOAD", s.date, s.scope, prev, sum(nil), sum(chunk)}, "\n"), sig) {
				return fmt.Errorf("signature of chunk %d", len(c.Chunks))
			}
			prev = sig
		}
		c.Chunks = append(c.Chunks, len(chunk))
		c.Body = append(c.Body, chunk...)
		if n == 0 {
			return s.trailers(br, c, prev, signed)
		}
		if crlf, err := br.ReadString('\n'); err != nil || crlf != "\r\n" {
			return fmt.Errorf("no CRLF after a chunk: %q %w", crlf, err)
		}
	}
}

func (s signing) trailers(br *bufio.Reader, c *Call, prev string, signed bool) error {
	c.Trailers = map[string]string{}
	canonical, ended := "", false
	for {
		line, err := br.ReadString('\n')
		if err == io.EOF && ended { //nolint:errorlint // of a bufio.Reader
			break
		}
		if err != nil {
			return err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			ended = true
			continue
		}
		k, val, _ := strings.Cut(line, ":")
		c.Trailers[k] = val
		if k != "x-amz-trailer-signature" {
			canonical += k + ":" + val + "\n"
		}
	}
	if !signed || !strings.HasSuffix(c.Payload, "-TRAILER") {
		return nil
	}
	if !s.made(strings.Join([]string{s.alg + "-TRAILER", s.date, s.scope, prev, sum([]byte(canonical))}, "\n"), strings.TrimRight(c.Trailers["x-amz-trailer-signature"], "*")) {
		return fmt.Errorf("signature of the trailers")
	}
	return nil
}

func checksums(trailers map[string]string, data []byte) error {
	for name, want := range trailers {
		var h hash.Hash
		switch name {
		case "x-amz-checksum-crc32":
			h = crc32.NewIEEE()
		case "x-amz-checksum-crc32c":
			h = crc32.New(crc32.MakeTable(crc32.Castagnoli))
		case "x-amz-checksum-crc64nvme":
			h = crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5))
		case "x-amz-checksum-sha1":
			h = sha1.New()
		case "x-amz-checksum-sha256":
			h = sha256.New()
		default:
			continue
		}
		h.Write(data)
		if got := base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
			return fmt.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	return nil
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

// path is what a service makes of the bytes of the request line.
func (v *Verifier) path(r *http.Request) string {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	if v.Single {
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			return "bad"
		}
		raw = decoded
	}
	return strict(raw, true)
}

func strict(s string, slash bool) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(unreserved, c) >= 0 || slash && c == '/' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

const unreserved = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"

func queryOf(r *http.Request) string {
	_, raw, _ := strings.Cut(r.RequestURI, "?")
	q, _ := url.ParseQuery(raw)
	var pairs [][2]string
	for k, vs := range q {
		for _, val := range vs {
			pairs = append(pairs, [2]string{strict(k, false), strict(val, false)})
		}
	}
	sort.Slice(pairs, func(i, j int) bool { return pairs[i][0]+"\x00"+pairs[i][1] < pairs[j][0]+"\x00"+pairs[j][1] })
	out := make([]string, len(pairs))
	for i, p := range pairs {
		out[i] = p[0] + "=" + p[1]
	}
	return strings.Join(out, "&")
}

func headersOf(r *http.Request, signed []string) string {
	var b strings.Builder
	for _, name := range signed {
		vs := slices.Clone(r.Header.Values(name))
		switch name {
		case "host":
			vs = []string{r.Host}
		case "content-length":
			vs = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		for i := range vs {
			vs[i] = strings.Join(strings.Fields(vs[i]), " ")
		}
		b.WriteString(name + ":" + strings.Join(vs, ",") + "\n")
	}
	return b.String()
}
