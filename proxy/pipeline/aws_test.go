package pipeline_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/audit"
)

// TestAWS checks that an unchanged SDK's calls go out signed with a session that
// was cut to each of them, and what the record says.
func TestAWS(t *testing.T) {
	a := newAWSRig(t, nil)
	c := a.s3()
	data := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("media"), Key: aws.String("a key/ü+%~"), Body: bytes.NewReader(data)}); err != nil {
		t.Fatal(err)
	}
	if n, call := a.verified(); n != 1 || !bytes.Equal(call.Body, data) || call.Payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
		t.Errorf("%d calls, %s, %d bytes", n, call.Payload, len(call.Body))
	}
	got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("media"), Key: aws.String("k")})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(got.Body); err != nil || string(b) != "object" {
		t.Errorf("%q %v", b, err)
	}
	recs := a.records(2)
	u := recs[1].Credential
	want := audit.AWSUse{Service: "s3", Operation: "GetObject", Region: "eu-west-1", Account: "111122223333", Actions: []string{"s3:GetObject"},
		Resources: []string{"arn:aws:s3:::media/k"}, Scope: "request"}
	if u == nil || u.AWS == nil || u.AWS.Service != want.Service || u.AWS.Operation != want.Operation || u.AWS.Region != want.Region || u.AWS.Account != want.Account ||
		strings.Join(u.AWS.Actions, " ") != want.Actions[0] || strings.Join(u.AWS.Resources, " ") != want.Resources[0] || u.AWS.Scope != want.Scope {
		t.Fatalf("record: %+v", u)
	}
	if u.ScopeSource != "derived" || u.Kind != "aws-session" || strings.Join(u.ScopeAsked, ",") != "s3:GetObject arn:aws:s3:::media/k" || recs[1].Result.UpstreamRequestID != "REQ1" {
		t.Errorf("record: %+v %+v", u, recs[1].Result)
	}
	if ua := a.agent[1].Get("User-Agent"); !strings.HasSuffix(ua, " attache/"+recs[1].ID) {
		t.Errorf("User-Agent %q lacks the record", ua)
	}
	for id, s := range a.sts.issued() {
		if s.handle == u.Handle && !strings.Contains(s.policy, `"arn:aws:s3:::media/k"`) {
			t.Errorf("policy of %s: %s", id, s.policy)
		}
	}
}
