package pipeline_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/proxy/pipeline"
)

// TestAWSSecretsAreSealed: what a call hands out reaches the agent as a handle,
// unless the rule says that the agent may have it. Members are those of
// GetSecretValue in the AWS Secrets Manager API reference.
func TestAWSSecretsAreSealed(t *testing.T) {
	const answer = `{"ARN":"arn:aws:secretsmanager:us-east-1:111122223333:secret:db-a1b2c3","Name":"db","SecretString":"{\"password\":\"hunter2 hunter2\"}","VersionId":"v1"}`
	ask := func(a *awsRig, region, operation string) result {
		return a.send(a.signed(http.MethodPost, "https://secretsmanager."+region+".amazonaws.com/", "secretsmanager", region, `{"SecretId":"db"}`,
			"X-Amz-Target", "secretsmanager."+operation, "Content-Type", "application/x-amz-json-1.1"))
	}
	rig := func(contentType, body string) *awsRig {
		a := newAWSRig(t, nil)
		a.answer(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, body)
		})
		return a
	}
	a := rig("application/x-amz-json-1.1", answer)
	got := ask(a, "us-east-1", "GetSecretValue")
	if got.StatusCode != http.StatusOK || strings.Contains(got.body, "hunter2") || !strings.Contains(got.body, `"SecretString":"attache-sealed-`) || !strings.Contains(got.body, `"VersionId":"v1"`) {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	if rec := a.record(); rec.Result.Sealed != 1 {
		t.Errorf("the record counts %d sealed", rec.Result.Sealed)
	}
	a = rig("application/x-amz-json-1.1", answer)
	if got = ask(a, "us-east-2", "GetSecretValue"); got.body != answer {
		t.Errorf("a rule that passes answers got %s", got.body)
	}
	a = rig("application/cbor", "\xa1lSecretStringghunter2")
	if got = ask(a, "us-east-1", "GetSecretValue"); got.StatusCode != http.StatusBadGateway || got.Header.Get("Attache-Error") != pipeline.CodeProtocol || strings.Contains(got.body, "hunter2") {
		t.Errorf("an answer that cannot be read: %d %q", got.StatusCode, got.body)
	}
}
