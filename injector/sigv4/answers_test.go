package sigv4_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/injector/sigv4"
)

func TestErrorBodies(t *testing.T) {
	const msg = `denied by "rule" <b> & ü`
	for _, tt := range []struct {
		p           sigv4.Protocol
		contentType string
	}{
		{sigv4.S3XML, "application/xml; charset=utf-8"}, {sigv4.RESTXML, "text/xml; charset=utf-8"},
		{sigv4.QueryXML, "text/xml; charset=utf-8"}, {sigv4.EC2XML, "text/xml; charset=utf-8"},
		{sigv4.JSON10, "application/x-amz-json-1.0"}, {sigv4.JSON11, "application/x-amz-json-1.1"}, {sigv4.RESTJSON, "application/json"}, {sigv4.CBOR, "application/cbor"},
	} {
		contentType, body := sigv4.ErrorBody(tt.p, "AccessDenied", msg, "rec-1")
		if contentType != tt.contentType {
			t.Errorf("%s: content type %s, want %s", tt.p, contentType, tt.contentType)
		}
		switch {
		case strings.Contains(contentType, "xml"):
			var all struct {
				Inner string `xml:",innerxml"`
			}
			if err := xml.Unmarshal(body, &all); err != nil || !strings.Contains(all.Inner, "<Code>AccessDenied</Code>") || !strings.Contains(strings.ToLower(all.Inner), "<requestid>rec-1<") {
				t.Errorf("%s: %v in %s", tt.p, err, body)
			}
		case strings.Contains(contentType, "json"):
			var m map[string]string
			if err := json.Unmarshal(body, &m); err != nil || m["__type"] != "AccessDenied" || m["message"] != msg {
				t.Errorf("%s: %v in %s", tt.p, err, body)
			}
		}
		h := sigv4.ErrorHeader(tt.p, "AccessDenied", "rec-1")
		if !strings.Contains(fmt.Sprint(h), "rec-1") || tt.p == sigv4.RESTJSON && h.Get("x-amzn-ErrorType") != "AccessDenied" || tt.p == sigv4.CBOR && h.Get("smithy-protocol") != "rpc-v2-cbor" {
			t.Errorf("%s: header %v", tt.p, h)
		}
	}
	// RFC 8949: a2 map(2), 66 text(6), 61 text(1), 67 text(7), 61 text(1).
	if _, b := sigv4.ErrorBody(sigv4.CBOR, "E", "m", ""); hex.EncodeToString(b) != "a2665f5f747970656145676d657373616765616d" {
		t.Errorf("CBOR is %x", b)
	}
	if _, b := sigv4.ErrorBody(sigv4.CBOR, "E", strings.Repeat("m", 300), ""); !bytes.Contains(b, append([]byte{0x79, 1, 44}, 'm')) {
		t.Errorf("a long CBOR text has no length of two bytes: %x", b[:20])
	}
}

// TestBoto3PrintsTheReason answers real clients in each protocol.
func TestBoto3PrintsTheReason(t *testing.T) {
	bin := python(t)
	services := map[string]string{"s3": "s3", "sqs": "sqs", "dynamodb": "dynamodb", "sns": "sns", "ec2": "ec2", "lambda": "lambda"}
	server := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := sigv4.Parse(r)
		if err != nil || services[c.Service] == "" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		p := sigv4.ProtocolOf(r, c.Service)
		contentType, body := sigv4.ErrorBody(p, "AccessDeniedException", "because of rule "+string(p), "rec-1")
		for k, vs := range sigv4.ErrorHeader(p, "AccessDeniedException", "rec-1") {
			w.Header()[k] = vs
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write(body)
	}))
	out := clean(t, bin, "-c", `
import boto3, sys
from botocore.exceptions import ClientError
kw = dict(region_name='eu-west-1', endpoint_url=sys.argv[1], aws_access_key_id='AKIAPLACEHOLDER00000', aws_secret_access_key='x')
def go(svc, f, **a):
    try: getattr(boto3.client(svc, **kw), f)(**a)
    except ClientError as e: print(svc, e.response['Error']['Code'], e.response['Error']['Message'], e.response['ResponseMetadata'].get('RequestId'))
go('s3', 'get_object', Bucket='b', Key='k')
go('sqs', 'list_queues')
go('dynamodb', 'list_tables')
go('sns', 'list_topics')
go('ec2', 'describe_vpcs')
go('lambda', 'list_functions')
`, server)
	for _, want := range []string{
		"s3 AccessDeniedException because of rule s3 rec-1", "dynamodb AccessDeniedException because of rule json-1.0 rec-1",
		"sns AccessDeniedException because of rule query rec-1", "ec2 AccessDeniedException because of rule ec2 rec-1", "lambda AccessDeniedException because of rule rest-json rec-1",
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	// SQS spoke the query protocol until botocore 1.31.81 and JSON since.
	if !strings.Contains(out, "sqs AccessDeniedException because of rule json-1.0 rec-1\n") && !strings.Contains(out, "sqs AccessDeniedException because of rule query rec-1\n") {
		t.Errorf("sqs does not print the reason:\n%s", out)
	}
}

