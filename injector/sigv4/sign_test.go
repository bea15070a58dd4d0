package sigv4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/internal/secret"
)

// randomRequest is what a client may send: paths, queries and fields of many
// kinds, strictly encoded as the SDKs do.
func randomRequest(rng *rand.Rand) *http.Request {
	const odd = "abcXYZ019-_.~ /+%&=?;:@!$'()*,[]ü€\"#<>"
	text := func(n int) string {
		runes := []rune(odd)
		var b strings.Builder
		for range rng.IntN(n) + 1 {
			b.WriteRune(runes[rng.IntN(len(runes))])
		}
		return b.String()
	}
	q := url.Values{}
	for range rng.IntN(5) {
		q.Add(text(4), text(8))
	}
	path := "/"
	for range rng.IntN(4) {
		path += "s" + strings.ReplaceAll(text(9), "/", "") + "/"
	}
	var escaped strings.Builder
	for _, c := range []byte(path) {
		if strings.IndexByte(alnum+"/", c) >= 0 {
			escaped.WriteByte(c)
		} else {
			fmt.Fprintf(&escaped, "%%%02X", c)
		}
	}
	r := &http.Request{
		Method: []string{"GET", "PUT", "POST", "DELETE", "HEAD"}[rng.IntN(5)], Host: []string{"a.example", "a.example:8443"}[rng.IntN(2)],
		URL:    &url.URL{Scheme: "https", Host: "a.example", Path: path, RawPath: escaped.String(), RawQuery: q.Encode()},
		Header: http.Header{"Content-Type": {"a/b;  c=d"}},
	}
	for range rng.IntN(6) {
		r.Header.Add("X-Amz-Meta-"+string(rune('A'+rng.IntN(26))), strings.Trim(strings.ToValidUTF8(text(20), ""), "\"")+"  x ")
	}
	if rng.IntN(2) == 0 {
		r.ContentLength = int64(rng.IntN(1000))
	}
	return r
}

func TestSDKIsTheOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	ours := sigv4.NewSigner()
	for i := range 3000 {
		r := randomRequest(rng)
		service := []string{"s3", "s3express", "dynamodb", "execute-api"}[rng.IntN(4)]
		payload := []sigv4.Payload{sigv4.PayloadUnsigned, sigv4.PayloadEmpty}[rng.IntN(2)]
		at := time.Unix(rng.Int64N(4e9), 0)
		theirs := r.Clone(context.Background())
		theirs.Header.Set("X-Amz-Content-Sha256", string(payload))
		oracle := sdk.NewSigner(func(o *sdk.SignerOptions) { o.DisableURIPathEscaping = strings.HasPrefix(service, "s3") })
		c := aws.Credentials{AccessKeyID: suiteKeyID, SecretAccessKey: suiteSecret, SessionToken: suiteToken}
		if err := oracle.SignHTTP(context.Background(), c, theirs, string(payload), service, "us-east-1", at); err != nil {
			t.Fatal(err)
		}
		// What a proxy adds or takes away makes no difference.
		for _, k := range []string{"Via", "X-Forwarded-For", "Connection", "Te", "Traceparent", "Accept-Encoding", "Expect", "Attache-Task", "User-Agent", "Date"} {
			r.Header.Set(k, "x")
		}
		raw := r.URL.RawQuery
		p := sigv4.Params{Algorithm: sigv4.V4, Service: service, Region: "us-east-1", Time: at, Payload: payload}
		if err := ours.Sign(context.Background(), r, suiteCredentials(suiteToken), p); err != nil {
			t.Fatal(err)
		}
		if got, want := r.Header.Get("Authorization"), theirs.Header.Get("Authorization"); got != want {
			t.Fatalf("%d: %s %s (%s)\n got %s\nwant %s", i, r.Method, r.URL, service, got, want)
		}
		if r.URL.RawQuery != raw {
			t.Fatalf("the query became %q, was %q", r.URL.RawQuery, raw)
		}
		// SigV4a's text is ours: it must be what gives the SDK's signature.
		text, signed := sigv4.CanonicalRequest(r, p, string(payload))
		scope := at.UTC().Format("20060102") + "/us-east-1/" + service + "/aws4_request"
		k := []byte("AWS4" + suiteSecret)
		for part := range strings.SplitSeq(scope, "/") {
			k = mac(k, part)
		}
		sig := fmt.Sprintf("%x", mac(k, "AWS4-HMAC-SHA256\n"+at.UTC().Format("20060102T150405Z")+"\n"+scope+"\n"+sum([]byte(text))))
		if sig != signatureOf(theirs) || !strings.Contains(theirs.Header.Get("Authorization"), "SignedHeaders="+signed+",") {
			t.Fatalf("%d: our canonical request differs from the SDK's:\n%s", i, text)
		}
	}
}

