package pipeline_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// TestAWSExpiredSession checks that a session which AWS calls expired is
// replaced, and the call sent again where its body can be.
func TestAWSExpiredSession(t *testing.T) {
	a := newAWSRig(t, nil)
	put := func(body string) result {
		return a.send(a.signed(http.MethodPut, object, "s3", "eu-west-1", body))
	}
	dynamo := func() result {
		return a.send(a.signed(http.MethodPost, "https://dynamodb.eu-west-1.amazonaws.com/", "dynamodb", "eu-west-1", tableJSON,
			"Content-Type", "application/x-amz-json-1.0", "X-Amz-Target", "DynamoDB_20120810.GetItem"))
	}
	if got := put("one"); got.StatusCode != 200 {
		t.Fatal(got.body)
	}
	if got := dynamo(); got.StatusCode != 200 {
		t.Fatal(got.body)
	}
	a.sts.expire()
	if got := put("two"); got.StatusCode != 200 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if _, call := a.verified(); string(call.Body) != "two" {
		t.Errorf("the origin got %q", call.Body)
	}
	if got := dynamo(); got.StatusCode != 200 { // a POST is repeated too: it was not executed
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if recs := a.records(4); !recs[2].Result.Retried || recs[2].Credential.Cached || recs[2].Credential.Handle == recs[0].Credential.Handle || !recs[3].Result.Retried {
		t.Errorf("%+v %+v", recs[2].Result, recs[2].Credential)
	}
	// A large body cannot be sent again. AWS's answer, which repeats the token,
	// is replaced; the next call gets another session.
	a.sts.expire()
	got := put(strings.Repeat("x", 100<<10))
	a.skip = 4
	var tokens []string
	for _, s := range a.sts.issued() {
		tokens = append(tokens, s.token)
	}
	for _, token := range tokens {
		if strings.Contains(got.body, token) || strings.Contains(got.body, "Token-0") {
			t.Errorf("the answer repeats a token: %s", got.body)
		}
	}
	if got.StatusCode != 400 || !strings.Contains(got.body, "<Code>ExpiredToken</Code>") || !strings.Contains(got.body, "<RequestId>REQ1</RequestId>") || got.Header.Get("Attache-Error") != pipeline.CodeSignature {
		t.Errorf("%d %v %s", got.StatusCode, got.Header, got.body)
	}
	if rec := a.record(); rec.Result.Outcome != audit.OutcomeError || rec.Result.ErrorKind != pipeline.CodeSignature || rec.Result.UpstreamRequestID != "REQ1" || rec.Result.Status != 400 {
		t.Errorf("%+v", rec.Result)
	}
	if got := put(strings.Repeat("y", 100<<10)); got.StatusCode != 200 {
		t.Errorf("the next call: %d %s", got.StatusCode, got.body)
	}
}

// TestAWSFreshSessionIsNotStale checks that a session which is refused at its
// first use is not asked for again and again.
func TestAWSFreshSessionIsNotStale(t *testing.T) {
	a := newAWSRig(t, nil)
	a.answer(func(w http.ResponseWriter, _ *http.Request) {
		awsError(w, http.StatusForbidden, "InvalidAccessKeyId", "unknown")
	})
	if got := a.send(a.signed(http.MethodGet, object, "s3", "eu-west-1", "")); got.StatusCode != 403 || got.Header.Get("Attache-Error") != pipeline.CodeSignature {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	if n := len(a.sts.requests()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// TestAWSExpiredHead checks that HEAD gets another session too, although AWS's
// answer to it does not say what is wrong; and that one which is wrong for
// another cause passes.
func TestAWSExpiredHead(t *testing.T) {
	a := newAWSRig(t, nil)
	head := func() result { return a.send(a.signed(http.MethodHead, object, "s3", "eu-west-1", "")) }
	for _, expire := range []bool{false, true} {
		if expire {
			a.sts.expire()
		}
		if got := head(); got.StatusCode != 200 {
			t.Errorf("expired %v: %d", expire, got.StatusCode)
		}
	}
	a.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	if got := head(); got.StatusCode != 400 || got.Header.Get("Attache-Error") != "" || got.Header.Get("X-Amz-Request-Id") != "REQ1" {
		t.Errorf("%d %v", got.StatusCode, got.Header)
	}
}

// TestAWSRefusedTwice checks that the answer to a call that was sent again is
// guarded like the first one, and that there is no third.
func TestAWSRefusedTwice(t *testing.T) {
	a := newAWSRig(t, nil)
	get := func() result { return a.send(a.signed(http.MethodGet, object, "s3", "eu-west-1", "")) }
	if got := get(); got.StatusCode != 200 {
		t.Fatal(got.body)
	}
	a.answer(func(w http.ResponseWriter, r *http.Request) {
		awsError(w, http.StatusBadRequest, "ExpiredToken", r.Header.Get("X-Amz-Security-Token"))
	})
	before := a.requests.Load()
	got := get()
	if got.StatusCode != 400 || got.Header.Get("Attache-Error") != pipeline.CodeSignature || a.requests.Load() != before+2 {
		t.Errorf("%d %d requests: %s", got.StatusCode, a.requests.Load()-before, got.body)
	}
	for _, s := range a.sts.issued() {
		if strings.Contains(got.body, s.token) {
			t.Error("the answer repeats a token")
		}
	}
	if n := len(a.sts.requests()); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

// TestAWSMultiRegion checks that a call to a multi-Region access point goes out
// signed by SigV4a, for the regions that the agent signed for.
func TestAWSMultiRegion(t *testing.T) {
	a := newAWSRig(t, nil)
	var got http.Header
	a.serve(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	id, _ := a.placeholders()
	stamp := time.Now().UTC().Format("20060102T150405Z")
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://mfzwi23gnjvgw.mrap.accesspoint.s3-global.amazonaws.com/k", nil)
	for k, v := range map[string]string{
		"X-Amz-Date": stamp, "X-Amz-Region-Set": "*", "X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD",
		"Authorization": "AWS4-ECDSA-P256-SHA256 Credential=" + id + "/" + stamp[:8] + "/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-region-set, Signature=" + strings.Repeat("ab", 70),
	} {
		r.Header.Set(k, v)
	}
	if got := a.send(r); got.StatusCode != 200 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	auth := got.Get("Authorization")
	if !strings.HasPrefix(auth, "AWS4-ECDSA-P256-SHA256 Credential=ASIA") || strings.Contains(auth, "abababab") || got.Get("X-Amz-Region-Set") != "*" || !strings.Contains(auth, "x-amz-security-token") {
		t.Errorf("%v", got)
	}
	if u := a.record().Credential.AWS; u.Resources[0] != "arn:aws:s3::111122223333:accesspoint/mfzwi23gnjvgw.mrap/object/k" {
		t.Errorf("%+v", u)
	}
}

// TestAWSSkew checks that a clock which differs from AWS's is learnt, once.
func TestAWSSkew(t *testing.T) {
	a := newAWSRig(t, nil)
	for _, offset := range []int64{3600, -7200, 0} {
		a.offset.Store(offset)
		before := a.requests.Load()
		for range 2 {
			if got := a.send(a.signed(http.MethodPut, object, "s3", "eu-west-1", "x")); got.StatusCode != 200 {
				t.Fatalf("offset %d: %d %s", offset, got.StatusCode, got.body)
			}
		}
		if n := a.requests.Load() - before; n != 3 {
			t.Errorf("offset %d: %d requests for two calls, want 3", offset, n)
		}
	}
	if recs := a.records(6); !recs[0].Result.Retried || recs[1].Result.Retried {
		t.Errorf("%+v %+v", recs[0].Result, recs[1].Result)
	}
	if n := len(a.sts.requests()); n != 1 {
		t.Errorf("%d sessions for a clock", n)
	}
}

// TestAWSSignatureErrors checks that what an origin says of our signature does
// not reach the agent, compressed or not, and that other errors do.
func TestAWSSignatureErrors(t *testing.T) {
	a := newAWSRig(t, nil)
	var token string
	a.answer(func(w http.ResponseWriter, r *http.Request) {
		token = r.Header.Get("X-Amz-Security-Token")
		switch r.URL.Path {
		case "/plain":
			awsError(w, http.StatusForbidden, "SignatureDoesNotMatch", "<CanonicalRequest>"+token)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusForbidden)
			z := gzip.NewWriter(w)
			_, _ = fmt.Fprintf(z, "<Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>%s</CanonicalRequest></Error>", token)
			_ = z.Close()
		default:
			awsError(w, http.StatusNotFound, "NoSuchKey", "no such key"+strings.Repeat(" ", 100<<10)+"the end")
		}
	})
	for _, path := range []string{"plain", "gzip"} {
		got := a.send(a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/"+path, "s3", "eu-west-1", "", "Accept-Encoding", "gzip"))
		if strings.Contains(got.body, token) || strings.Contains(got.body, "Canonical") || !strings.Contains(got.body, "<Code>SignatureDoesNotMatch</Code>") || got.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %v %s", path, got.Header, got.body)
		}
	}
	got := a.send(a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/other", "s3", "eu-west-1", ""))
	if got.StatusCode != 404 || !strings.Contains(got.body, "NoSuchKey") || !strings.HasSuffix(got.body, "the end</Message><RequestId>REQ1</RequestId></Error>") || got.Header.Get("Attache-Error") != "" {
		t.Errorf("%d %.200s", got.StatusCode, got.body)
	}
	// Another session would be refused for the same reason: a cached one is kept.
	sessions := len(a.sts.requests())
	a.send(a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/plain", "s3", "eu-west-1", ""))
	if recs := a.records(4); len(recs) != 4 || !recs[3].Credential.Cached || recs[3].Result.Retried || len(a.sts.requests()) != sessions {
		t.Errorf("%d records, %d sessions, %+v", len(recs), len(a.sts.requests())-sessions, recs[3].Result)
	}
}

// TestAWSEchoOfTheSession checks that an object which holds our session token
// is cut.
func TestAWSEchoOfTheSession(t *testing.T) {
	a := newAWSRig(t, nil)
	var token string
	a.answer(func(w http.ResponseWriter, r *http.Request) {
		token = r.Header.Get("X-Amz-Security-Token")
		w.Header().Set("X-Amz-Checksum-Crc32", "AAAAAA==")
		_, _ = io.WriteString(w, strings.Repeat("x", 10<<10)+token+"tail")
	})
	got := a.send(a.signed(http.MethodGet, object, "s3", "eu-west-1", ""))
	if got.err == nil || strings.Contains(got.body, token) {
		t.Errorf("%v %d bytes", got.err, len(got.body))
	}
	if rec := a.record(); rec.Result.Outcome != audit.OutcomeLeak {
		t.Errorf("%+v", rec.Result)
	}
}

// TestAWSEchoInError checks that errors are no stored data: what compresses our
// token is looked into.
func TestAWSEchoInError(t *testing.T) {
	a := newAWSRig(t, nil)
	var token string
	a.answer(func(w http.ResponseWriter, r *http.Request) {
		token = r.Header.Get("X-Amz-Security-Token")
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusConflict)
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, "<Error><Code>New</Code><T>"+token+"</T></Error>")
		_ = z.Close()
	})
	got := a.send(a.signed(http.MethodGet, object, "s3", "eu-west-1", "", "Accept-Encoding", "gzip"))
	body := got.body
	if z, err := gzip.NewReader(strings.NewReader(body)); err == nil {
		b, _ := io.ReadAll(z) // as far as it came
		body += string(b)
	}
	if token == "" || strings.Contains(body, token) {
		t.Errorf("%v %d %s", got.err, got.StatusCode, body)
	}
}

// TestAWSStoredData checks that objects pass byte for byte: nothing in them is
// sealed, whatever they look like, nor is their content coding undone.
func TestAWSStoredData(t *testing.T) {
	a := newAWSRig(t, nil)
	stored := `{"access_token":"abcdefabcdefabcdefabcdef","password":"0123456789abcdef0123"}`
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	_, _ = z.Write(bytes.Repeat([]byte("0123456789"), 5000))
	_ = z.Close()
	a.answer(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/json":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, stored)
		case "/br":
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "not really brotli")
		case "/range":
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", compressed.Len()-1, compressed.Len()))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(compressed.Bytes()[7:])
		}
	})
	for path, want := range map[string]string{"json": stored, "br": "not really brotli", "range": compressed.String()[7:]} {
		got := a.send(a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/"+path, "s3", "eu-west-1", "", "Accept-Encoding", "identity"))
		if got.err != nil || got.body != want {
			t.Errorf("%s: %v %d %.200q", path, got.err, got.StatusCode, got.body)
		}
	}
}

// TestAWSCleartext checks that a body is signed where it travels unencrypted,
// though its sender did not say its hash: over TLS S3 would take it unsigned.
func TestAWSCleartext(t *testing.T) {
	const clear = `  - {host: "s3.clear", scheme: http, port: 80, addresses: [{{PLAIN}}]}` + "\n"
	a := newAWSRig(t, func(s *settings) {
		docs := strings.ReplaceAll(awsDocuments, "  destinations:\n", "  destinations:\n"+clear)
		docs = strings.Replace(docs, "  aws:\n", "  unsafeCleartext: true\n  aws:\n", 1)
		docs = strings.Replace(docs, "    endpoints:\n", "    endpoints:\n    - {host: s3.clear, port: 80, service: s3}\n", 1)
		s.documents = strings.Replace(docs, `"s3.test"]`, `"s3.test", "s3.clear"]`, 1)
	})
	id, _ := a.placeholders()
	now := time.Now().UTC().Format("20060102T150405Z")
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://s3.clear/media/k", strings.NewReader("body"))
	r.Header.Set("X-Amz-Date", now)
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+id+"/"+now[:8]+"/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64))
	if got := a.send(r); got.StatusCode != http.StatusOK {
		t.Fatalf("%v %d %s", got.err, got.StatusCode, got.body)
	}
	sum := sha256.Sum256([]byte("body"))
	if hash := a.agent[0].Get("X-Amz-Content-Sha256"); hash != hex.EncodeToString(sum[:]) {
		t.Errorf("the origin was told the hash %q", hash)
	}
}

// TestAWSPresigned checks that a URL which the agent presigned with its
// placeholders goes out signed in its header, and nothing of it in its query.
func TestAWSPresigned(t *testing.T) {
	a := newAWSRig(t, nil)
	presigned, err := s3.NewPresignClient(a.s3()).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("media"), Key: aws.String("a key"), VersionId: aws.String("v1")})
	if err != nil {
		t.Fatal(err)
	}
	if got := a.get(presigned.URL); got.StatusCode != 200 || got.body != "object" {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if got := a.paths[0]; !strings.HasPrefix(got, "/a%20key?") || strings.Contains(got, "X-Amz-") || !strings.Contains(got, "versionId=v1") {
		t.Errorf("path %s", got)
	}
	rec := a.record()
	if u := rec.Credential.AWS; u.Actions[0] != "s3:GetObjectVersion" || !strings.Contains(strings.Join(rec.Request.Removed, " "), "X-Amz-Signature") {
		t.Errorf("%+v %v", u, rec.Request.Removed)
	}
}

// TestAWSKeys checks that a rule which owns raw paths lets every key through, as
// the bytes that were signed.
func TestAWSKeys(t *testing.T) {
	a := newAWSRig(t, nil)
	c := a.s3()
	for n, key := range []string{"x//y", "a/../b", "%2F", "q?x=1&y", "späth/+ =", "./.", "*${x}?"} {
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("raw"), Key: &key, Body: strings.NewReader("x")}); err != nil {
			t.Errorf("%q: %v", key, err)
			continue
		}
		if got, _ := a.verified(); got != n+1 {
			t.Errorf("%q: %d calls", key, got)
		}
	}
}

