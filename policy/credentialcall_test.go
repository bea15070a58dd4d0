package policy_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

// TestCredentialCalls checks that calls which hand out credentials need a rule
// that says so.
func TestCredentialCalls(t *testing.T) {
	calls := []string{
		"POST https://idp.test/oauth/token", "POST https://idp.test/oauth2/default/v1/token", "POST https://idp.test/oauth2/v2.0/token/",
		"POST https://idp.test/x/TOKEN", "POST https://idp.test/oauth/%74oken", "POST https://idp.test/oauth/token;v=1", "PUT https://idp.test/token",
		"POST https://github.com/login/oauth/access_token", "POST https://api.github.com/app/installations/1/access_tokens",
		"POST https://api.github.com/user/keys", "POST https://api.github.com/repos/o/r/keys", "POST https://api.github.com/orgs/o/actions/runners/registration-token",
		"POST https://sts.amazonaws.com/", "POST https://sts.eu-west-1.amazonaws.com/", "GET https://sts.amazonaws.com/?Action=AssumeRoleWithWebIdentity",
		"GET https://iam.amazonaws.com/?Action=CreateAccessKey&Version=1", "POST https://secretsmanager.eu-west-1.amazonaws.com/ secretsmanager.GetSecretValue",
		"POST https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x:generateAccessToken",
		"GET https://secretmanager.googleapis.com/v1/projects/p/secrets/s/versions/latest:access",
		"POST https://vault.test:443/v1/auth/jwt/login", "PUT https://vault.test/v1/auth/userpass/login/ana", "GET https://vault.test/v1/aws/creds/deploy",
		"GET https://v.vault.azure.net/secrets/x/1", "GET https://auth.docker.io/token?scope=x", "POST https://api.openai.com/v1/organization/projects/p/api_keys",
		"POST https://k8s.test/api/v1/namespaces/n/serviceaccounts/s/token",
	}
	plain := []string{
		"GET https://idp.test/oauth/authorize", "GET https://idp.test/token", "POST https://idp.test/tokenize", "POST https://idp.test/token/x",
		"GET https://api.github.com/user/keys", "POST https://api.github.com/repos/o/r/issues", "GET https://sts.amazonaws.com/?Action=GetCallerIdentity",
		"GET https://iam.amazonaws.com/?Action=ListUsers", "POST https://sts.evil.x.amazonaws.com/", "POST https://secretsmanager.eu-west-1.amazonaws.com/ secretsmanager.ListSecrets",
		"GET https://vault.test/v1/secret/data/x", "GET https://secretmanager.googleapis.com/v1/projects/p/secrets", "POST https://a.test/v1/chat/completions",
	}
	named := with(allow("named", "*"), func(r *v1alpha1.Rule) { r.CredentialCall = true })
	check := func(line string, isCall bool) {
		t.Helper()
		line, target, _ := strings.Cut(line+" ", " ")
		u, amz, _ := strings.Cut(strings.TrimSpace(target), " ")
		r := request(t, line+" "+u)
		if amz != "" {
			r.Header.Set("X-Amz-Target", amz)
		}
		d := compile(t, accessPolicy("p", allow("any", "*"))).Decide(r)
		if got := d.Verdict == policy.Deny; got != isCall {
			t.Errorf("%s %s: got %v (%s), want refused %v", line, u, d.Verdict, d.Reason, isCall)
		}
		if isCall && (!strings.Contains(d.Reason, "credentialCall: true") || d.Rule != "any") {
			t.Errorf("%s %s: reason %q by %q", line, u, d.Reason, d.Rule)
		}
		if d := compile(t, accessPolicy("p", named)).Decide(r); d.Verdict != policy.Allow || !d.CredentialCall {
			t.Errorf("%s %s: got %v from a rule with credentialCall, want allow", line, u, d.Verdict)
		}
	}
	for _, c := range calls {
		check(c, true)
	}
	for _, c := range plain {
		check(c, false)
	}
}