func TestIsSignatureError(t *testing.T) {
	_, expired := sigv4.ErrorBody(sigv4.CBOR, "ExpiredTokenException", "T", "")
	for _, tt := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   string
	}{
		{"S3", 403, nil, "<Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>x-amz-security-token:T</CanonicalRequest></Error>", "SignatureDoesNotMatch"},
		{"S3 token", 400, nil, "<Error><Code>ExpiredToken</Code><Token-0>T</Token-0></Error>", "ExpiredToken"},
		{"S3 canonical request alone", 403, nil, "<Error><Code>New</Code><CanonicalRequest>T</CanonicalRequest></Error>", "CanonicalRequest"},
		{"JSON", 403, nil, `{"__type":"com.amazon.coral.service#InvalidSignatureException","message":"T"}`, "InvalidSignatureException"},
		{"JSON message alone", 400, nil, `{"message":"The Canonical String for this request should have been 'T'"}`, "InvalidSignatureException"},
		{"rest-json header", 403, http.Header{"X-Amzn-Errortype": {"UnrecognizedClientException:http://x/"}}, `{}`, "UnrecognizedClientException"},
		{"CBOR", 400, http.Header{"Content-Type": {"application/cbor"}}, string(expired), "ExpiredTokenException"},
		{"S3 key that is spelled like a code", 404, nil, "<Error><Code>NoSuchKey</Code><Key>ExpiredToken</Key></Error>", ""},
		{"denied", 403, nil, "<Error><Code>AccessDenied</Code></Error>", ""},
		{"word within a word", 403, nil, "MyInvalidTokenizer", ""},
		{"good answer", 200, nil, "SignatureDoesNotMatch", ""},
	} {
		got, ok := sigv4.IsSignatureError(tt.status, tt.header, []byte(tt.body))
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSkew(t *testing.T) {
	var s sigv4.Skew
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	learn := func(dest string, offset, trip time.Duration) {
		s.Learn(dest, now.Add(offset+trip/2).Format(http.TimeFormat), now, now.Add(trip))
	}
	for _, tt := range []struct {
		name               string
		offset, trip, want time.Duration
	}{
		{"ahead", 20 * time.Minute, 2 * time.Second, 20 * time.Minute},
		{"behind", -3 * time.Hour, 0, -3 * time.Hour},
		{"little", 10 * time.Second, 0, 0},
		{"absurd", 40 * time.Hour, 0, 0},
		{"slow answer", 20 * time.Minute, time.Minute, 0},
	} {
		learn(tt.name, tt.offset, tt.trip)
		if got := s.Time(tt.name, now).Sub(now); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	s.Learn("ahead", "no date", now, now)
	if got := s.Time("ahead", now).Sub(now); got != 20*time.Minute {
		t.Errorf("a bad date changed it to %s", got)
	}
	if got := s.Time("another", now); !got.Equal(now) {
		t.Errorf("another destination has %s", got)
	}
	learn("ahead", 0, 0)
	if got := s.Time("ahead", now); !got.Equal(now) {
		t.Errorf("it does not unlearn: %s", got)
	}
	for i := range 3000 {
		learn(fmt.Sprint(i), time.Hour, 0)
	}
	known := 0
	for i := range 3000 {
		if !s.Time(fmt.Sprint(i), now).Equal(now) {
			known++
		}
	}
	if known != 1024 {
		t.Errorf("%d destinations are kept, want 1024", known)
	}
}

// postForm is a form as an agent's SDK makes it with a placeholder key.
func postForm(t *testing.T, file string, extra ...string) (*http.Request, string) {
	t.Helper()
	policy := `{"expiration":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key","u/"],["content-length-range",1,100],{"x-amz-algorithm":"AWS4-HMAC-SHA256"},{"x-amz-credential":"AKIDEXAMPLE/20150830/us-east-1/s3/aws4_request"},["eq","$X-Amz-Date","20150830T123600Z"]]}`
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	fields := append([]string{"key", "u/${filename}", "x-amz-algorithm", "AWS4-HMAC-SHA256", "X-Amz-Credential", "AKIDEXAMPLE/20150830/us-east-1/s3/aws4_request", "x-amz-date", "20150830T123600Z",
		"policy", base64.StdEncoding.EncodeToString([]byte(policy)), "x-amz-signature", hexSig}, extra...)
	for i := 0; i < len(fields); i += 2 {
		if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	part, err := w.CreateFormFile("file", "f.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(part, file)
	_ = w.Close()
	r := claimRequest("", "Content-Type", w.FormDataContentType())
	r.Method, r.Body, r.ContentLength = http.MethodPost, io.NopCloser(bytes.NewReader(b.Bytes())), int64(b.Len())
	return r, w.Boundary()
}

func TestPostForm(t *testing.T) {
	file := strings.Repeat("\r\n--x", 50_000)
	r, _ := postForm(t, file)
	c, form, err := sigv4.ParseForm(r)
	if err != nil {
		t.Fatal(err)
	}
	if c.Place != sigv4.InForm || c.AccessKeyID != suiteKeyID || c.Service != "s3" || c.Region != "us-east-1" {
		t.Errorf("claim %+v", c)
	}
	at := suiteTime.Add(time.Hour)
	if err := form.Sign(context.Background(), r, newVerifier(true).credentials(), c.Params(at)); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || int64(len(body)) != r.ContentLength {
		t.Fatalf("%d bytes, Content-Length %d: %v", len(body), r.ContentLength, err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := r.ParseMultipartForm(1 << 20); err != nil {
		t.Fatal(err)
	}
	get := func(name string) string {
		if len(r.MultipartForm.Value[name]) != 1 {
			t.Errorf("%s is %q", name, r.MultipartForm.Value[name])
		}
		return r.FormValue(name)
	}
	k := []byte("AWS4" + realSecret)
	for _, part := range []string{"20150830", "us-east-1", "s3", "aws4_request"} {
		k = mac(k, part)
	}
	if got, want := get("x-amz-signature"), hex.EncodeToString(mac(k, get("policy"))); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	raw, err := base64.StdEncoding.DecodeString(get("policy"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"bucket":"b"}`, `["starts-with","$key","u/"]`, `["content-length-range",1,100]`, `"2030-01-01T00:00:00Z"`,
		`{"x-amz-credential":"` + realID + `/20150830/us-east-1/s3/aws4_request"}`, `{"x-amz-date":"20150830T133600Z"}`, `{"x-amz-security-token":"` + realToken + `"}`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("the policy %s does not hold %s", raw, want)
		}
	}
	if strings.Contains(string(body), suiteKeyID) || strings.Contains(string(raw), suiteKeyID) || get("key") != "u/${filename}" || get("x-amz-security-token") != realToken {
		t.Error("the agent's signature is left, or a field was lost")
	}
	f, err := r.MultipartForm.File["file"][0].Open()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(f); string(got) != file {
		t.Errorf("the file has %d bytes, want %d", len(got), len(file))
	}
}

func TestPostFormRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*http.Request, string)
		extra  []string
		want   error
	}{
		{name: "two signatures", extra: []string{"X-Amz-Signature", hexSig}, want: sigv4.ErrSeveral},
		{name: "two policies", extra: []string{"Policy", "e30="}, want: sigv4.ErrSeveral},
		{name: "fields too long", extra: []string{"a", strings.Repeat("b", 70_000)}, want: sigv4.ErrMalformed},
		{name: "header too", change: func(r *http.Request, _ string) { r.Header.Set("Authorization", v4Auth) }, want: sigv4.ErrSeveral},
		{name: "query too", change: func(r *http.Request, _ string) { r.URL.RawQuery = v4Query }, want: sigv4.ErrSeveral},
		{name: "not a form", change: func(r *http.Request, _ string) { r.Header.Set("Content-Type", "text/plain") }, want: sigv4.ErrUnsigned},
		{name: "no file", change: func(r *http.Request, boundary string) {
			r.Body = io.NopCloser(strings.NewReader("--" + boundary + "\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--" + boundary + "--\r\n"))
		}, want: sigv4.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, boundary := postForm(t, "file", tt.extra...)
			if tt.change != nil {
				tt.change(r, boundary)
			}
			if c, _, err := sigv4.ParseForm(r); !errors.Is(err, tt.want) {
				t.Errorf("got %+v, %v; want %v", c, err, tt.want)
			}
		})
	}
}

// TestPostFormHides sends forms in which another reader could find a second key
// behind what package multipart takes for the file.
func TestPostFormHides(t *testing.T) {
	const disposition = "Content-Disposition: form-data; name="
	hidden := disposition + `"key"` + "\r\n\r\nprivate/k\r\n--B\r\n" + disposition + `"file"; filename="f"` + "\r\n\r\nx\r\n--B--\r\n"
	for _, tt := range []struct{ name, between, newline string }{
		{"behind bare newlines", disposition + `"file"` + "\n\nx" + strings.Repeat("\r\n--B", 8) + "\r\n", "\n"},
		{"by RFC 2231", disposition + `"key"; name*=utf-8''file` + "\r\n\r\nprivate/k\r\n--B\r\n", "\r\n"},
		{"by a second header", disposition + `"file"` + "\r\n" + disposition + `"key"` + "\r\n\r\nprivate/k\r\n--B\r\n", "\r\n"},
		{"by case", disposition + `"FILE"` + "\r\n\r\nx\r\n--B\r\n", "\r\n"},
		{"by a longer boundary", disposition + `"x"` + "\r\n\r\nx\r\n--BB\r\n--B\r\n", "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, boundary := postForm(t, "file")
			body, _ := io.ReadAll(r.Body)
			fields, _, _ := strings.Cut(string(body), disposition+`"file"`)
			fields = strings.ReplaceAll(strings.ReplaceAll(fields, boundary, "B"), "\r\n", tt.newline)
			r.Header.Set("Content-Type", "multipart/form-data; boundary=B")
			form := fields + tt.between + hidden
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
			c, f, err := sigv4.ParseForm(r)
			if err != nil {
				return
			}
			if err := f.Sign(context.Background(), r, suiteCredentials(""), c.Params(suiteTime)); err != nil {
				t.Fatal(err)
			}
			sent, _ := io.ReadAll(r.Body)
			before, _, ok := strings.Cut(string(sent), disposition+`"file"; filename=`)
			if !ok || strings.Contains(before, "private/k") || !strings.HasPrefix(before, "--B\r\n") {
				t.Errorf("what stands before the file is not ours: %q", sent)
			}
		})
	}
}

// FuzzParseForm wants no panic, that the body can be read whole afterwards, and
// that all before the file is what was parsed.
func FuzzParseForm(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"x-amz-signature\"\r\n\r\n" + hexSig + "\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nx\r\n--b--\r\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := claimRequest("", "Content-Type", "multipart/form-data; boundary=b")
		r.Method, r.Body, r.ContentLength = http.MethodPost, io.NopCloser(bytes.NewReader(body)), int64(len(body))
		c, form, err := sigv4.ParseForm(r)
		if err == nil {
			if err := form.Sign(context.Background(), r, suiteCredentials(""), c.Params(suiteTime)); err != nil {
				t.Fatalf("what was parsed cannot be signed: %v", err)
			}
		}
		got, readErr := io.ReadAll(r.Body)
		if err == nil {
			head, _, ok := bytes.Cut(got, []byte("--b\r\nContent-Disposition: form-data; name=\"file\"; filename="))
			for name, value := range form.Fields() {
				if !strings.HasPrefix(name, "x-amz-") && name != "policy" && !bytes.Contains(head, []byte("\r\n\r\n"+value+"\r\n--b\r\n")) && ok {
					t.Fatalf("field %q is not in %q", name, head)
				}
			}
			if !ok || bytes.Count(head, []byte("--b")) != bytes.Count(head, []byte("--b\r\nContent-Disposition: form-data; name=")) {
				t.Fatalf("before the file stands %q", head)
			}
		}
		if readErr != nil || err != nil && !bytes.Equal(got, body) || err == nil && int64(len(got)) != r.ContentLength {
			t.Fatalf("the body is not whole: %v", readErr)
		}
	})
}
