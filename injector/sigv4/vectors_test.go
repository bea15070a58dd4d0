package sigv4_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/internal/secret"
)

// The values below are AWS's published test vectors: the Signature Version 4
// test suite and its SigV4a counterpart (awslabs/aws-c-auth,
// tests/aws-signing-test-suite, Apache-2.0), and the aws-chunked examples of
// the Amazon S3 API reference ("Signature calculations for the Authorization
// header: transferring a payload in multiple chunks").
const (
	suiteKeyID  = "AKIDEXAMPLE"
	suiteSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	suiteToken  = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"
	alnum       = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

var suiteTime = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)

func suiteCredentials(token string) sigv4.Credentials {
	return sigv4.Credentials{AccessKeyID: suiteKeyID, SecretAccessKey: secret.New(suiteSecret), SessionToken: secret.New(token)}
}

func suiteRequest(method, path, query string, header http.Header, body string) *http.Request {
	r := &http.Request{
		Method: method, Host: "example.amazonaws.com", Header: header.Clone(),
		URL: &url.URL{Scheme: "https", Host: "example.amazonaws.com", Opaque: "//example.amazonaws.com" + path, RawQuery: query},
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	return r
}

func TestSuiteV4(t *testing.T) {
	const (
		vanilla = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
		post    = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
		formSum = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"
	)
	h := func(kv ...string) http.Header {
		out := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			out.Add(kv[i], kv[i+1])
		}
		return out
	}
	for _, tt := range []struct {
		name, method, path, query string
		header                    http.Header
		token, body               string
		payload                   sigv4.Payload
		want                      string
	}{
		{name: "get-vanilla", path: "/", want: vanilla},
		{name: "get-header-key-duplicate", path: "/", header: h("My-Header1", "value2", "My-Header1", "value2", "My-Header1", "value1"), want: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
		{name: "get-header-value-multiline", path: "/", header: h("My-Header1", "value1   value2      value3"), want: "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd"},
		{name: "get-header-value-order", path: "/", header: h("My-Header1", "value4", "My-Header1", "value1", "My-Header1", "value3", "My-Header1", "value2"), want: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
		{name: "get-header-value-trim", path: "/", header: h("My-Header1", " value1", "My-Header2", ` "a   b   c"`), want: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{name: "get-relative-normalized", path: "/example/..", want: vanilla},
		{name: "get-relative-relative-normalized", path: "/example1/example2/../..", want: vanilla},
		{name: "get-slash-dot-slash-normalized", path: "/./", want: vanilla},
		{name: "get-slash-normalized", path: "//", want: vanilla},
		{name: "get-slash-pointless-dot-normalized", path: "/./example", want: "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"},
		{name: "get-slashes-normalized", path: "//example//", want: "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"},
		{name: "get-space-normalized", path: "/example space/", want: "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
		{name: "get-unreserved", path: "/" + alnum, want: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
		{name: "get-utf8", path: "/ሴ", want: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
		{name: "get-vanilla-empty-query-key", path: "/", query: "Param1=value1", want: "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
		{name: "get-vanilla-query-order-encoded", path: "/", query: "Param-3=Value3&Param=Value2&%E1%88%B4=Value1", want: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
		{name: "get-vanilla-query-order-key-case", path: "/", query: "Param2=value2&Param1=value1", want: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{name: "get-vanilla-query-unreserved", path: "/", query: alnum + "=" + alnum, want: "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
		{name: "get-vanilla-utf8-query", path: "/", query: "ሴ=bar", want: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
		{name: "get-vanilla-with-session-token", path: "/", token: suiteToken, want: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
		{name: "post-vanilla", method: "POST", path: "/", want: post},
		{name: "post-header-key-sort", method: "POST", path: "/", header: h("My-Header1", "value1"), want: "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
		{name: "post-header-value-case", method: "POST", path: "/", header: h("My-Header1", "VALUE1"), want: "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
		{name: "post-vanilla-query", method: "POST", path: "/", query: "Param1=value1", want: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"},
		{name: "post-x-www-form-urlencoded", method: "POST", path: "/", header: h("Content-Type", "application/x-www-form-urlencoded"), body: "Param1=value1", payload: formSum, want: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"},
		{name: "post-x-www-form-urlencoded-parameters", method: "POST", path: "/", header: h("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), body: "Param1=value1", payload: formSum, want: "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = http.MethodGet
			}
			r := suiteRequest(tt.method, tt.path, tt.query, tt.header, tt.body)
			p := sigv4.Params{Algorithm: sigv4.V4, Service: "service", Region: "us-east-1", Time: suiteTime, Payload: tt.payload}
			if err := sigv4.NewSigner().Sign(context.Background(), r, suiteCredentials(tt.token), p); err != nil {
				t.Fatal(err)
			}
			if got := signatureOf(r); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if r.URL.RawQuery != tt.query {
				t.Errorf("query became %q, want %q", r.URL.RawQuery, tt.query)
			}
		})
	}
}

func signatureOf(r *http.Request) string {
	_, sig, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	return sig
}

func TestSuiteV4ADerivedKeys(t *testing.T) {
	for _, tt := range []struct{ id, secret, x, y string }{
		{suiteKeyID, suiteSecret, "b6618f6a65740a99e650b33b6b4b5bd0d43b176d721a3edfea7e7d2d56d936b1", "865ed22a7eadc9c5cb9d2cbaca1b3699139fedc5043dc6661864218330c8e518"},
		// aws-sdk-go-v2, internal/v4a, TestDeriveECDSAKeyPairFromSecret.
		{"AKISORANDOMAASORANDOM", "q+jcrXGc+0zWN6uzclKVhvMmUsIfRPa4rlRandom", "15d242ceebf8d8169fd6a8b5a746c41140414c3b07579038da06af89190fffcb", "0515242cedd82e94799482e4c0514b505afccf2c0c98d6a553bf539f424c5ec0"},
	} {
		k, err := sigv4.DeriveV4A(tt.id, tt.secret)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(raw[1:]); got != tt.x+tt.y {
			t.Errorf("%s: got %s, want %s", tt.id, got, tt.x+tt.y)
		}
	}
}

// TestSuiteV4A checks AWS's own ECDSA signatures against the text that we would
// sign and the key that we derive: one wrong byte in either fails.
func TestSuiteV4A(t *testing.T) {
	key, err := sigv4.DeriveV4A(suiteKeyID, suiteSecret)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path, query, token string
		header                   http.Header
		signature                string
	}{
		{name: "get-utf8", path: "/ሴ", signature: "30440220672f6dd29db5f01624d301f49107d34f4c0e6fe504a2e7229ca8214c1652b97d022044abe997fac03dc170ea17530860ad3bb4203db0ead613fa6e6d6ad3e95a7350"},
		{name: "get-vanilla-query-order-encoded", path: "/", query: "Param-3=Value3&Param=Value2&%E1%88%B4=Value1", signature: "3044022041ffa05b60e2cc9bac499a22148bb69825873b913cabdcf8b3f97c75ba28f81a0220492937cb6eccb784d5fcf1969e4493ad9417ac3409496ef74f281aa13e279739"},
		{name: "get-vanilla-with-session-token", path: "/", token: suiteToken, signature: "3044021f7cfd51af2b722f8d1fa1afb65b4d5486ed59a67bcf9f3acc62aad6ddd37db10221009d4c9f9a37104fc01a8daffc9a6bd1056b7b43c1196edde0b52878b759628f8c"},
		{name: "get-header-key-duplicate", path: "/", header: http.Header{"My-Header1": {"value2", "value2", "value1"}}, signature: "3045022100b49e91c286a468d72505ea350443b43701ae2cf90f1d6aa6b2d2a77280e11db302205ea3a2a04b8b9ed7b397c29b0050daa200e9e11c86112c9868c984cd840179b1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := suiteRequest(http.MethodGet, tt.path, tt.query, tt.header, "")
			p := sigv4.Params{Algorithm: sigv4.V4A, Service: "service", RegionSet: []string{"us-east-1"}, Time: suiteTime}
			if err := sigv4.NewSigner().Sign(context.Background(), r, suiteCredentials(tt.token), p); err != nil {
				t.Fatal(err)
			}
			text, _ := sigv4.CanonicalRequest(r, p, string(sigv4.PayloadEmpty))
			sum := sha256.Sum256([]byte(text))
			sts := "AWS4-ECDSA-P256-SHA256\n20150830T123600Z\n20150830/service/aws4_request\n" + hex.EncodeToString(sum[:])
			for what, sig := range map[string]string{"AWS's": tt.signature, "our": signatureOf(r)} {
				if !verifies(key, sts, sig) {
					t.Errorf("%s signature does not verify over\n%s", what, text)
				}
			}
			if verifies(key, sts+"x", tt.signature) {
				t.Error("a signature verifies over another text: the check is broken")
			}
		})
	}
}

func verifies(key *ecdsa.PublicKey, sts, sig string) bool {
	der, err := hex.DecodeString(sig)
	sum := sha256.Sum256([]byte(sts))
	return err == nil && ecdsa.VerifyASN1(key, sum[:], der)
}

// TestS3ChunkedExample is the example of the S3 API reference: 65 KiB in chunks
// of 64 KiB, 1 KiB and nothing.
func TestS3ChunkedExample(t *testing.T) {
	data := bytes.Repeat([]byte("a"), 66560)
	r := &http.Request{
		Method: http.MethodPut, Host: "s3.amazonaws.com",
		URL: &url.URL{Scheme: "https", Host: "s3.amazonaws.com", Path: "/examplebucket/chunkObject.txt"},
		Header: http.Header{
			"X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}, "Content-Encoding": {"aws-chunked"},
			"X-Amz-Decoded-Content-Length": {"66560"}, "X-Amz-Content-Sha256": {string(sigv4.PayloadV4)},
		},
		// The client cut its data elsewhere: what goes out must not depend on it.
		Body: io.NopCloser(bytes.NewReader(encode(data, 10_000, 64, nil))), ContentLength: -1,
	}
	c := sigv4.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: secret.New(suiteSecretS3)}
	p := sigv4.Params{Algorithm: sigv4.V4, Service: "s3", Region: "us-east-1", Time: time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC), Payload: sigv4.PayloadV4}
	if err := sigv4.NewSigner().Sign(context.Background(), r, c, p); err != nil {
		t.Fatal(err)
	}
	if got, want := r.ContentLength, int64(66824); got != want {
		t.Errorf("Content-Length %d, want %d", got, want)
	}
	if got, want := signatureOf(r), "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"; got != want {
		t.Errorf("seed %s, want %s", got, want)
	}
	got, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("10000;chunk-signature=%s\r\n%s\r\n400;chunk-signature=%s\r\n%s\r\n0;chunk-signature=%s\r\n\r\n",
		"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648", data[:65536],
		"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497", data[65536:],
		"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9")
	if string(got) != want {
		t.Error("the body is not the documented one")
	}
}

const suiteSecretS3 = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

// encode frames data as an agent would, with worthless signatures.
func encode(data []byte, size, sigLen int, trailers []string) []byte {
	sig := strings.Repeat("0a", 32)
	if sigLen > 64 {
		sig = strings.Repeat("0a", 70) + "****"
	}
	extension := ";chunk-signature=" + sig
	if sigLen == 0 {
		extension = ""
	}
	var b bytes.Buffer
	for i := 0; i < len(data); i += size {
		part := data[i:min(len(data), i+size)]
		fmt.Fprintf(&b, "%x%s\r\n%s\r\n", len(part), extension, part)
	}
	fmt.Fprintf(&b, "0%s\r\n", extension)
	for _, tr := range trailers {
		b.WriteString(tr + "\r\n")
	}
	if trailers != nil && sigLen > 0 {
		b.WriteString("x-amz-trailer-signature:" + sig + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// TestS3TrailerExample is the trailing-checksum example of the S3 API
// reference.
func TestS3TrailerExample(t *testing.T) {
	data := bytes.Repeat([]byte("a"), 66560)
	r := &http.Request{
		Method: http.MethodPut, Host: "s3.amazonaws.com",
		URL: &url.URL{Scheme: "https", Host: "s3.amazonaws.com", Path: "/examplebucket/chunkObject.txt"},
		Header: http.Header{
			"X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}, "Content-Encoding": {"aws-chunked"},
			"X-Amz-Decoded-Content-Length": {"66560"}, "X-Amz-Trailer": {"x-amz-checksum-crc32c"},
		},
		Body: io.NopCloser(bytes.NewReader(encode(data, 9_999, 64, []string{"x-amz-checksum-crc32c:sOO8/Q=="}))), ContentLength: -1,
	}
	c := sigv4.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: secret.New(suiteSecretS3)}
	p := sigv4.Params{
		Algorithm: sigv4.V4, Service: "s3", Region: "us-east-1", Time: time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC), Payload: sigv4.PayloadV4Trailer,
		// The example does not sign Content-Length.
		SignedHeaders: []string{"content-encoding", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-decoded-content-length", "x-amz-storage-class", "x-amz-trailer"},
	}
	if err := sigv4.NewSigner().Sign(context.Background(), r, c, p); err != nil {
		t.Fatal(err)
	}
	length := r.ContentLength
	got, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(got)) != length {
		t.Errorf("the body has %d bytes, Content-Length says %d", len(got), length)
	}
	if got, want := signatureOf(r), "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"; got != want {
		t.Errorf("seed %s, want %s", got, want)
	}
	for _, want := range []string{
		"b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2", "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
		"2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
		"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
	} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("the body does not hold %s", want)
		}
	}
}