func TestOnlyWhatTheClientSigned(t *testing.T) {
	r := claimRequest("", "X-Other", "a", "Range", "bytes=0-1", "Cookie", "c", "X-Amz-Acl", "private", "Content-Type", "t")
	p := sigv4.Params{Algorithm: sigv4.V4, Service: "s3", Region: "r", Time: suiteTime, Payload: sigv4.PayloadUnsigned, SignedHeaders: []string{"host", "range", "user-agent"}}
	if err := sigv4.NewSigner().Sign(context.Background(), r, suiteCredentials(""), p); err != nil {
		t.Fatal(err)
	}
	if got, want := r.Header.Get("Authorization"), "SignedHeaders=content-type;host;range;x-amz-acl;x-amz-content-sha256;x-amz-date,"; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPayloadWithoutHash(t *testing.T) {
	big := int64(sigv4.MaxHashedBody + 1)
	for _, tt := range []struct {
		name, service string
		tls           bool
		body          string
		length        int64
		endless       bool
		want          error
		header        string
	}{
		{name: "S3 over TLS is not read", service: "s3", tls: true, endless: true, length: big, header: "UNSIGNED-PAYLOAD"},
		{name: "S3 in the clear is hashed", service: "s3", body: "hello", length: 5, header: sum([]byte("hello"))},
		{name: "S3 without body", service: "s3", tls: true, header: string(sigv4.PayloadEmpty)},
		{name: "others are hashed", service: "sts", tls: true, body: "hello", length: -1},
		{name: "too large by its length", service: "sts", tls: true, endless: true, length: big, want: sigv4.ErrTooLarge},
		{name: "too large as it turns out", service: "sts", tls: true, endless: true, length: -1, want: sigv4.ErrTooLarge},
		{name: "S3 in the clear, too large", service: "s3", endless: true, length: -1, want: sigv4.ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := claimRequest("")
			r.Method, r.ContentLength = http.MethodPost, tt.length
			var read counter
			switch {
			case tt.endless:
				read.r = zeros{}
				r.Body = io.NopCloser(&read)
			case tt.body != "":
				r.Body = io.NopCloser(strings.NewReader(tt.body))
			}
			p := sigv4.Params{Algorithm: sigv4.V4, Service: tt.service, Region: "r", Time: suiteTime, TLS: tt.tls}
			err := sigv4.NewSigner().Sign(context.Background(), r, suiteCredentials(""), p)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil {
				if read.n > big+1<<20 || tt.length > 0 && read.n > 0 {
					t.Errorf("%d bytes were read", read.n)
				}
				return
			}
			if got := r.Header.Get("X-Amz-Content-Sha256"); got != tt.header {
				t.Errorf("payload %q, want %q", got, tt.header)
			}
			if tt.body != "" {
				b, _ := io.ReadAll(r.Body)
				if string(b) != tt.body || r.ContentLength != int64(len(tt.body)) || r.GetBody == nil {
					t.Errorf("body %q of %d", b, r.ContentLength)
				}
				if text, _ := sigv4.CanonicalRequest(r, p, ""); strings.Contains(text, tt.body) {
					t.Error("the body is in the text")
				}
			}
			if tt.endless && read.n > 0 {
				t.Errorf("%d bytes were read", read.n)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func TestSignRefuses(t *testing.T) {
	ok := sigv4.Params{Algorithm: sigv4.V4, Service: "s3", Region: "r", Time: suiteTime, Payload: sigv4.PayloadUnsigned}
	with := func(change func(*sigv4.Params)) sigv4.Params { p := ok; change(&p); return p }
	for _, tt := range []struct {
		name   string
		query  string
		header []string
		p      sigv4.Params
		c      sigv4.Credentials
		want   error // nil: any
	}{
		{name: "semicolon in the query", query: "a;b=c", p: ok, want: sigv4.ErrMalformed},
		{name: "bad escape in the query", query: "a=%zz", p: ok, want: sigv4.ErrMalformed},
		{name: "event stream", header: []string{"Content-Type", "application/vnd.amazon.eventstream"}, p: ok, want: sigv4.ErrEventStream},
		{name: "no region", p: with(func(p *sigv4.Params) { p.Region = "" })},
		{name: "no region set", p: with(func(p *sigv4.Params) { p.Algorithm = sigv4.V4A })},
		{name: "no service", p: with(func(p *sigv4.Params) { p.Service = "" })},
		{name: "no time", p: with(func(p *sigv4.Params) { p.Time = time.Time{} })},
		{name: "no algorithm", p: with(func(p *sigv4.Params) { p.Algorithm = "" })},
		{name: "odd payload", p: with(func(p *sigv4.Params) { p.Payload = "x" }), want: sigv4.ErrMalformed},
		{name: "v4a chunks with v4", p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4A }), want: sigv4.ErrMalformed},
		{name: "chunks without length", p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4 }), want: sigv4.ErrMalformed},
		{name: "chunks of 6 TiB", header: []string{"X-Amz-Decoded-Content-Length", "6597069766656"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4 }), want: sigv4.ErrTooLarge},
		{name: "chunks of -1", header: []string{"X-Amz-Decoded-Content-Length", "-1"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4 }), want: sigv4.ErrMalformed},
		{name: "trailer in a mode without", header: []string{"X-Amz-Decoded-Content-Length", "1", "X-Amz-Trailer", "a"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4 }), want: sigv4.ErrMalformed},
		{name: "no trailer in a mode with", header: []string{"X-Amz-Decoded-Content-Length", "1"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4Trailer }), want: sigv4.ErrMalformed},
		{name: "a trailer twice", header: []string{"X-Amz-Decoded-Content-Length", "1", "X-Amz-Trailer", "a,A"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4Trailer }), want: sigv4.ErrMalformed},
		{name: "a trailer that is no checksum", header: []string{"X-Amz-Decoded-Content-Length", "1", "X-Amz-Trailer", "x-amz-acl"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadUnsignedTrailer }), want: sigv4.ErrMalformed},
		{name: "the signature as a trailer", header: []string{"X-Amz-Decoded-Content-Length", "1", "X-Amz-Trailer", "x-amz-trailer-signature"}, p: with(func(p *sigv4.Params) { p.Payload = sigv4.PayloadV4Trailer }), want: sigv4.ErrMalformed},
		{name: "no secret", p: ok, c: sigv4.Credentials{AccessKeyID: "A"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.c.AccessKeyID == "" {
				tt.c = suiteCredentials(suiteToken)
			}
			r := claimRequest(tt.query, tt.header...)
			r.Body = io.NopCloser(strings.NewReader("x"))
			err := sigv4.NewSigner().Sign(context.Background(), r, tt.c, tt.p)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if r.Header.Get("Authorization") != "" || r.Header.Get("X-Amz-Security-Token") != "" {
				t.Error("the credential is on the request")
			}
		})
	}
}

