package sigv4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/internal/secret"
)

const (
	placeholderID     = "AKIAPLACEHOLDER00000"
	placeholderSecret = "placeholder-secret"
	realID            = "ASIAREAL000000000000"
	realSecret        = "realSecret/realSecret+realSecret"
	realToken         = "real//session+token=="
)

func newVerifier(single bool) *verifier {
	return &verifier{id: realID, secret: realSecret, token: realToken, tokenField: "X-Amz-Security-Token", single: single}
}

func (v *verifier) credentials() sigv4.Credentials {
	return sigv4.Credentials{AccessKeyID: v.id, SecretAccessKey: secret.New(v.secret), SessionToken: secret.New(v.token)}
}

// resigner is the least pipeline: parse, strip, sign, send.
type resigner struct {
	target *url.URL
	creds  sigv4.Credentials
	signer *sigv4.Signer
	change func(*sigv4.Params)
}

func (p *resigner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := p.resign(r)
	if err != nil {
		contentType, body := sigv4.ErrorBody(sigv4.S3XML, "AccessDenied", err.Error(), "rec1")
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write(body)
		return
	}
	resp, err := (&http.Transport{DisableCompression: true}).RoundTrip(out)
	if err != nil {
		contentType, body := sigv4.ErrorBody(sigv4.S3XML, "BadRequest", err.Error(), "rec1")
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(body)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	for k, vs := range resp.Header {
		w.Header()[k] = vs
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func (p *resigner) resign(r *http.Request) (*http.Request, error) {
	c, err := sigv4.Parse(r)
	if err != nil {
		return nil, err
	}
	if err := c.Check(time.Now()); err != nil {
		return nil, err
	}
	if c.AccessKeyID != placeholderID {
		return nil, fmt.Errorf("access key id %q", c.AccessKeyID)
	}
	out := r.Clone(r.Context())
	sigv4.Strip(out)
	out.RequestURI, out.URL.Scheme, out.URL.Host, out.Host = "", p.target.Scheme, p.target.Host, p.target.Host
	for _, k := range []string{"Connection", "Expect"} {
		out.Header.Del(k)
	}
	out.Header.Set("Via", "1.1 proxy") // added by us: must not be signed
	params := c.Params(time.Now())
	if p.change != nil {
		p.change(&params)
	}
	return out, p.signer.Sign(r.Context(), out, p.creds, params)
}

func goClient(endpoint string, change func(*s3.Options)) *s3.Client {
	o := s3.Options{
		BaseEndpoint: &endpoint, UsePathStyle: true, Region: "eu-west-1", RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(placeholderID, placeholderSecret, "placeholder-token"),
	}
	if change != nil {
		change(&o)
	}
	return s3.New(o)
}

func TestGoSDK(t *testing.T) {
	v := newVerifier(true)
	cl := goClient(start(t, v, nil), nil)
	ctx := context.Background()
	data := bytes.Repeat([]byte("0123456789"), 30_000)
	for _, key := range []string{"plain", "a key/+%?ü~!'()* b", "x//y/../z", "%2F"} {
		if _, err := cl.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("b"), Key: &key, Body: bytes.NewReader(data), ContentType: aws.String("text/plain"), Metadata: map[string]string{"m": "  two  spaces "}}); err != nil {
			t.Fatalf("put %q: %v", key, err)
		}
		if got := v.last(t); got.body != string(data) {
			t.Errorf("put %q: %d bytes came, want %d", key, len(got.body), len(data))
		}
		if _, err := cl.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("b"), Key: &key, Range: aws.String("bytes=0-4")}); err != nil {
			t.Errorf("get %q: %v", key, err)
		}
	}
	if _, err := cl.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("b"), Prefix: aws.String("a key/+&="), Delimiter: aws.String("/")}); err != nil && !strings.Contains(err.Error(), "EOF") {
		t.Errorf("list: %v", err)
	}
	if got := v.last(t); !strings.Contains(got.uri, "prefix=a%20key%2F%2B%26%3D") {
		t.Errorf("list was sent as %s", got.uri)
	}
	ps, err := s3.NewPresignClient(cl).PresignPutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("p q"), Body: strings.NewReader("hello")})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, ps.Method, ps.URL, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for k, vs := range ps.SignedHeader {
		req.Header[k] = vs
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got := v.last(t)
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || got.body != "hello" || strings.Contains(got.uri, "X-Amz-Signature") || strings.Contains(got.uri, "Security-Token") {
		t.Errorf("presigned put: %d %s, sent as %s with %q", resp.StatusCode, b, got.uri, got.body)
	}
	for _, got := range v.seen {
		if strings.Contains(fmt.Sprint(got.header, got.uri), "laceholder") || strings.Contains(got.auth, "via") {
			t.Errorf("%s %s carries the agent's signature or signs Via: %v", got.method, got.uri, got.header)
		}
	}
}