// TestAWSGranularity checks which calls share a session.
func TestAWSGranularity(t *testing.T) {
	a := newAWSRig(t, nil)
	for _, bucket := range []string{"media", "prefix", "session"} {
		for _, key := range []string{"dir/a", "dir/b", "dir/a"} {
			if got := a.send(a.signed(http.MethodGet, "https://"+bucket+".s3.eu-west-1.amazonaws.com/"+key, "s3", "eu-west-1", "")); got.StatusCode != 200 {
				t.Fatalf("%d %s", got.StatusCode, got.body)
			}
		}
	}
	var handles, scopes, sources []string
	for _, rec := range a.records(9) {
		handles, scopes, sources = append(handles, rec.Credential.Handle), append(scopes, rec.Credential.AWS.Scope), append(sources, rec.Credential.ScopeSource)
	}
	if handles[0] == handles[1] || handles[0] != handles[2] {
		t.Error("request: two keys share a session, or one key has two")
	}
	if handles[3] != handles[4] || handles[6] != handles[7] || handles[3] == handles[0] || handles[6] == handles[3] {
		t.Errorf("prefix or session: %v", handles)
	}
	if scopes[0] != "request" || scopes[3] != "prefix" || scopes[6] != "session" || sources[0] != "derived" || sources[3] != "derived" || sources[6] != "static" {
		t.Errorf("%v %v", scopes, sources)
	}
}