func TestCanonicalPaths(t *testing.T) {
	for _, tt := range []struct{ service, raw, want string }{
		{"s3", "/b/a%2Fb", "/b/a%2Fb"}, {"s3", "/b//c/../d/.", "/b//c/../d/."}, {"s3", "/b/a!%7e%2bc", "/b/a%21~%2Bc"}, {"s3", "/b/100%", "/b/100%25"}, {"s3", "", "/"},
		{"lambda", "/f/arn%3Aaws/x", "/f/arn%253Aaws/x"}, {"lambda", "/a//b/./c/../d/", "/a/b/d/"}, {"lambda", "/..", "/"},
	} {
		r := claimRequest("")
		r.URL = &url.URL{Opaque: "//h" + tt.raw}
		text, _ := sigv4.CanonicalRequest(r, sigv4.Params{Service: tt.service}, "")
		if got := strings.Split(text, "\n")[1]; got != tt.want {
			t.Errorf("%s %q: got %q, want %q", tt.service, tt.raw, got, tt.want)
		}
	}
}

func TestExpressSessionToken(t *testing.T) {
	r := claimRequest("")
	p := sigv4.Params{Algorithm: sigv4.V4, Service: "s3express", Region: "r", Time: suiteTime, Payload: sigv4.PayloadUnsigned, S3Session: true}
	if err := sigv4.NewSigner().Sign(context.Background(), r, suiteCredentials(suiteToken), p); err != nil {
		t.Fatal(err)
	}
	if r.Header.Get("X-Amz-S3session-Token") != suiteToken || r.Header.Get("X-Amz-Security-Token") != "" || !strings.Contains(r.Header.Get("Authorization"), "x-amz-s3session-token") {
		t.Errorf("header %v", r.Header)
	}
}