// TestGoSDKTrailingChecksums goes over TLS: without it the SDK sends no
// trailers.
func TestGoSDKTrailingChecksums(t *testing.T) {
	for _, alg := range []types.ChecksumAlgorithm{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"} {
		t.Run(string(alg), func(t *testing.T) {
			v := newVerifier(true)
			front := httptest.NewTLSServer(newResigner(t, v, nil))
			t.Cleanup(front.Close)
			cl := goClient(front.URL, func(o *s3.Options) { o.HTTPClient = front.Client() })
			data := strings.Repeat("x", 200_000)
			_, err := cl.PutObject(context.Background(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("k"), Body: io.LimitReader(strings.NewReader(data), 1<<20), ContentLength: aws.Int64(200_000), ChecksumAlgorithm: alg})
			if err != nil {
				t.Fatal(err)
			}
			got := v.last(t)
			if got.body != data || got.payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
				t.Errorf("%d bytes came as %s, want %d", len(got.body), got.payload, len(data))
			}
			if _, ok := got.trailers["x-amz-checksum-"+strings.ToLower(string(alg))]; !ok {
				t.Errorf("trailers are %v", got.trailers)
			}
		})
	}
}

// TestGoSDKMultiRegion has the SDK sign with SigV4a, as it does for
// multi-region access points, in a header and in a presigned URL.
func TestGoSDKMultiRegion(t *testing.T) {
	v := newVerifier(true)
	front := httptest.NewTLSServer(newResigner(t, v, nil))
	t.Cleanup(front.Close)
	addr := front.Listener.Addr().String()
	tr := front.Client().Transport.(*http.Transport).Clone()
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	tr.TLSClientConfig.ServerName = "example.com" // in the certificate of httptest
	hc := &http.Client{Transport: tr}
	cl := goClient("", func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle, o.HTTPClient = nil, false, hc })
	in := &s3.PutObjectInput{Bucket: aws.String("arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap"), Key: aws.String("k ü"), Body: strings.NewReader("hello")}
	if _, err := cl.PutObject(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		got := v.last(t)
		if got.body != "hello" || !strings.HasPrefix(got.auth, "AWS4-ECDSA-P256-SHA256 Credential="+realID+"/") || got.header.Get("X-Amz-Region-Set") != "*" {
			t.Errorf("%s: %q came with %s", what, got.body, got.auth)
		}
	}
	check("put")
	in.Body = strings.NewReader("hello")
	ps, err := s3.NewPresignClient(cl).PresignPutObject(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), ps.Method, ps.URL, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	check("presigned put")
}

// python is an interpreter that has boto3.
func python(t *testing.T) string {
	t.Helper()
	for _, bin := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(bin, "-c", "import boto3").Run() == nil {
			return bin
		}
	}
	missing(t, "boto3")
	return ""
}

// missing skips the test, unless ATTACHE_REQUIRE_SERVERS=1.
func missing(t *testing.T, name string) {
	t.Helper()
	if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
}

