package pipeline_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/proxy/awsdoor"
	"github.com/attache-dev/attache/proxy/pipeline"
)

const doorRole = "arn:aws:iam::123456789012:role/reader"

// doorRig is a rig whose api.test speaks STS, and the URL of its AWS door.
func doorRig(t *testing.T, s settings) (r *rig, url string, keys awsdoor.Keys) {
	t.Helper()
	holders, err := placeholder.New([]placeholder.Spec{{Env: "ID", Prefix: "AKIA"}, {Env: "KEY"}, {Env: "SESSION"}, {Env: "AUTH"}, {Env: "WEB"}})
	if err != nil {
		t.Fatal(err)
	}
	keys = awsdoor.Keys{AccessKeyID: holders.Value("ID"), SecretAccessKey: holders.Value("KEY"), SessionToken: holders.Value("SESSION"),
		Authorization: holders.Value("AUTH"), WebIdentity: holders.Value("WEB")}
	door, err := awsdoor.New(awsdoor.Config{Provider: "aws", Keys: keys, RoleARN: doorRole, Region: "eu-west-1",
		Container: true, IMDS: true, WebIdentity: true, STS: []string{"api.test:443"}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.transport = func(c *pipeline.Config) { c.AWSDoor = door }
	r = newRig(t, s)
	ln := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() { _ = r.front.ServeAWS(ctx, ln) }()
	return r, "http://" + ln.Addr().String(), keys
}

// direct sends a request to the door's port.
func (r *rig) direct(method, u string, header ...string) result {
	r.t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	return r.do(&http.Client{Transport: tr}, method, u, nil, header...)
}

// Every answer of the local port is one record; nothing goes out.
func TestAWSDoorRecords(t *testing.T) {
	r, url, keys := doorRig(t, settings{})
	got := r.direct("GET", url+awsdoor.ContainerPath, "Authorization", keys.Authorization)
	var k struct{ AccessKeyId, SecretAccessKey, Token string } //nolint:revive // the wire's names
	if err := json.Unmarshal([]byte(got.body), &k); err != nil || got.StatusCode != 200 || k.AccessKeyId != keys.AccessKeyID || k.SecretAccessKey != keys.SecretAccessKey || k.Token != keys.SessionToken {
		t.Fatalf("got %d %s, %v", got.StatusCode, got.body, err)
	}
	rec := r.record()
	if rec.ID != got.Header.Get("Attache-Record") || rec.Request.Door != "aws" || rec.Decision.Verdict != "allow" || !strings.Contains(rec.Decision.Reason, "placeholder keys of provider aws") ||
		rec.Result.Outcome != audit.OutcomeOK || rec.Credential != nil || rec.Workload == nil {
		t.Errorf("got %+v %+v %+v", rec.Request, rec.Decision, rec.Result)
	}
	r.skip++
	got = r.direct("GET", url+awsdoor.ContainerPath)
	rec = r.record()
	if got.StatusCode != 401 || rec.Decision.Verdict != "deny" || rec.Decision.Code != pipeline.CodeAmbientUse || rec.Result.Outcome != audit.OutcomeDenied || rec.Result.Status != 401 {
		t.Errorf("got %d, %+v %+v", got.StatusCode, rec.Decision, rec.Result)
	}
	r.skip++
	got = r.direct("PUT", url+"/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if rec := r.record(); got.StatusCode != 200 || rec.Request.Method != "PUT" || !strings.HasPrefix(rec.Decision.Reason, "imds token") {
		t.Errorf("got %d, %+v", got.StatusCode, rec.Decision)
	}
	if n := r.requests.Load(); n != 0 {
		t.Errorf("the origin got %d requests", n)
	}
}

// What knows the metadata service by its address only asks through the proxy,
// and is answered by the same rules.
func TestMetadataAddress(t *testing.T) {
	r, _, keys := doorRig(t, settings{})
	const service = "http://169.254.169.254"
	token := r.do(r.client(false), "PUT", service+"/latest/api/token", nil, "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if token.StatusCode != 200 {
		t.Fatalf("got %d %s", token.StatusCode, token.body)
	}
	r.record()
	r.skip++
	if got := r.get(service+"/latest/meta-data/iam/security-credentials/reader", "X-aws-ec2-metadata-token", token.body); got.StatusCode != 200 || !strings.Contains(got.body, keys.AccessKeyID) {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
	if rec := r.record(); rec.Request.Host != "169.254.169.254" || rec.Request.Door != "absolute" || rec.Decision.Verdict != "allow" || !strings.HasPrefix(rec.Decision.Reason, "imds credentials") {
		t.Errorf("got %+v %+v", rec.Request, rec.Decision)
	}
	r.skip++
	if got := r.get(service + "/latest/meta-data/iam/security-credentials/reader"); got.StatusCode != 401 || strings.Contains(got.body, keys.AccessKeyID) {
		t.Errorf("version 1: got %d %s", got.StatusCode, got.body)
	}
	r.record()
	r.skip++
	r.refusal(r.get("http://169.254.170.2/v2/credentials"), 403, pipeline.CodeDenied, audit.OutcomeDenied)
}

// A process that is not of the workload gets nothing, whatever it knows.
func TestAWSDoorRefusesStrangers(t *testing.T) {
	r, url, keys := doorRig(t, settings{})
	r.refused.Store(true)
	got := r.direct("GET", url+awsdoor.ContainerPath, "Authorization", keys.Authorization)
	r.refusal(got, 403, pipeline.CodeUnattested, audit.OutcomeDenied)
	r.skip++
	r.refusal(r.do(r.client(false), "POST", "https://api.test/", strings.NewReader(webIdentityCall(keys)), "Content-Type", formType), 403, pipeline.CodeUnattested, audit.OutcomeDenied)
	// Not even a body is waited for.
	r.skip++
	body, never := io.Pipe()
	late := time.AfterFunc(10*time.Second, func() { _ = never.Close() })
	r.refusal(r.do(r.client(false), "POST", "https://api.test/", body, "Content-Type", formType), 403, pipeline.CodeUnattested, audit.OutcomeDenied)
	if !late.Stop() {
		t.Error("a stranger's body was read")
	}
	_ = never.Close()
}

const formType = "application/x-www-form-urlencoded"

func webIdentityCall(keys awsdoor.Keys) string {
	return "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=attache&RoleArn=" + doorRole + "&WebIdentityToken=" + keys.WebIdentity
}

// STS calls that hand out credentials end here, over both versions of HTTP;
// all others go their way with the body that the agent sent.
func TestSTSCallsAreAnswered(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		r, _, keys := doorRig(t, settings{rules: "\n  - {name: open, hosts: [api.test], action: allow}\n  - {name: no, hosts: [api.test], paths: [/denied], action: deny}\n"})
		var got string
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			b, _ := io.ReadAll(q.Body)
			got = string(b)
			_, _ = io.WriteString(w, "origin")
		})
		post := func(body string) result {
			return r.do(r.client(h2), "POST", "https://api.test/", strings.NewReader(body), "Content-Type", formType)
		}
		a := post(webIdentityCall(keys))
		rec := r.record()
		if a.StatusCode != 200 || !strings.Contains(a.body, "<AccessKeyId>"+keys.AccessKeyID+"<") || rec.ID != a.Header.Get("X-Amzn-Requestid") {
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
		if rec.Request.Host != "api.test" || rec.Decision.Verdict != "allow" || !strings.HasPrefix(rec.Decision.Reason, "sts:AssumeRoleWithWebIdentity") || rec.Result.BytesUp == 0 {
			t.Errorf("got %+v %+v %+v", rec.Request, rec.Decision, rec.Result)
		}
		r.skip++
		if a := post(strings.Replace(webIdentityCall(keys), keys.WebIdentity, "eyJ", 1)); a.StatusCode != 400 || !strings.Contains(a.body, "InvalidIdentityToken") {
			t.Errorf("another token: got %d %s", a.StatusCode, a.body)
		}
		if rec := r.record(); rec.Decision.Code != pipeline.CodeAmbientUse {
			t.Errorf("got %+v", rec.Decision)
		}
		r.skip++
		if a := post("Action=AssumeRole&Version=2011-06-15&RoleSessionName=me&RoleArn=" + doorRole); a.StatusCode != 403 || !strings.Contains(a.body, "InvalidClientTokenId") {
			t.Errorf("unsigned: got %d %s", a.StatusCode, a.body)
		}
		r.record()
		r.skip++
		if n := r.requests.Load(); n != 0 {
			t.Fatalf("the origin got %d requests", n)
		}
		for _, body := range []string{"Action=GetCallerIdentity&Version=2011-06-15", "", "Action=AssumeRole&x=" + strings.Repeat("y", 2*awsdoor.STSBody)} {
			if a := post(body); a.body != "origin" || got != body {
				t.Errorf("got %d %.60s, the origin had %d bytes of %d", a.StatusCode, a.body, len(got), len(body))
			}
			if rec := r.record(); rec.Decision.Rule != "open" {
				t.Errorf("got %+v", rec.Decision)
			}
			r.skip++
		}
	}
}

// No record, no keys.
func TestAWSDoorNeedsItsRecord(t *testing.T) {
	r, url, keys := doorRig(t, settings{})
	if err := r.spool.Close(); err != nil {
		t.Fatal(err)
	}
	got := r.direct("GET", url+awsdoor.ContainerPath, "Authorization", keys.Authorization)
	if got.StatusCode != 503 || strings.Contains(got.body, keys.AccessKeyID) {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

// The port without doors behind it answers nothing.
func TestAWSDoorClosed(t *testing.T) {
	r := newRig(t, settings{})
	ln := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() { _ = r.front.ServeAWS(ctx, ln) }()
	r.refusal(r.direct("GET", "http://"+ln.Addr().String()+"/"), 404, pipeline.CodeBadRequest, audit.OutcomeDenied)
}