// TestCachedKeys mixes credentials, regions and days: a key of one must never
// sign for another, and what is kept has a bound.
func TestCachedKeys(t *testing.T) {
	s := sigv4.NewSigner()
	for i := range 3 * sigv4.MaxKeys {
		c := sigv4.Credentials{AccessKeyID: fmt.Sprint("A", i%6), SecretAccessKey: secret.New(fmt.Sprint("s", i))}
		p := sigv4.Params{Algorithm: sigv4.V4, Service: []string{"s3", "sts"}[i%2], Region: fmt.Sprint("r", i%3), Time: suiteTime.AddDate(0, 0, i%2), Payload: sigv4.PayloadUnsigned}
		warm, cold := claimRequest(""), claimRequest("")
		if err := errors.Join(s.Sign(context.Background(), warm, c, p), sigv4.NewSigner().Sign(context.Background(), cold, c, p)); err != nil {
			t.Fatal(err)
		}
		if signatureOf(warm) != signatureOf(cold) {
			t.Fatalf("%d: the cached key signs otherwise", i)
		}
	}
	if n := s.KeysHeld(); n > 2*sigv4.MaxKeys {
		t.Errorf("%d keys are held", n)
	}
	before := s.KeysHeld()
	for i := range 6 {
		s.Forget(fmt.Sprint("A", i))
	}
	if n := s.KeysHeld(); before == 0 || n != 0 {
		t.Errorf("%d keys are held after Forget, %d before", n, before)
	}
}

// TestUnknownTrailerHasNoLength wants chunked transfer where the length of a
// trailer cannot be known, and the trailer to arrive.
func TestUnknownTrailerHasNoLength(t *testing.T) {
	v := newVerifier(true)
	stream(t, v, sigv4.PayloadV4Trailer, []byte("hello"), encode([]byte("hello"), 3, 64, []string{"x-amz-checksum-later:v w"}), []string{"x-amz-checksum-later:"})
	if got := v.last(t); got.length != -1 || got.trailers["x-amz-checksum-later"] != "v w" {
		t.Errorf("length %d, trailers %v", got.length, got.trailers)
	}
}