func clean(t *testing.T, name string, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		missing(t, name)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_EC2_METADATA_DISABLED=true"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	v := newVerifier(true)
	proxy := start(t, v, nil)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, bytes.Repeat([]byte("c"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	out := clean(t, "curl", "-sS", "-w", "%{http_code}", "--aws-sigv4", "aws:amz:eu-west-1:s3", "-u", placeholderID+":"+placeholderSecret, "-T", file, proxy+"/b/curl")
	if got := v.last(t); !strings.HasSuffix(out, "200") || len(got.body) != 100_000 {
		t.Errorf("curl said %s; %d bytes came", out, len(got.body))
	}
}

func TestBoto3(t *testing.T) {
	bin := python(t)
	v := newVerifier(true)
	proxy := start(t, v, nil)
	out := clean(t, bin, "-c", `
import boto3, io, sys, urllib.request
from botocore.config import Config
kw = dict(region_name='eu-west-1', endpoint_url=sys.argv[1], aws_access_key_id=sys.argv[2], aws_secret_access_key='placeholder-secret')
c = boto3.client('s3', config=Config(signature_version='s3v4'), **kw)
c.put_object(Bucket='b', Key='k ü+', Body=b'hello', Tagging='a=b')
c.upload_fileobj(io.BytesIO(b'z'*9000000), 'b', 'mp')
c.get_object(Bucket='b', Key='k ü+')
u = c.generate_presigned_url('get_object', Params=dict(Bucket='b', Key='k ü+', ResponseContentType='text/plain; x=1'))
urllib.request.urlopen(u).read()
print('done')
`, proxy, placeholderID)
	if strings.TrimSpace(out) != "done" || len(v.seen) < 7 {
		t.Errorf("boto3 said %q after %d requests", out, len(v.seen))
	}
}

func TestBoto3OtherServices(t *testing.T) {
	bin := python(t)
	v := newVerifier(false)
	proxy := start(t, v, nil)
	clean(t, bin, "-c", `
import boto3, sys
kw = dict(region_name='eu-west-1', endpoint_url=sys.argv[1], aws_access_key_id=sys.argv[2], aws_secret_access_key='placeholder-secret')
def go(f, **a):
    try: f(**a)
    except Exception as e:
        if 'SignatureDoesNotMatch' in str(e) or 'AccessDenied' in str(e): raise
go(boto3.client('dynamodb', **kw).get_item, TableName='table', Key={'k': {'S': 'v'}})
go(boto3.client('sns', **kw).publish, TopicArn='arn:aws:sns:eu-west-1:1:t', Message='m & ü')
go(boto3.client('lambda', **kw).invoke, FunctionName='arn:aws:lambda:eu-west-1:1:function:f:a', Payload=b'{}')
`, proxy, placeholderID)
	if len(v.seen) < 3 {
		t.Errorf("%d requests came through, want 3", len(v.seen))
	}
}

// TestStreamingModes sends chunks as clients cut them and wants them anew, each
// signature verified, at the exact length.
func TestStreamingModes(t *testing.T) {
	for _, tt := range []struct {
		payload sigv4.Payload
		trailer bool
	}{{sigv4.PayloadV4, false}, {sigv4.PayloadV4Trailer, true}, {sigv4.PayloadV4A, false}, {sigv4.PayloadV4ATrailer, true}, {sigv4.PayloadUnsignedTrailer, true}} {
		for _, size := range []int{0, 1, 8192, sigv4.ChunkSize - 1, sigv4.ChunkSize, sigv4.ChunkSize + 1, 3*sigv4.ChunkSize + 7} {
			for _, cut := range []int{1000, 65536, 1 << 20} {
				t.Run(fmt.Sprintf("%s/%d/%d", tt.payload, size, cut), func(t *testing.T) {
					v := newVerifier(true)
					data := bytes.Repeat([]byte("d"), size)
					var trailers []string
					sigLen := 64
					if tt.trailer {
						trailers = []string{crcTrailer(data)}
					}
					if strings.Contains(string(tt.payload), "ECDSA") {
						sigLen = 144
					} else if tt.payload == sigv4.PayloadUnsignedTrailer {
						sigLen = 0
					}
					stream(t, v, tt.payload, data, encode(data, cut, sigLen, trailers), trailers)
					got := v.last(t)
					if got.body != string(data) {
						t.Errorf("%d bytes came, want %d", len(got.body), size)
					}
					if tt.trailer && "x-amz-checksum-crc32:"+got.trailers["x-amz-checksum-crc32"] != trailers[0] {
						t.Errorf("trailers %v, want %s", got.trailers, trailers[0])
					}
					if got.length <= 0 {
						t.Errorf("Content-Length %d", got.length)
					}
				})
			}
		}
	}
}

func streamRequest(target string, p sigv4.Payload, size int, body io.Reader, trailers []string) (*http.Request, sigv4.Params, error) {
	r, err := http.NewRequest(http.MethodPut, target+"/b/k", io.NopCloser(body))
	if err != nil {
		return nil, sigv4.Params{}, err
	}
	r.ContentLength = -1
	r.Header.Set("X-Amz-Content-Sha256", string(p))
	r.Header.Set("X-Amz-Decoded-Content-Length", fmt.Sprint(size))
	r.Header.Set("Content-Encoding", "aws-chunked")
	if trailers != nil {
		names := make([]string, len(trailers))
		for i, tr := range trailers {
			names[i], _, _ = strings.Cut(tr, ":")
		}
		r.Header.Set("X-Amz-Trailer", strings.Join(names, ","))
	}
	params := sigv4.Params{Algorithm: sigv4.V4, Service: "s3", Region: "eu-west-1", Time: time.Now(), Payload: p}
	if strings.Contains(string(p), "ECDSA") {
		params.Algorithm, params.RegionSet = sigv4.V4A, []string{"*"}
	}
	return r, params, nil
}

func stream(t *testing.T, v *verifier, p sigv4.Payload, data, body []byte, trailers []string) {
	t.Helper()
	resp, err := trySend(t, v, p, len(data), body, trailers)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d: %s", resp.StatusCode, b)
	}
}

func trySend(t *testing.T, v *verifier, p sigv4.Payload, size int, body []byte, trailers []string) (*http.Response, error) {
	t.Helper()
	origin := newServer(t, v)
	r, params, err := streamRequest(origin, p, size, bytes.NewReader(body), trailers)
	if err != nil {
		t.Fatal(err)
	}
	if err := sigv4.NewSigner().Sign(t.Context(), r, v.credentials(), params); err != nil {
		return nil, err
	}
	return http.DefaultTransport.RoundTrip(r.WithContext(t.Context()))
}

// TestMalformedChunksAreNotSent wants each framing error refused, and no whole
// request at the service.
func TestMalformedChunksAreNotSent(t *testing.T) {
	sig := strings.Repeat("0a", 32)
	good := "5;chunk-signature=" + sig + "\r\nhello\r\n0;chunk-signature=" + sig + "\r\n"
	crc := "x-amz-checksum-crc32:NhCmhg=="
	end := "x-amz-trailer-signature:" + sig + "\r\n\r\n"
	for _, tt := range []struct {
		name, body string
		payload    sigv4.Payload
		trailers   []string
		size       int
	}{
		{name: "no signature", body: strings.Replace(good, ";chunk-signature="+sig, "", 1) + "\r\n"},
		{name: "short signature", body: strings.Replace(good, sig, sig[2:], 1) + "\r\n"},
		{name: "other extension", body: strings.Replace(good, "chunk-signature", "chunk-sig", 1) + "\r\n"},
		{name: "two extensions", body: strings.Replace(good, sig+"\r", sig+";x=y\r", 1) + "\r\n"},
		{name: "bare newline", body: strings.Replace(good, "\r\n", "\n", 1) + "\r\n"},
		{name: "size with 0x", body: "0x" + good + "\r\n"},
		{name: "size with sign", body: "+" + good + "\r\n"},
		{name: "size with space", body: " " + good + "\r\n"},
		{name: "size not hex", body: "g" + good[1:] + "\r\n"},
		{name: "huge size", body: "ffffffffffffffff" + good[1:] + "\r\n"},
		{name: "line too long", body: strings.Repeat("0", 400) + good + "\r\n"},
		{name: "no CRLF after data", body: strings.Replace(good, "hello\r\n", "helloXX", 1) + "\r\n"},
		{name: "more than declared", body: good + "\r\n", size: 4},
		{name: "less than declared", body: good + "\r\n", size: 6},
		{name: "cut in a line", body: good[:20]},
		{name: "cut in data", body: good[:87]},
		{name: "cut before the last CRLF", body: good},
		{name: "surplus", body: good + "\r\nx"},
		{name: "trailer in a mode without", body: good + crc + "\r\n" + end},
		{name: "trailer missing", body: good + end, payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
		{name: "trailer not announced", body: good + "x-amz-meta-a:b\r\n" + end, payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
		{name: "trailer twice", body: good + crc + "\r\n" + crc + "\r\n" + end, payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
		{name: "trailer too short", body: good + crc[:len(crc)-4] + "\r\n" + end, payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
		{name: "trailer with a control character", body: good + "x-amz-meta-a:b\x01\r\n" + end, payload: sigv4.PayloadV4Trailer, trailers: []string{"x-amz-meta-a"}},
		{name: "trailer too long", body: good + "x-amz-meta-a:" + strings.Repeat("b", 3000) + "\r\n" + end, payload: sigv4.PayloadV4Trailer, trailers: []string{"x-amz-meta-a"}},
		{name: "trailer without signature", body: good + crc + "\r\n\r\n", payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
		{name: "trailer after the signature", body: good + end[:len(end)-2] + crc + "\r\n\r\n", payload: sigv4.PayloadV4Trailer, trailers: []string{crc}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.payload == "" {
				tt.payload = sigv4.PayloadV4
			}
			if tt.size == 0 {
				tt.size = 5
			}
			v := newVerifier(true)
			resp, err := trySend(t, v, tt.payload, tt.size, []byte(tt.body), tt.trailers)
			if err == nil {
				_ = resp.Body.Close()
				t.Fatalf("it was sent, and answered %s", resp.Status)
			}
			if !errors.Is(err, sigv4.ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
			if len(v.seen) > 0 {
				t.Error("the service took the request")
			}
		})
	}
	// The check above can fail: the good body passes, in both spellings.
	for _, body := range []string{good + crc + "\r\n" + end, good + crc + "\n\r\n" + strings.TrimSuffix(end, "\r\n\r\n") + "\n\r\n\r\n", good + crc + "\n\r\n" + end} {
		v := newVerifier(true)
		stream(t, v, sigv4.PayloadV4Trailer, []byte("hello"), []byte(body), []string{crc})
	}
}

// TestMalformedUnsignedChunksAreNotSent is the same for chunks that carry no
// signatures, which is what SDKs send over TLS.
func TestMalformedUnsignedChunksAreNotSent(t *testing.T) {
	crc := "x-amz-checksum-crc32:NhCmhg=="
	good := "5\r\nhello\r\n0\r\n" + crc + "\r\n\r\n"
	for _, tt := range []struct {
		name, body string
		size       int
	}{
		{name: "signature", body: strings.Replace(good, "5\r", "5;chunk-signature="+strings.Repeat("0a", 32)+"\r", 1)},
		{name: "size not hex", body: "g" + good[1:]},
		{name: "no CRLF after data", body: strings.Replace(good, "hello\r\n", "helloXX", 1)},
		{name: "more than declared", body: good, size: 4},
		{name: "less than declared", body: good, size: 6},
		{name: "cut in data", body: good[:6]},
		{name: "no last chunk", body: good[:10]},
		{name: "no last line", body: good[:len(good)-2]},
		{name: "no trailer", body: good[:13] + "\r\n"},
		{name: "trailer not announced", body: strings.Replace(good, "crc32:", "crc32c:", 1)},
		{name: "trailer of another length", body: strings.Replace(good, "NhCm", "", 1)},
		{name: "trailer signature", body: good[:len(good)-2] + "x-amz-trailer-signature:" + strings.Repeat("0a", 32) + "\r\n\r\n"},
		{name: "surplus", body: good + "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.size == 0 {
				tt.size = 5
			}
			v := newVerifier(true)
			resp, err := trySend(t, v, sigv4.PayloadUnsignedTrailer, tt.size, []byte(tt.body), []string{crc})
			if err == nil {
				_ = resp.Body.Close()
				t.Fatalf("it was sent, and answered %s", resp.Status)
			}
			if !errors.Is(err, sigv4.ErrMalformed) || len(v.seen) > 0 {
				t.Errorf("got %v, want ErrMalformed; the service took %d requests", err, len(v.seen))
			}
		})
	}
	v := newVerifier(true)
	stream(t, v, sigv4.PayloadUnsignedTrailer, []byte("hello"), []byte(good), []string{crc})
}