// TestAWSRevokedInFlight checks that the end of a session cuts the upload that
// uses it, and that AWS never sees that upload whole.
func TestAWSRevokedInFlight(t *testing.T) {
	a := newAWSRig(t, nil)
	whole := make(chan error, 1)
	started := make(chan struct{})
	a.serve(func(_ http.ResponseWriter, r *http.Request) {
		var b [1]byte
		_, _ = io.ReadFull(r.Body, b[:])
		close(started)
		_, err := io.Copy(io.Discard, r.Body)
		whole <- err
	})
	pr, pw := io.Pipe()
	r := a.signed(http.MethodPut, object, "s3", "eu-west-1", "", "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	r.Body, r.ContentLength = pr, 1<<20
	done := make(chan result, 1)
	go func() { done <- a.send(r) }()
	go func() { _, _ = pw.Write(make([]byte, 64<<10)) }()
	<-started
	a.EndCredential(a.cache.Live()[0].Handle)
	if err := <-whole; err == nil {
		t.Error("AWS got a whole upload")
	}
	_ = pw.CloseWithError(io.ErrClosedPipe)
	<-done
	a.eventually("the record", func() bool { return a.Live() == 0 })
	if rec := a.record(); rec.Result.Outcome != audit.OutcomeRevoked {
		t.Errorf("%+v", rec.Result)
	}
}

// askedTasks counts what the pipeline asks of the task store.
type askedTasks struct {
	pipeline.Tasks
	lookups atomic.Int64
}

func (a *askedTasks) Lookup(id string, w *identity.Workload) (*identity.Task, error) {
	defer a.lookups.Add(1)
	return a.Tasks.Lookup(id, w)
}

// TestAWSBodyThatNeverComes checks that the end of a task does not wait for a
// body that must be read before the call is understood.
func TestAWSBodyThatNeverComes(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		tasks := &askedTasks{}
		a := newAWSRig(t, func(s *settings) {
			s.transport = func(c *pipeline.Config) { tasks.Tasks, c.Tasks = c.Tasks, tasks }
		})
		tk, err := a.tasks.Open(t.Context(), task.OpenRequest{Workload: a.workload, RunID: a.workload.RunID, Purpose: "x", OpenedBy: task.ByLauncher})
		if err != nil {
			t.Fatal(err)
		}
		pr, pw := io.Pipe()
		r := a.signed(http.MethodPost, "https://dynamodb.eu-west-1.amazonaws.com/", "dynamodb", "eu-west-1", tableJSON,
			"Content-Type", "application/x-amz-json-1.0", "X-Amz-Target", "DynamoDB_20120810.GetItem")
		r.Body = pr
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		r = r.WithContext(ctx)
		done := make(chan error, 1)
		go func() {
			resp, err := a.client(h2).Do(r)
			if err == nil {
				_ = resp.Body.Close()
			}
			done <- err
		}()
		if _, err := pw.Write([]byte(tableJSON[:10])); err != nil {
			t.Fatal(err)
		}
		a.eventually("the call past its last look at the task", func() bool { return tasks.lookups.Load() == 1 })
		if err := a.tasks.Close(tk.ID, "test"); err != nil {
			t.Fatal(err)
		}
		a.eventually("its end", func() bool { return a.Live() == 0 })
		cancel()
		_ = pw.Close()
		<-done
		if rec := a.record(); rec.Result.Outcome != audit.OutcomeRevoked || rec.Result.ErrorKind != pipeline.CodeRevoked {
			t.Errorf("%+v", rec.Result)
		}
	}
}

// TestAWSHead checks that a refused HEAD has no body, and says its code.
func TestAWSHead(t *testing.T) {
	a := newAWSRig(t, nil)
	got := a.send(a.signed(http.MethodHead, "https://denied.s3.eu-west-1.amazonaws.com/k", "s3", "eu-west-1", ""))
	if got.body != "" {
		t.Errorf("body %q", got.body)
	}
	a.refused(got, 403, pipeline.CodeDenied, audit.OutcomeDenied)
}
