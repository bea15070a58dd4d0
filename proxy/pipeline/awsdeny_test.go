package pipeline_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/pipeline"
)

const object = "https://media.s3.eu-west-1.amazonaws.com/key"

// TestAWSRefusesClaims checks what a signature must be before anything is
// minted for it.
func TestAWSRefusesClaims(t *testing.T) {
	a := newAWSRig(t, nil)
	tests := []struct {
		name    string
		request func() *http.Request
		status  int
		code    string
		awsCode string
	}{
		{"unsigned", func() *http.Request { r, _ := http.NewRequest(http.MethodGet, object, nil); return r }, 403, pipeline.CodeAmbientUse, "AccessDenied"},
		{"real key", func() *http.Request {
			r := a.signed(http.MethodGet, object, "s3", "eu-west-1", "")
			id, _ := a.placeholders()
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), id, "AKIAIOSFODNN7EXAMPLE", 1))
			return r
		}, 403, pipeline.CodeAmbientUse, "AccessDenied"},
		{"the placeholder elsewhere", func() *http.Request {
			r := a.signed(http.MethodGet, object, "s3", "eu-west-1", "")
			id, _ := a.placeholders()
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), id, "AKIAIOSFODNN7EXAMPLE", 1))
			r.Header.Set("X-Key", id)
			return r
		}, 403, pipeline.CodeAmbientUse, "AccessDenied"},
		{"two signatures", func() *http.Request {
			r := a.signed(http.MethodGet, object, "s3", "eu-west-1", "")
			r.URL.RawQuery = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00"
			return r
		}, 400, pipeline.CodeAWSCall, "InvalidRequest"},
		{"malformed", func() *http.Request {
			r := a.signed(http.MethodGet, object, "s3", "eu-west-1", "")
			r.Header.Set("Authorization", strings.TrimSuffix(r.Header.Get("Authorization"), "0")+"g")
			return r
		}, 400, pipeline.CodeAWSCall, "InvalidRequest"},
		{"another service", func() *http.Request { return a.signed(http.MethodGet, object, "sqs", "eu-west-1", "") }, 403, pipeline.CodeAWSCall, ""},
		{"another region", func() *http.Request { return a.signed(http.MethodGet, object, "s3", "eu-central-1", "") }, 403, pipeline.CodeAWSCall, "AccessDenied"},
		{"no AWS host", func() *http.Request {
			return a.signed(http.MethodGet, "https://unknown-thing.eu-west-1.amazonaws.com/", "s3", "eu-west-1", "")
		}, 400, pipeline.CodeAWSCall, "InvalidRequest"},
		{"expired presigned", func() *http.Request {
			r, _ := http.NewRequest(http.MethodGet, object, nil)
			r.URL.RawQuery = a.presign(time.Now().Add(-time.Hour), 60, strings.Repeat("0", 64))
			return r
		}, 403, pipeline.CodeAWSCall, "AccessDenied"},
		{"event stream", func() *http.Request {
			return a.signed(http.MethodPost, "https://transcribestreaming.eu-west-1.amazonaws.com/stream-transcription", "transcribe", "eu-west-1", "x", "Content-Type", "application/vnd.amazon.eventstream")
		}, 400, pipeline.CodeAWSCall, ""},
		{"websocket", func() *http.Request {
			return a.signed(http.MethodGet, object, "s3", "eu-west-1", "", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-Websocket-Version", "13")
		}, 400, pipeline.CodeAWSCall, "InvalidRequest"},
		{"unknown parameter", func() *http.Request { return a.signed(http.MethodGet, object+"?surprise=1", "s3", "eu-west-1", "") }, 400, pipeline.CodeAWSCall, "InvalidRequest"},
		{"a denied key", func() *http.Request {
			return a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/secret/k", "s3", "eu-west-1", "")
		}, 403, pipeline.CodeDenied, "AccessDenied"},
		{"a denied key behind an encoded slash", func() *http.Request {
			return a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/secret%2Fk", "s3", "eu-west-1", "")
		}, 400, pipeline.CodeBadPath, "InvalidRequest"},
		{"a denied key, encoded in all", func() *http.Request {
			return a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/%73ecret%2fk", "s3", "eu-west-1", "")
		}, 400, pipeline.CodeBadPath, "InvalidRequest"},
		{"a denied key behind an empty segment", func() *http.Request {
			return a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/x//../secret//k", "s3", "eu-west-1", "")
		}, 400, pipeline.CodeBadPath, "InvalidRequest"},
		{"a denied key behind encoded dot segments", func() *http.Request {
			return a.signed(http.MethodGet, "https://media.s3.eu-west-1.amazonaws.com/x/%2e%2E/secret/k", "s3", "eu-west-1", "")
		}, 400, pipeline.CodeBadPath, "InvalidRequest"},
		{"odd path for another service", func() *http.Request {
			return a.signed(http.MethodPost, "https://sqs.eu-west-1.amazonaws.com/a/../b", "sqs", "eu-west-1", "Action=ReceiveMessage", "Content-Type", "application/x-www-form-urlencoded")
		}, 400, pipeline.CodeAWSCall, ""},
		{"policy", func() *http.Request {
			return a.signed(http.MethodGet, "https://denied.s3.eu-west-1.amazonaws.com/k", "s3", "eu-west-1", "")
		}, 403, pipeline.CodeDenied, "AccessDenied"},
		{"static policy", func() *http.Request {
			return a.signed(http.MethodGet, "https://bounded.s3.eu-west-1.amazonaws.com/private/k", "s3", "eu-west-1", "")
		}, 403, pipeline.CodeAWSScope, "AccessDenied"},
		{"static policy, another action", func() *http.Request {
			return a.signed(http.MethodDelete, "https://bounded.s3.eu-west-1.amazonaws.com/public/k", "s3", "eu-west-1", "")
		}, 403, pipeline.CodeAWSScope, "AccessDenied"},
		{"unsigned form", func() *http.Request {
			r, _ := http.NewRequest(http.MethodPost, "https://media.s3.eu-west-1.amazonaws.com/", strings.NewReader("--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--b--\r\n"))
			r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
			return r
		}, 403, pipeline.CodeAmbientUse, "AccessDenied"},
	}
	for n, tt := range tests {
		got := a.send(tt.request())
		a.skip = n
		t.Log(tt.name)
		if tt.awsCode != "" {
			a.refusedS3(got, tt.status, tt.code, tt.awsCode, audit.OutcomeDenied)
		} else {
			a.refused(got, tt.status, tt.code, audit.OutcomeDenied)
		}
	}
	if n := len(a.sts.requests()); n != 0 {
		t.Errorf("%d sessions were asked for", n)
	}
}

