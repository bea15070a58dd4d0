package sigv4_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/attache-dev/attache/injector/sigv4"
)

// verifier is a service that checks every signature by itself: it shares no
// code with the package but the derivation of the public key of SigV4a, which
// the vectors pin.
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
	alg, rest, _ := strings.Cut(s.auth, " ")
	f := map[string]string{}
	for part := range strings.SplitSeq(rest, ", ") {
		k, val, _ := strings.Cut(part, "=")
		f[k] = val
	}
	cred := strings.SplitN(f["Credential"], "/", 2)
	if cred[0] != v.id {
		return s, fmt.Errorf("access key id %q", cred[0])
	}
	if v.token != "" && r.Header.Get(v.tokenField) != v.token {
		return s, fmt.Errorf("token %q", r.Header.Get(v.tokenField))
	}
	signed := strings.Split(f["SignedHeaders"], ";")
	for name := range r.Header {
		if l := strings.ToLower(name); strings.HasPrefix(l, "x-amz-") && !slices.Contains(signed, l) {
			return s, fmt.Errorf("%s is not signed", l)
		}
	}
	if s.payload = r.Header.Get("X-Amz-Content-Sha256"); s.payload == "" {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return s, err
		}
		s.payload, s.body = sum(b), string(b)
	}
	canonical := strings.Join([]string{r.Method, v.path(r), queryOf(r), headersOf(r, signed), f["SignedHeaders"], s.payload}, "\n")
	date := r.Header.Get("X-Amz-Date")
	ok, err := v.signs(alg, cred[1], alg+"\n"+date+"\n"+cred[1]+"\n"+sum([]byte(canonical)), f["Signature"])
	if err != nil || !ok {
		return s, fmt.Errorf("signature (%v) over\n%s", err, canonical)
	}
	return s, v.body(r, &s, alg, date, cred[1], f["Signature"])
}

func (v *verifier) body(r *http.Request, s *seen, alg, date, scope, seed string) error {
	br := bufio.NewReader(r.Body)
	switch {
	case r.Header.Get("X-Amz-Content-Sha256") == "":
		return nil
	case !strings.HasPrefix(s.payload, "STREAMING-"):
		b, err := io.ReadAll(br)
		s.body = string(b)
		if err == nil && s.payload != "UNSIGNED-PAYLOAD" && s.payload != sum(b) {
			err = fmt.Errorf("the body is not %s", s.payload)
		}
		return err
	}
	data, err := v.chunks(br, s, alg, date, scope, seed)
	if err != nil {
		return err
	}
	s.body = string(data)
	if n, _ := strconv.Atoi(r.Header.Get("X-Amz-Decoded-Content-Length")); n != len(data) {
		return fmt.Errorf("%d bytes decoded, %d declared", len(data), n)
	}
	return checksums(s.trailers, data)
}

// chunks reads aws-chunked, signed or not.
func (v *verifier) chunks(br *bufio.Reader, s *seen, alg, date, scope, prev string) ([]byte, error) {
	signed := !strings.HasPrefix(s.payload, "STREAMING-UNSIGNED")
	var data []byte
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		digits, sig, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ";chunk-signature=")
		n, err := strconv.ParseInt(digits, 16, 64)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(br, chunk); err != nil {
			return nil, err
		}
		if signed {
			if alg == "AWS4-ECDSA-P256-SHA256" && len(sig) != 144 {
				return nil, fmt.Errorf("a signature of %d digits", len(sig))
			}
			sig = strings.TrimRight(sig, "*")
			sts := strings.Join([]string{alg + "-PAYLOAD", date, scope, prev, sum(nil), sum(chunk)}, "\n")
			if ok, err := v.signs(alg, scope, sts, sig); err != nil || !ok {
				return nil, fmt.Errorf("signature of chunk %d", len(s.chunks))
			}
			prev = sig
		}
		s.chunks = append(s.chunks, int(n))
		data = append(data, chunk...)
		if n == 0 {
			return data, v.trailers(br, s, alg, date, scope, prev, signed)
		}
		if crlf, err := br.ReadString('\n'); err != nil || crlf != "\r\n" {
			return nil, fmt.Errorf("no CRLF after a chunk: %q %v", crlf, err)
		}
	}
}

func (v *verifier) trailers(br *bufio.Reader, s *seen, alg, date, scope, prev string, signed bool) error {
	s.trailers = map[string]string{}
	canonical, ended := "", false
	for {
		line, err := br.ReadString('\n')
		if err == io.EOF && ended {
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
		s.trailers[k] = val
		if k != "x-amz-trailer-signature" {
			canonical += k + ":" + val + "\n"
		}
	}
	if !signed || !strings.HasSuffix(s.payload, "-TRAILER") {
		return nil
	}
	sig := strings.TrimRight(s.trailers["x-amz-trailer-signature"], "*")
	ok, err := v.signs(alg, scope, strings.Join([]string{alg + "-TRAILER", date, scope, prev, sum([]byte(canonical))}, "\n"), sig)
	if err != nil || !ok {
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

func (v *verifier) signs(alg, scope, sts, sig string) (bool, error) {
	if alg == "AWS4-ECDSA-P256-SHA256" {
		k, err := sigv4.DeriveV4A(v.id, v.secret)
		if err != nil {
			return false, err
		}
		der, err := hex.DecodeString(sig)
		digest := sha256.Sum256([]byte(sts))
		return err == nil && ecdsa.VerifyASN1(k, digest[:], der), err
	}
	k := []byte("AWS4" + v.secret)
	for part := range strings.SplitSeq(scope, "/") {
		k = mac(k, part)
	}
	return hmac.Equal([]byte(hex.EncodeToString(mac(k, sts))), []byte(sig)), nil
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
func (v *verifier) path(r *http.Request) string {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	if v.single {
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
		if strings.IndexByte(alnum, c) >= 0 || slash && c == '/' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

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