// TestConstantMemory re-signs a body that the client sent as one chunk of
// 256 MiB and looks at what was allocated.
func TestConstantMemory(t *testing.T) {
	const size = 256 << 20
	body := oneChunk(size)
	r, p, err := streamRequest("http://h", sigv4.PayloadV4, size, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sigv4.NewSigner().Sign(t.Context(), r, suiteCredentials(""), p); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := io.Copy(io.Discard, r.Body)
	runtime.ReadMemStats(&after)
	if err != nil || n != r.ContentLength {
		t.Fatalf("%d bytes, want %d: %v", n, r.ContentLength, err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
		t.Errorf("%d bytes were allocated for a body of %d", got, size)
	}
}

// TestEndlessTrailers wants an end to a trailer that comes again and again.
func TestEndlessTrailers(t *testing.T) {
	line := crcTrailer(nil) + "\r\n"
	lines := &counter{r: &repeat{line: line}}
	body := io.MultiReader(strings.NewReader("0;chunk-signature="+strings.Repeat("0a", 32)+"\r\n"), lines)
	_, _, err := sigv4.DecodeAll(body, 0, sigv4.PayloadV4Trailer, []string{"x-amz-checksum-crc32"})
	if !errors.Is(err, sigv4.ErrMalformed) || lines.n > 128<<10 {
		t.Errorf("%d bytes were read: %v", lines.n, err)
	}
}

type repeat struct {
	line string
	n    int
}

// Read gives one line, and the end after many, so that the test of a decoder
// without a bound fails and does not hang.
func (r *repeat) Read(p []byte) (int, error) {
	if r.n++; r.n > 100_000 {
		return 0, io.EOF
	}
	return copy(p, r.line), nil
}

func oneChunk(size int64) io.Reader {
	sig := strings.Repeat("0a", 32)
	return io.MultiReader(strings.NewReader(fmt.Sprintf("%x;chunk-signature=%s\r\n", size, sig)), io.LimitReader(zeros{}, size),
		strings.NewReader("\r\n0;chunk-signature="+sig+"\r\n\r\n"))
}

// FuzzDecoder wants a decoder that neither panics nor gives more than was
// declared, and agrees with itself on what it gives.
func FuzzDecoder(f *testing.F) {
	for _, size := range []int{0, 1, 100, 5000} {
		data := bytes.Repeat([]byte("z"), size)
		f.Add(encode(data, 1000, 64, nil), int64(size), false, false, false)
		f.Add(encode(data, 77, 64, []string{crcTrailer(data)}), int64(size), true, false, false)
		f.Add(encode(data, 77, 144, []string{crcTrailer(data)}), int64(size), true, true, false)
		f.Add(encode(data, 77, 0, []string{crcTrailer(data)}), int64(size), true, false, true)
	}
	f.Fuzz(func(t *testing.T, body []byte, declared int64, trailer, v4a, unsigned bool) {
		if declared < 0 || declared > 1<<20 {
			return
		}
		mode := map[[2]bool]sigv4.Payload{{false, false}: sigv4.PayloadV4, {true, false}: sigv4.PayloadV4Trailer, {false, true}: sigv4.PayloadV4A, {true, true}: sigv4.PayloadV4ATrailer}[[2]bool{trailer, v4a}]
		if unsigned {
			mode, trailer = sigv4.PayloadUnsignedTrailer, true
		}
		var names []string
		if trailer {
			names = []string{"x-amz-checksum-crc32"}
		}
		data, got, err := sigv4.DecodeAll(bytes.NewReader(body), declared, mode, names)
		if int64(len(data)) > declared {
			t.Fatalf("%d bytes came, %d were declared", len(data), declared)
		}
		if err != nil {
			if !errors.Is(err, sigv4.ErrMalformed) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		if int64(len(data)) != declared || len(got) != len(names) {
			t.Fatalf("%d bytes and %d trailers were taken, want %d and %d", len(data), len(got), declared, len(names))
		}
		if !bytes.Contains(body, []byte("\r\n")) {
			t.Fatal("a body without lines was taken")
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, alg := range []sigv4.Algorithm{sigv4.V4, sigv4.V4A} {
		b.Run(string(alg), func(b *testing.B) {
			s := sigv4.NewSigner()
			c := suiteCredentials(suiteToken)
			p := sigv4.Params{Algorithm: alg, Service: "s3", Region: "us-east-1", RegionSet: []string{"*"}, Time: suiteTime, Payload: sigv4.PayloadUnsigned}
			b.ReportAllocs()
			for b.Loop() {
				r := benchRequest()
				if err := s.Sign(context.Background(), r, c, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("SDK alone", func(b *testing.B) {
		s := sdk.NewSigner(func(o *sdk.SignerOptions) { o.DisableURIPathEscaping = true })
		c := aws.Credentials{AccessKeyID: suiteKeyID, SecretAccessKey: suiteSecret, SessionToken: suiteToken}
		b.ReportAllocs()
		for b.Loop() {
			r := benchRequest()
			r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
			if err := s.SignHTTP(context.Background(), c, r, "UNSIGNED-PAYLOAD", "s3", "us-east-1", suiteTime); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("canonical request of our own", func(b *testing.B) {
		p := sigv4.Params{Algorithm: sigv4.V4, Service: "s3", Region: "us-east-1", Time: suiteTime}
		b.ReportAllocs()
		for b.Loop() {
			sigv4.CanonicalRequest(benchRequest(), p, "UNSIGNED-PAYLOAD")
		}
	})
}

func benchRequest() *http.Request {
	return &http.Request{
		Method: http.MethodPut, Host: "bucket.s3.us-east-1.amazonaws.com", URL: &url.URL{Path: "/a/key", RawQuery: "partNumber=1&uploadId=abc"}, ContentLength: 1 << 20,
		Header: http.Header{"Content-Type": {"text/plain"}, "User-Agent": {"x"}, "X-Amz-Meta-A": {"b"}, "Accept-Encoding": {"identity"}, "Amz-Sdk-Invocation-Id": {"id"}, "Amz-Sdk-Request": {"attempt=1"}},
	}
}

func BenchmarkParse(b *testing.B) {
	r := claimRequest("partNumber=1", "Authorization", v4Auth, "X-Amz-Date", "20150830T123600Z", "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sigv4.Parse(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRechunkGiB(b *testing.B) {
	for _, mode := range []sigv4.Payload{sigv4.PayloadV4, sigv4.PayloadV4A} {
		b.Run(string(mode), func(b *testing.B) {
			const size = 1 << 30
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				body := oneChunk(size)
				if mode == sigv4.PayloadV4A {
					sig := strings.Repeat("0a", 72)
					body = io.MultiReader(strings.NewReader(fmt.Sprintf("%x;chunk-signature=%s\r\n", size, sig)), io.LimitReader(zeros{}, size), strings.NewReader("\r\n0;chunk-signature="+sig+"\r\n\r\n"))
				}
				r, p, err := streamRequest("http://h", mode, size, body, nil)
				if err != nil {
					b.Fatal(err)
				}
				if err := sigv4.NewSigner().Sign(b.Context(), r, suiteCredentials(""), p); err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r.Body); err != nil || n != r.ContentLength {
					b.Fatal(n, err)
				}
			}
		})
	}
}