// presign is the query of a presigned request; nobody verifies its signature.
func (a *awsRig) presign(at time.Time, seconds int, signature string) string {
	id, _ := a.placeholders()
	stamp := at.UTC().Format("20060102T150405Z")
	return fmt.Sprintf("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%s%%2F%s%%2Feu-west-1%%2Fs3%%2Faws4_request&X-Amz-Date=%s&X-Amz-Expires=%d&X-Amz-SignedHeaders=host&X-Amz-Signature=%s",
		id, stamp[:8], stamp, seconds, signature)
}

// jsonError is what SDKs read of the JSON protocols' errors.
type jsonError struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
}

const tableJSON = `{"TableName":"orders","Key":{"id":{"S":"1"}}}`

// TestAWSRefusesJSON checks refusals of calls whose meaning is in the body.
func TestAWSRefusesJSON(t *testing.T) {
	a := newAWSRig(t, nil)
	dynamo := func(body string) *http.Request {
		return a.signed(http.MethodPost, "https://dynamodb.eu-west-1.amazonaws.com/", "dynamodb", "eu-west-1", body,
			"Content-Type", "application/x-amz-json-1.0", "X-Amz-Target", "DynamoDB_20120810.GetItem")
	}
	secretsManager := func(region string) *http.Request {
		return a.signed(http.MethodPost, "https://secretsmanager."+region+".amazonaws.com/", "secretsmanager", region, `{"SecretId":"db"}`,
			"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "secretsmanager.GetSecretValue")
	}
	tests := []struct {
		name    string
		request *http.Request
		status  int
		code    string
		awsCode string
	}{
		{"duplicate member", dynamo(`{"TableName":"orders","TableName":"pay","Key":{"id":{"S":"1"}}}`), 400, pipeline.CodeAWSCall, "ValidationException"},
		{"two spellings", dynamo(`{"TableName":"orders","tablename":"pay","Key":{"id":{"S":"1"}}}`), 400, pipeline.CodeAWSCall, "ValidationException"},
		{"not JSON", dynamo(`{"TableName":`), 400, pipeline.CodeAWSCall, "ValidationException"},
		{"too large", dynamo(`{"TableName":"orders","Pad":"` + strings.Repeat("x", 16<<20) + `"}`), 413, pipeline.CodeAWSCall, "ValidationException"},
		{"hands out a secret", secretsManager("eu-west-1"), 403, pipeline.CodeDenied, "AccessDeniedException"},
		{"hands out what cannot be sealed", a.signed(http.MethodPost, "https://appstream2.us-east-1.amazonaws.com/", "appstream", "us-east-1", `{}`,
			"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "PhotonAdminProxyService.CreateStreamingURL"), 403, pipeline.CodeDenied, "AccessDeniedException"},
	}
	for n, tt := range tests {
		got := a.send(tt.request)
		a.skip = n
		t.Log(tt.name)
		a.refused(got, tt.status, tt.code, audit.OutcomeDenied)
		var e jsonError
		if err := json.Unmarshal([]byte(got.body), &e); err != nil || e.Type != tt.awsCode || !strings.Contains(e.Message, tt.code) {
			t.Errorf("%v %+v", err, e)
		}
	}
	if n := len(a.sts.requests()); n != 0 {
		t.Errorf("%d sessions were asked for", n)
	}
	if got := a.send(secretsManager("us-east-2")); got.StatusCode != 200 {
		t.Errorf("named and passed: %d %s", got.StatusCode, got.body)
	}
	if got := a.send(dynamo(tableJSON)); got.StatusCode != 200 {
		t.Errorf("a good call: %d %s", got.StatusCode, got.body)
	}
	if _, call := a.verified(); string(call.Body) != tableJSON {
		t.Errorf("the origin got %q", call.Body)
	}
}

// TestAWSIssuerFails checks how SDKs see an STS that is down or refuses.
func TestAWSIssuerFails(t *testing.T) {
	a := newAWSRig(t, nil)
	for n, tt := range []struct {
		err    error
		status int
		code   string
		s3     string
	}{
		{fmt.Errorf("%w: connection refused", minting.ErrUnavailable), 503, pipeline.CodeMintUnavailable, "SlowDown"},
		{minting.WithRetryAfter(fmt.Errorf("%w: Throttling", minting.ErrUnavailable), 7*time.Second), 503, pipeline.CodeMintUnavailable, "SlowDown"},
		{fmt.Errorf("%w: AccessDenied for arn:aws:iam::111122223333:role/agent", minting.ErrDenied), 403, pipeline.CodeMintDenied, "AccessDenied"},
		{fmt.Errorf("%w: PackedPolicyTooLarge", minting.ErrDenied), 403, pipeline.CodeMintDenied, "AccessDenied"},
	} {
		a.sts.fail(tt.err)
		got := a.send(a.signed(http.MethodGet, fmt.Sprintf("%s%d", object, n), "s3", "eu-west-1", ""))
		a.skip = n
		a.refusedS3(got, tt.status, tt.code, tt.s3, audit.OutcomeError)
		if (got.Header.Get("Retry-After") != "") != (tt.status == 503) || strings.Contains(got.body, "connection refused") || strings.Contains(got.body, "arn:") {
			t.Errorf("%v %s", got.Header, got.body)
		}
	}
}

// TestAWSTooLarge checks the limit of session policies, and its fallback.
func TestAWSTooLarge(t *testing.T) {
	a := newAWSRig(t, nil)
	var keys strings.Builder
	for i := range 60 {
		fmt.Fprintf(&keys, "<Object><Key>a-rather-long-key-of-an-object-%04d</Key></Object>", i)
	}
	body := "<Delete>" + keys.String() + "</Delete>"
	deleteMany := func(bucket string) *http.Request {
		return a.signed(http.MethodPost, "https://"+bucket+".s3.eu-west-1.amazonaws.com/?delete", "s3", "eu-west-1", body, "Content-Md5", "1B2M2Y8AsgTpgAmY7PhCfg==")
	}
	got := a.send(deleteMany("media"))
	a.refusedS3(got, 403, pipeline.CodeAWSScope, "AccessDenied", audit.OutcomeDenied)
	if !strings.Contains(got.body, "2048") && !strings.Contains(got.body, "2,048") {
		t.Errorf("no figure: %s", got.body)
	}
	if got := a.send(deleteMany("wide")); got.StatusCode != 200 {
		t.Fatalf("with onTooLarge: %d %s", got.StatusCode, got.body)
	}
	a.skip = 1
	rec := a.record()
	if u := rec.Credential; u.AWS.Scope != "task" || u.ScopeSource != "derived" || rec.Truncated || len(u.AWS.Resources) < 2 || u.AWS.Resources[len(u.AWS.Resources)-1] != "…" {
		t.Errorf("record %+v %+v", u, u.AWS)
	}
	if _, call := a.verified(); string(call.Body) != body {
		t.Error("the origin got another body")
	}
}

// TestAWSPackedTooLarge checks what follows when only STS finds a policy too
// large: the rule's onTooLarge, once, or a refusal that says so.
func TestAWSPackedTooLarge(t *testing.T) {
	a := newAWSRig(t, nil)
	a.sts.packed = 500
	var keys strings.Builder
	for i := range 9 {
		fmt.Fprintf(&keys, "<Object><Key>a-rather-long-key-of-an-object-%04d</Key></Object>", i)
	}
	deleteMany := func(a *awsRig, bucket string) *http.Request {
		return a.signed(http.MethodPost, "https://"+bucket+".s3.eu-west-1.amazonaws.com/?delete", "s3", "eu-west-1", "<Delete>"+keys.String()+"</Delete>", "Content-Md5", "1B2M2Y8AsgTpgAmY7PhCfg==")
	}
	got := a.send(deleteMany(a, "media"))
	if got.StatusCode != 403 || !strings.Contains(got.body, pipeline.CodeAWSScope) || !strings.Contains(got.body, "onTooLarge") || len(a.sts.requests()) != 1 {
		t.Errorf("without onTooLarge: %d %s after %d mints", got.StatusCode, got.body, len(a.sts.requests()))
	}
	if got := a.send(deleteMany(a, "wide")); got.StatusCode != 200 {
		t.Fatalf("with onTooLarge: %d %s", got.StatusCode, got.body)
	}
	a.skip = 1
	if u := a.record().Credential; u.AWS.Scope != "task" {
		t.Errorf("record %+v", u.AWS)
	}
	q := a.sts.requests()
	if len(q) != 3 || len(q[1].SessionPolicy) <= 500 || len(q[2].SessionPolicy) > 500 || q[1].Key() == q[2].Key() {
		t.Errorf("%d mints", len(q))
	}
	b := newAWSRig(t, nil)
	b.sts.packed = 1 // the coarser one is too large as well: there is no third
	if got := b.send(deleteMany(b, "wide")); got.StatusCode != 403 || len(b.sts.requests()) != 2 {
		t.Errorf("nothing fits: %d after %d mints", got.StatusCode, len(b.sts.requests()))
	}
}
