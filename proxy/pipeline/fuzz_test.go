package pipeline

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy/destination"
)

// FuzzTarget: whatever target a client sends, what goes upstream is what was
// checked, to the host that was checked.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "*", "/a%2Fb", "//a//b", "/a?b", "/a?", "http://h?x", "http://h", "http://u@h/x", "/a#b", "/a\\b", "/;x", "/%00", "http:///x", "/http://other/", "//other.example/x"} {
		f.Add(s, "GET", "gzip", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	}
	dest, err := destination.Parse("https", "api.test:443", 443)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target, method, upgrade, trace string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: api.test\r\nConnection: upgrade\r\n\r\n")))
		if err != nil {
			return
		}
		r.Header["Upgrade"] = []string{upgrade}
		r.Header["Traceparent"] = []string{trace}
		_, _, _ = protocolOf(r), queryKeys(r.URL.Query()), traceID(trace)
		x := &exchange{req: r, dest: dest, path: rawPath(r)}
		if x.path == "" {
			t.Fatalf("%q has no path", target)
		}
		if destination.CheckPath(x.path) != nil || destination.CheckQuery(r.URL.RawQuery) != nil {
			return
		}
		u := x.outURL()
		if u.Host != "api.test" || u.Scheme != "https" || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q leads to %v", target, u)
		}
		want := x.path
		if r.URL.RawQuery != "" || r.URL.ForceQuery {
			want += "?" + r.URL.RawQuery
		}
		if got := u.RequestURI(); got != want {
			t.Fatalf("%q: checked %q, sent %q", target, want, got)
		}
	})
}

// FuzzAWSRefusal: whatever signature and service a request claims, its refusal is
// what the SDK of that service parses, and no error of ours.
func FuzzAWSRefusal(f *testing.F) {
	for _, s := range []string{
		"AWS4-HMAC-SHA256 Credential=AKIA/20261123/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00",
		"AWS4-HMAC-SHA256 Credential=AKIA/20261123/eu-west-1/ec2/aws4_request", "AWS4-ECDSA-P256-SHA256 Credential=/", "AWS4-", "Bearer x",
	} {
		f.Add(s, "X-Amz-Credential=a/b/sqs/aws4_request&X-Amz-Signature=0", "application/x-amz-json-1.1", "a <reason> \x00\xff]]>", 403)
		f.Add(s, "Action=x", "", "", 503)
	}
	f.Fuzz(func(t *testing.T, auth, query, contentType, reason string, status int) {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{RawQuery: query}, Header: http.Header{"Authorization": {auth}, "Content-Type": {contentType}}}
		x := &exchange{req: r, aws: signedCall(r), rec: audit.Record{ID: "rec_1"}}
		if x.aws == nil || status < 400 || status > 599 {
			return
		}
		w := httptest.NewRecorder()
		(&Refusal{Status: status, Code: CodeAWSCall, Reason: reason}).writeAWS(w, x, clip(reason))
		var err error
		switch kind := w.Header().Get("Content-Type"); {
		case kind == "application/cbor":
		case strings.Contains(kind, "/xml"):
			err = xml.Unmarshal(w.Body.Bytes(), new(struct{}))
		default:
			err = json.Unmarshal(w.Body.Bytes(), new(struct{}))
		}
		if err != nil || w.Code != status || w.Header().Get("Content-Length") != strconv.Itoa(w.Body.Len()) {
			t.Fatalf("%d %v %v: %q", w.Code, err, w.Header(), w.Body)
		}
	})
}

// FuzzAWSCoding: an answer's beginning is looked at, whatever its coding, and
// never more of it than is read for that.
func FuzzAWSCoding(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(bytes.Repeat([]byte("x"), 1<<20))
	_ = z.Close()
	f.Add("gzip", b.Bytes())
	f.Add("br", []byte("x"))
	f.Fuzz(func(t *testing.T, coding string, head []byte) {
		if got := decoded(coding, head); len(got) > max(refusedBytes, len(head)) {
			t.Fatalf("%d bytes", len(got))
		}
	})
}

// FuzzGRPCEscape: a refusal's text cannot break out of its field.
func FuzzGRPCEscape(f *testing.F) {
	f.Add("plain")
	f.Add("é%\r\nGrpc-Status: 0")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []byte(grpcEscape(s)) {
			if c < 0x20 || c > 0x7e {
				t.Fatalf("%q holds %#x", s, c)
			}
		}
	})
}
