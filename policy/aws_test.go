package policy_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/iampolicy"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
)

const (
	mediaPolicy = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::media/*"}}`
	ordersTable = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"dynamodb:*","Resource":"*"}}`
)

// awsBundle has one rule by an aws provider.
func awsBundle(provider string, scope *v1alpha1.AWSScope) *api.Bundle {
	b := bundle(v1alpha1.AccessPolicy{
		Metadata: v1alpha1.ObjectMeta{Name: "p"},
		Spec:     v1alpha1.AccessPolicySpec{Rules: []v1alpha1.Rule{awsRule("r", scope)}},
	})
	b.Providers = append(b.Providers, v1alpha1.CredentialProvider{
		Metadata: v1alpha1.ObjectMeta{Name: "aws"},
		Spec: v1alpha1.CredentialProviderSpec{
			Destinations: []v1alpha1.Destination{{Host: "**.amazonaws.com"}},
			AWS:          &v1alpha1.AWS{Policy: json.RawMessage(provider)},
		},
	})
	return b
}

func awsRule(name string, scope *v1alpha1.AWSScope) v1alpha1.Rule {
	return v1alpha1.Rule{Name: name, Hosts: []string{"**.amazonaws.com"}, Action: v1alpha1.ActionAllow,
		Credential: &v1alpha1.CredentialRef{Provider: "aws", AWS: scope}}
}

// getObject is a call for media/docs/a, as policy and as awsscope see it.
func getObject() (*policy.Request, awsscope.Request) {
	host := "media.s3.eu-west-1.amazonaws.com"
	return &policy.Request{Host: host, Port: 443, Scheme: "https", Method: http.MethodGet, Path: "/docs/a", Protocol: policy.HTTP, Workload: worker(), Time: now()},
		awsscope.Request{Method: http.MethodGet, Host: host, RawPath: "/docs/a", Header: http.Header{}, BodyComplete: true,
			ClaimedService: "s3", ClaimedRegion: "eu-west-1", Account: "123456789012", Partition: "aws"}
}

func getCall(t *testing.T) awsscope.Call {
	t.Helper()
	_, r := getObject()
	call, err := awsscope.Recognise(r)
	if err != nil {
		t.Fatal(err)
	}
	return call
}

// TestGrantAWS: what bounds a session, and how it is said.
func TestGrantAWS(t *testing.T) {
	tests := []struct {
		name, provider string
		scope          *v1alpha1.AWSScope
		granularity    awsscope.Granularity
		onTooLarge     awsscope.Granularity
		source         string
		refused        bool // the call that getObject makes
	}{
		{name: "nothing said", granularity: "request", source: "derived"},
		{name: "the provider's policy", provider: mediaPolicy, granularity: "request", source: "derived"},
		{name: "the provider's policy is for something else", provider: ordersTable, granularity: "request", source: "derived", refused: true},
		{name: "the rule's policy in place of the provider's", provider: ordersTable, scope: &v1alpha1.AWSScope{Policy: json.RawMessage(mediaPolicy)}, granularity: "request", source: "derived"},
		{name: "the provider's policy is no addition", provider: mediaPolicy, scope: &v1alpha1.AWSScope{Policy: json.RawMessage(ordersTable)}, granularity: "request", source: "derived", refused: true},
		{name: "session", provider: mediaPolicy, scope: &v1alpha1.AWSScope{Granularity: "session", OnTooLarge: "deny"}, granularity: "session", source: "static"},
		{name: "fallback", provider: mediaPolicy, scope: &v1alpha1.AWSScope{Granularity: "prefix", OnTooLarge: "task"}, granularity: "prefix", onTooLarge: "task", source: "derived"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := policy.Compile(awsBundle(tt.provider, tt.scope))
			if err != nil {
				t.Fatal(err)
			}
			r, _ := getObject()
			d := s.Decide(r)
			g := d.Grant.AWS
			if d.Verdict != policy.Inject || g == nil || g.Granularity != tt.granularity || g.OnTooLarge != tt.onTooLarge || d.Grant.ScopeSource != tt.source || !d.RawPaths {
				t.Fatalf("got %v, %+v, source %q", d.Verdict, g, d.Grant.ScopeSource)
			}
			text, _, err := g.SessionPolicy(getCall(t), false)
			if (err != nil) != tt.refused || tt.refused && !errors.Is(err, awsscope.ErrNotAllowed) {
				t.Errorf("got %q, %v", text, err)
			}
			if err == nil && strings.Count(text, iampolicy.OpenEnd) != 1 {
				t.Errorf("the end does not stand open once in %s", text)
			}
		})
	}
}

// TestAWSOfOthers: a grant by another kind of provider says nothing of AWS.
func TestAWSOfOthers(t *testing.T) {
	r := allow("r", "a.test")
	r.Credential = &v1alpha1.CredentialRef{Provider: "p1"}
	s := compile(t, v1alpha1.AccessPolicy{Metadata: v1alpha1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AccessPolicySpec{Rules: []v1alpha1.Rule{r}}})
	d := s.Decide(&policy.Request{Host: "a.test", Port: 443, Scheme: "https", Method: "GET", Path: "/", Protocol: policy.HTTP, Workload: worker(), Time: now()})
	if d.Verdict != policy.Inject || d.Grant.AWS != nil || d.RawPaths {
		t.Errorf("got %v, %+v", d.Verdict, d.Grant)
	}
}

// TestAWSConflicts: rules that are equally specific must cut sessions alike.
func TestAWSConflicts(t *testing.T) {
	compileTwo := func(one, two *v1alpha1.AWSScope) error {
		b := awsBundle("", one)
		b.Policies[0].Spec.Rules = append(b.Policies[0].Spec.Rules, awsRule("s", two))
		_, err := policy.Compile(b)
		return err
	}
	media := func() *v1alpha1.AWSScope { return &v1alpha1.AWSScope{Policy: json.RawMessage(mediaPolicy)} }
	if err := compileTwo(media(), media()); err != nil {
		t.Errorf("equal policies: %v", err)
	}
	for name, other := range map[string]*v1alpha1.AWSScope{
		"policy":      {Policy: json.RawMessage(ordersTable)},
		"granularity": {Policy: json.RawMessage(mediaPolicy), Granularity: "prefix"},
		"onTooLarge":  {Policy: json.RawMessage(mediaPolicy), OnTooLarge: "prefix"},
		"nothing":     nil,
	} {
		if compileTwo(media(), other) == nil {
			t.Errorf("%s differs, and nobody is told", name)
		}
	}
}

// TestAWSProblems: each mistake is reported at its own field.
func TestAWSProblems(t *testing.T) {
	tests := []struct {
		name, provider, field, text string
		scope                       *v1alpha1.AWSScope
		endpoint                    string
	}{
		{name: "provider's policy", provider: `{"Version":"2008-10-17"}`, field: "spec.aws.policy", text: "must be 2012-10-17"},
		{name: "rule's policy", scope: &v1alpha1.AWSScope{Policy: json.RawMessage(`{"Version":"2012-10-17","Statement":[{"Effect":"Maybe"}]}`)}, field: "spec.rules[0].credential.aws.policy", text: "Statement[0]"},
		{name: "the time that stands for an open end", scope: &v1alpha1.AWSScope{Policy: json.RawMessage(strings.Replace(mediaPolicy, "media", iampolicy.OpenEnd, 1))}, field: "spec.rules[0].credential.aws.policy", text: iampolicy.OpenEnd},
		{name: "granularity", scope: &v1alpha1.AWSScope{Granularity: "bucket"}, field: "spec.rules[0].credential.aws.granularity", text: "must be request, prefix, task or session"},
		{name: "fallback", scope: &v1alpha1.AWSScope{OnTooLarge: "never"}, field: "spec.rules[0].credential.aws.onTooLarge", text: "must be request, prefix, task or session"},
		{name: "service of an endpoint", endpoint: "s4", field: "spec.aws.endpoints[0].service", text: "the signing name of no service"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := awsBundle(tt.provider, tt.scope)
			if tt.endpoint != "" {
				b.Providers[2].Spec.AWS.Endpoints = []v1alpha1.AWSEndpoint{{Host: "minio.test", Service: tt.endpoint}}
			}
			_, err := policy.Compile(b)
			var problems policy.Problems
			if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Ref.Field != tt.field || !strings.Contains(problems[0].Text, tt.text) {
				t.Errorf("got %+v", err)
			}
		})
	}
}

// TestSessionPolicyTooLarge: the configured granularity takes over, and where
// that is too large too the error has both.
func TestSessionPolicyTooLarge(t *testing.T) {
	deny := `{"Effect":"Deny","Action":"sqs:*","Resource":"arn:aws:sqs:*:*:` + strings.Repeat("x", 1000) + `"}`
	_, r := getObject()
	r.Method, r.RawQuery, r.RawPath = http.MethodPost, "delete", "/"
	r.Body = []byte("<Delete>" + strings.Repeat("<Object><Key>docs/"+strings.Repeat("k", 400)+"1</Key></Object><Object><Key>docs/"+strings.Repeat("k", 400)+"2</Key></Object>", 2) + "</Delete>")
	call, err := awsscope.Recognise(r)
	if err != nil {
		t.Fatal(err)
	}
	grant := func(policyText string, onTooLarge awsscope.Granularity) *policy.AWSGrant {
		static, err := awsscope.ParsePolicy([]byte(policyText))
		if err != nil {
			t.Fatal(err)
		}
		return &policy.AWSGrant{Granularity: awsscope.GranularityRequest, OnTooLarge: onTooLarge, Static: static}
	}
	static := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"},` + deny + `]}`
	if _, _, err := grant(static, "").SessionPolicy(call, false); !errors.Is(err, awsscope.ErrTooLarge) {
		t.Errorf("without a fallback: %v", err)
	}
	text, used, err := grant(static, awsscope.GranularityPrefix).SessionPolicy(call, false)
	if err != nil || used != awsscope.GranularityPrefix || !strings.Contains(text, `arn:aws:s3:::media/docs/*`) || !strings.Contains(text, iampolicy.OpenEnd) {
		t.Errorf("got %q by %q, %v", text, used, err)
	}
	static = strings.Replace(static, strings.Repeat("x", 1000), strings.Repeat("x", 2000), 1)
	if text, _, err := grant(static, awsscope.GranularityPrefix).SessionPolicy(call, false); text != "" || !errors.Is(err, awsscope.ErrTooLarge) || strings.Count(err.Error(), "over the limit") != 2 {
		t.Errorf("got %q, %v", text, err)
	}
}

// TestExplainAWS: the explanation has what the data path would send, and is a
// denial where the data path refuses.
func TestExplainAWS(t *testing.T) {
	explain := func(scope *v1alpha1.AWSScope, change func(*v1alpha1.Rule), call func(*awsscope.Request)) policy.Explanation {
		t.Helper()
		b := awsBundle("", scope)
		if change != nil {
			change(&b.Policies[0].Spec.Rules[0])
		}
		s, err := policy.Compile(b)
		if err != nil {
			t.Fatal(err)
		}
		r, q := getObject()
		x := s.Explain(r)
		if call != nil {
			call(&q)
		}
		if err := x.ExplainAWS(q, false, time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)); (err != nil) != (x.Verdict == "deny") {
			t.Errorf("verdict %s, but error %v", x.Verdict, err)
		}
		return x
	}
	x := explain(&v1alpha1.AWSScope{Policy: json.RawMessage(mediaPolicy)}, nil, nil)
	want := &policy.ExplainedAWS{
		Granularity: "request", OnTooLarge: "deny", Service: "s3", Operation: "GetObject", Region: "eu-west-1", Account: "123456789012",
		Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::media/docs/a"}, Scope: "request", UsedGranularity: "request",
		SessionPolicy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::media/docs/a","Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T12:05:00Z"}}}]}`,
	}
	if diff := cmp.Diff(want, x.Credential.AWS); diff != "" || x.Verdict != "inject" {
		t.Errorf("%s, -want +got:\n%s", x.Verdict, diff)
	}
	if text := x.String(); !strings.Contains(text, "s3 GetObject in eu-west-1, account 123456789012") || !strings.Contains(text, `"Resource": "arn:aws:s3:::media/docs/a"`) {
		t.Errorf("got %s", text)
	}
	secret := func(q *awsscope.Request) {
		q.Method, q.Host, q.RawPath, q.ClaimedService = http.MethodPost, "secretsmanager.eu-west-1.amazonaws.com", "/", "secretsmanager"
		q.Header = http.Header{"X-Amz-Target": {"secretsmanager.GetSecretValue"}, "Content-Type": {"application/x-amz-json-1.1"}}
		q.Body = []byte(`{"SecretId":"db"}`)
	}
	login := func(q *awsscope.Request) {
		q.Method, q.Host, q.RawPath, q.ClaimedService, q.ClaimedRegion = http.MethodPost, "iam.amazonaws.com", "/", "iam", "us-east-1"
		q.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		q.Body = []byte("Action=CreateLoginProfile&Version=2010-05-08&UserName=u&Password=p")
	}
	for name, tt := range map[string]struct {
		change func(*v1alpha1.Rule)
		call   func(*awsscope.Request)
		why    string
	}{
		"not allowed":    {nil, func(q *awsscope.Request) { q.RawPath = "/x"; q.Host = "other.s3.eu-west-1.amazonaws.com" }, "not allowed by the static policy"},
		"not understood": {nil, func(q *awsscope.Request) { q.RawQuery = "nosuchsubresource" }, "refused"},
		"other region":   {nil, func(q *awsscope.Request) { q.ClaimedRegion = "us-east-1" }, "the signature claims region"},
		"a secret":       {nil, secret, "credentialCall: true"},
		"unsealable":     {func(r *v1alpha1.Rule) { r.CredentialCall = true }, login, "answerCredentials: pass"},
	} {
		scope := &v1alpha1.AWSScope{Policy: json.RawMessage(mediaPolicy)}
		if name == "a secret" || name == "unsealable" {
			scope = nil
		}
		x := explain(scope, tt.change, tt.call)
		if x.Verdict != "deny" || x.Decision.Verdict != policy.Deny || !strings.Contains(x.Reason, tt.why) || x.Credential.AWS.SessionPolicy != "" {
			t.Errorf("%s: got %s: %s", name, x.Verdict, x.Reason)
		}
	}
	for answer, call := range map[v1alpha1.AnswerCredentials]func(*awsscope.Request){v1alpha1.AnswersSeal: secret, v1alpha1.AnswersPass: login} {
		x = explain(nil, func(r *v1alpha1.Rule) { r.CredentialCall, r.AnswerCredentials = true, answer }, call)
		a := x.Credential.AWS
		if x.Verdict != "inject" || !a.HandsOutCredentials || a.Answer != string(answer) || !strings.Contains(a.SessionPolicy, a.Actions[0]) || !strings.Contains(x.String(), "holds secrets: "+string(answer)) {
			t.Errorf("%s: got %s: %+v", answer, x.Verdict, a)
		}
	}
}

// TestAWSIssuerWarnings: an issuer whose keys STS cannot read, or not for long.
func TestAWSIssuerWarnings(t *testing.T) {
	for _, tt := range []struct {
		name     string
		identity v1alpha1.IdentityConfig
		change   func(*v1alpha1.AWS)
		want     string
	}{
		{"nowhere", v1alpha1.IdentityConfig{Source: api.SourceEmbedded}, nil, "set identity.issuerURL"},
		{"new keys in every run", v1alpha1.IdentityConfig{Source: api.SourceEmbedded, IssuerURL: "https://i.test"}, nil, "set identity.sshAgent"},
		{"exported", v1alpha1.IdentityConfig{Source: api.SourceEmbedded, IssuerURL: "https://i.test", SSHAgent: "s"}, nil, ""},
		{"served", v1alpha1.IdentityConfig{Source: api.SourceEmbedded, Listen: ":443"}, nil, ""},
		{"SPIFFE", v1alpha1.IdentityConfig{Source: api.SourceSPIFFE}, nil, ""},
		{"its own token", v1alpha1.IdentityConfig{Source: api.SourceEmbedded}, func(a *v1alpha1.AWS) { a.TokenFile = "t" }, ""},
		{"a certificate", v1alpha1.IdentityConfig{Source: api.SourceEmbedded}, func(a *v1alpha1.AWS) { a.RolesAnywhere = &v1alpha1.AWSRolesAnywhere{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := awsBundle(mediaPolicy, nil)
			b.Config.Spec.Identity = tt.identity
			if tt.change != nil {
				tt.change(b.Providers[len(b.Providers)-1].Spec.AWS)
			}
			got := policy.Warnings(b)
			if (len(got) == 0) != (tt.want == "") || len(got) > 0 && (len(got) != 1 || got[0].Ref.Field != "spec.aws" || !strings.Contains(got[0].Text, tt.want)) {
				t.Errorf("got %v, want %q", got, tt.want)
			}
		})
	}
}

// TestAWSWarnings: policies that say something else than they seem to.
func TestAWSWarnings(t *testing.T) {
	conditions := `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/team":"a"}}},
		{"Effect":"Deny","Action":"s3:*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}},
		{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"StringEquals":{"aws:RequestedRegion":"eu-west-1"}}}]}`
	tests := []struct {
		name, provider string
		scope          *v1alpha1.AWSScope
		want           []string // field, a part of the text
	}{
		{name: "none", provider: mediaPolicy, scope: &v1alpha1.AWSScope{Granularity: "session"}},
		{name: "none by default"},
		{name: "conditions of the provider", provider: conditions, want: []string{"spec.aws.policy", "Statement[0] with condition StringEquals aws:PrincipalTag/team", "spec.aws.policy", "Statement[1] with condition IpAddress aws:SourceIp"}},
		{name: "conditions of the rule", scope: &v1alpha1.AWSScope{Policy: json.RawMessage(conditions)}, want: []string{"spec.rules[0].credential.aws.policy", "allows nothing", "spec.rules[0].credential.aws.policy", "refuses every call"}},
		{name: "session for everything", scope: &v1alpha1.AWSScope{Granularity: "session"}, want: []string{"spec.rules[0].credential.aws.granularity", "all that the role may do;"}},
		{name: "fallback to everything", scope: &v1alpha1.AWSScope{OnTooLarge: "task"}, want: []string{"spec.rules[0].credential.aws.onTooLarge", "all that the role may do in that service;"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := policy.Warnings(awsBundle(tt.provider, tt.scope))
			if len(got) != len(tt.want)/2 {
				t.Fatalf("got %v", got)
			}
			for i, w := range got {
				if w.Ref.Field != tt.want[2*i] || !strings.Contains(w.Text, tt.want[2*i+1]) {
					t.Errorf("got %s: %s", w.Ref.Field, w.Text)
				}
			}
		})
	}
}
