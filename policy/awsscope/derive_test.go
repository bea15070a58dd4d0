package awsscope_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/internal/iampolicy"
	"github.com/attache-dev/attache/policy/awsscope"
)

func s3Request(method, target string) awsscope.Request {
	path, query, _ := strings.Cut(target, "?")
	return awsscope.Request{
		Method: method, Host: "media.s3.eu-west-1.amazonaws.com", RawPath: path, RawQuery: query, Header: http.Header{},
		ClaimedService: "s3", ClaimedRegion: "eu-west-1", Account: account, BodyComplete: true,
	}
}

func recognise(t testing.TB, r awsscope.Request) awsscope.Call {
	t.Helper()
	c, err := awsscope.Recognise(r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDerive: what each granularity emits, and what each kind of static policy
// refuses.
func TestDerive(t *testing.T) {
	const (
		head  = `{"Version":"2012-10-17","Statement":[`
		media = `{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::media/*"}`
		get   = `{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::media/docs/a"}`
	)
	open, err := time.Parse(time.RFC3339, iampolicy.OpenEnd)
	if err != nil {
		t.Fatal(err)
	}
	openEnd := awsscope.Options{NotAfter: open}
	end := time.Date(2026, 11, 23, 12, 0, 0, 500, time.UTC)
	tests := []struct {
		name, target, static string
		g                    awsscope.Granularity
		o                    awsscope.Options
		want                 string
		err                  error
	}{
		{name: "request", target: "/docs/a", static: media, g: awsscope.GranularityRequest, want: get},
		{name: "prefix", target: "/docs/a", static: media, g: awsscope.GranularityPrefix, want: strings.Replace(get, "docs/a", "docs/*", 1)},
		{name: "prefix of a key at the root", target: "/a", static: media, g: awsscope.GranularityPrefix, want: strings.Replace(get, "docs/a", "*", 1)},
		{name: "prefix wider than the static policy", target: "/docs/a", static: get, g: awsscope.GranularityPrefix, want: get},
		{name: "prefix that NotResource reaches into", target: "/docs/a", g: awsscope.GranularityPrefix, static: `{"Effect":"Allow","Action":"s3:*","NotResource":"arn:aws:s3:::media/docs/secret*"}`, want: get},
		{name: "NotResource", target: "/docs/secret1", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"s3:*","NotResource":"arn:aws:s3:::media/docs/secret*"}`, err: awsscope.ErrNotAllowed},
		{name: "prefix of a listing", target: "/?prefix=docs/a", g: awsscope.GranularityPrefix, static: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*"}`,
			want: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::media","Condition":{"StringLike":{"s3:prefix":"docs/*"}}}`},
		{name: "task", target: "/docs/a", g: awsscope.GranularityTask, static: media + `,{"Effect":"Allow","Action":["sqs:*","s3:ListBucket"],"Resource":"*"},{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::x/*"}`,
			want: media + `,{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*"},{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::x/*"}`},
		{name: "task with NotAction", target: "/docs/a", g: awsscope.GranularityTask, static: `{"Effect":"Allow","NotAction":"sqs:*","Resource":"*"}`, err: awsscope.ErrPolicy},
		{name: "session", target: "/docs/a", g: awsscope.GranularitySession, static: media, want: media},
		{name: "session must allow the request", target: "/docs/a", g: awsscope.GranularitySession, static: `{"Effect":"Allow","Action":"s3:Put*","Resource":"*"}`, err: awsscope.ErrNotAllowed},
		{name: "no granularity", target: "/docs/a", static: media, err: awsscope.ErrUnsupported},
		{name: "Deny is copied", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Sid":"x","Effect":"Deny","Action":"s3:Delete*","Resource":"*"},` + media,
			want: get + `,{"Effect":"Deny","Action":"s3:Delete*","Resource":"*"}`},
		{name: "Deny of a part is copied", target: "/docs/a", g: awsscope.GranularityPrefix, static: media + `,{"Effect":"Deny","Action":"s3:*","Resource":"arn:aws:s3:::media/docs/secret*"}`,
			want: strings.Replace(get, "docs/a", "docs/*", 1) + `,{"Effect":"Deny","Action":"s3:*","Resource":"arn:aws:s3:::media/docs/secret*"}`},
		{name: "Deny wins", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","Action":"s3:Get*","Resource":"arn:aws:s3:::media/docs/*"}`, err: awsscope.ErrNotAllowed},
		{name: "Deny by NotResource", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","Action":"*","NotResource":"arn:aws:s3:::other/*"}`, err: awsscope.ErrNotAllowed},
		{name: "Deny by NotAction", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","NotAction":"s3:Put*","Resource":"*"}`, err: awsscope.ErrNotAllowed},
		{name: "Deny with an unknown condition", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`, err: awsscope.ErrNotAllowed},
		{name: "Deny of cleartext", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":false}}}`,
			want: get + `,{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`},
		{name: "Allow with an unknown condition", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/a":"b"}}}`, err: awsscope.ErrNotAllowed},
		{name: "Allow with an unknown operator", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEqualsIgnoreCase":{"aws:RequestedRegion":"eu-west-1"}}}`, err: awsscope.ErrNotAllowed},
		{name: "Allow in another region", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:RequestedRegion":"us-east-1"}}}`, err: awsscope.ErrNotAllowed},
		{name: "no statement on the action", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"s3:GetObjectVersion","Resource":"*"}`, err: awsscope.ErrNotAllowed},
		{name: "another bucket", target: "/docs/a", g: awsscope.GranularityRequest, static: strings.Replace(media, "media", "media2", 1), err: awsscope.ErrNotAllowed},
		{name: "the ARN of another service", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"arn:aws:sqs:::media/*"}`, err: awsscope.ErrNotAllowed},
		{name: "a ? is no umlaut", target: "/%C3%BC", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::media/?"}`, err: awsscope.ErrNotAllowed},
		{name: "a star does not cross ARN parts", target: "/docs/a", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"*","Resource":"arn:aws:s*media/*"}`, err: awsscope.ErrNotAllowed},
		{name: "listing without the prefix asked for", target: "/", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringLike":{"s3:prefix":"docs/*"}}}`, err: awsscope.ErrNotAllowed},
		{name: "listing of the prefix asked for", target: "/?prefix=docs/x", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringLike":{"s3:prefix":"docs/*"}}}`,
			want: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::media","Condition":{"StringEquals":{"s3:prefix":"docs/x"}}}`},
		{name: "listing of a star under an exact prefix", target: "/?prefix=*", g: awsscope.GranularityRequest, static: `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringEquals":{"s3:prefix":"docs"}}}`, err: awsscope.ErrNotAllowed},
		{name: "end of validity", target: "/docs/a", static: media, g: awsscope.GranularityRequest, o: awsscope.Options{NotAfter: end},
			want: strings.TrimSuffix(get, "}") + `,"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T12:00:00Z"}}}`},
		{name: "the policy ends before", target: "/docs/a", g: awsscope.GranularityRequest, o: awsscope.Options{NotAfter: end}, static: strings.TrimSuffix(media, "}") + `,"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T10:00:00Z"}}}`,
			want: strings.TrimSuffix(get, "}") + `,"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T10:00:00Z"},"DateLessThanEquals":{"aws:CurrentTime":"2026-11-23T12:00:00Z"}}}`},
		{name: "another time keeps its condition", target: "/docs/a", g: awsscope.GranularitySession, o: awsscope.Options{NotAfter: end}, static: media + `,{"Effect":"Allow","Action":"sqs:*","Resource":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":"2026-11-23T10:00:00Z"}}}`,
			want: strings.TrimSuffix(media, "}") + `,"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T12:00:00Z"}}},{"Effect":"Allow","Action":"sqs:*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T12:00:00Z","aws:TokenIssueTime":"2026-11-23T10:00:00Z"}}}`},
		{name: "a key that reads as the open end", target: "/" + iampolicy.OpenEnd, static: media, g: awsscope.GranularityRequest, err: awsscope.ErrUnsupported},
		{name: "a key that reads as the open end, with one", target: "/" + iampolicy.OpenEnd, static: media, g: awsscope.GranularityRequest, o: openEnd, err: awsscope.ErrUnsupported},
		{name: "the policy starts later", target: "/docs/a", g: awsscope.GranularityRequest, static: strings.TrimSuffix(media, "}") + `,"Condition":{"DateGreaterThan":{"aws:CurrentTime":"2026-11-23T10:00:00Z"}}}`,
			want: strings.TrimSuffix(get, "}") + `,"Condition":{"DateGreaterThan":{"aws:CurrentTime":"2026-11-23T10:00:00Z"}}}`},
		{name: "a star in the key", target: "/docs/%2A", static: media, g: awsscope.GranularityRequest, want: strings.Replace(get, "docs/a", "docs/${*}", 1)},
		{name: "a star for a server that knows no escapes", target: "/docs/%2A", static: media, g: awsscope.GranularityRequest, o: awsscope.Options{NoEscapes: true}, err: awsscope.ErrEscape},
		{name: "a star under an exact static policy", target: "/docs/%2A", static: get, g: awsscope.GranularityRequest, err: awsscope.ErrNotAllowed},
		{name: "too large", target: "/docs/a", g: awsscope.GranularityRequest, static: media + `,{"Effect":"Deny","Action":"sqs:*","Resource":"arn:aws:sqs:*:*:` + strings.Repeat("x", 2000) + `"}`, err: awsscope.ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := awsscope.Derive(recognise(t, s3Request("GET", tt.target)), parse(t, head+tt.static+"]}"), tt.g, tt.o)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if tt.err == nil && got != head+tt.want+"]}" {
				t.Errorf("got  %s\nwant %s", got, head+tt.want+"]}")
			}
		})
	}
}

// TestPolicyLimit: 2,048 characters pass, one more does not, and the error says
// by how much.
func TestPolicyLimit(t *testing.T) {
	call := recognise(t, s3Request("GET", "/k"))
	static := func(n int) awsscope.Policy {
		return parse(t, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"sqs:*","Resource":"`+strings.Repeat("x", n)+`"}]}`)
	}
	base, err := awsscope.Derive(call, static(1), awsscope.GranularityRequest, awsscope.Options{})
	if err != nil {
		t.Fatal(err)
	}
	room := awsscope.MaxPolicy - len(base) + 1
	if p, err := awsscope.Derive(call, static(room), awsscope.GranularityRequest, awsscope.Options{}); err != nil || len(p) != awsscope.MaxPolicy {
		t.Errorf("%d characters: %v", len(p), err)
	}
	_, err = awsscope.Derive(call, static(room+1), awsscope.GranularityRequest, awsscope.Options{})
	if !errors.Is(err, awsscope.ErrTooLarge) || !strings.Contains(err.Error(), "2049 characters, 1 over the limit of 2048") {
		t.Errorf("got %v", err)
	}
}

// TestOpenEnd: the text with an open end becomes one with the session's end in
// every Allow statement, also where the static policy ends by itself.
func TestOpenEnd(t *testing.T) {
	open, err := time.Parse(time.RFC3339, iampolicy.OpenEnd)
	if err != nil {
		t.Fatal(err)
	}
	static := parse(t, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2031-01-01T00:00:00Z"}}},
		{"Effect":"Deny","Action":"s3:Put*","Resource":"*"}]}`)
	for _, g := range []awsscope.Granularity{awsscope.GranularityRequest, awsscope.GranularityPrefix, awsscope.GranularityTask, awsscope.GranularitySession} {
		p, err := awsscope.Derive(recognise(t, s3Request("GET", "/k")), static, g, awsscope.Options{NotAfter: open})
		if err != nil {
			t.Fatal(g, err)
		}
		p = iampolicy.End(p, time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
		for _, want := range []string{`"DateLessThan":{"aws:CurrentTime":"2031-01-01T00:00:00Z"}`, `"DateLessThanEquals":{"aws:CurrentTime":"2026-11-23T12:00:00Z"}`} {
			if strings.Count(p, want) != 1 {
				t.Errorf("%s: %s is not once in %s", g, want, p)
			}
		}
	}
}

// TestParsePolicy refuses what the evaluator would misread.
func TestParsePolicy(t *testing.T) {
	const ok = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`
	parse(t, ok)
	for name, change := range map[string][2]string{
		"old version":          {"2012-10-17", "2008-10-17"},
		"unknown element":      {`"Action"`, `"Principal":"*","Action"`},
		"duplicate element":    {`"Action"`, `"Effect":"Deny","Action"`},
		"case-variant element": {`"Action"`, `"effect":"Deny","Action"`},
		"both actions":         {`"Action"`, `"NotAction":"a:b","Action"`},
		"both resources":       {`"Action"`, `"NotResource":"*","Action"`},
		"policy variable":      {`"Resource":"*"`, `"Resource":"arn:aws:s3:::b/${aws:username}/*"`},
		"no resource":          {`,"Resource":"*"`, ``},
		"empty action":         {`"Action":"*"`, `"Action":[]`},
		"effect":               {`"Allow"`, `"allow"`},
		"condition":            {`"Action"`, `"Condition":{"StringEquals":"x"},"Action"`},
		"open end, action":     {`"Action":"*"`, `"Action":"s3:9999-12-31T23:59:59Z"`},
		"open end, resource":   {`"Resource":"*"`, `"Resource":"arn:aws:s3:::b/\u0039999-12-31T23:59:59Z"`},
		"open end, condition":  {`"Action"`, `"Condition":{"DateLessThan":{"aws:CurrentTime":"9999-12-31T23:59:59Z"}},"Action"`},
		"trailing data":        {`"*"}}`, `"*"}}{}`},
	} {
		if _, err := awsscope.ParsePolicy([]byte(strings.Replace(ok, change[0], change[1], 1))); !errors.Is(err, awsscope.ErrPolicy) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestHandsOut names calls that exist to hand out credentials, and their
// neighbours that do not.
func TestHandsOut(t *testing.T) {
	call := func(host, claim, target, body string) awsscope.Call {
		service, region, _ := strings.Cut(claim, "/")
		h := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		if target != "" {
			h = http.Header{"X-Amz-Target": {target}}
		}
		return recognise(t, awsscope.Request{
			Method: "POST", Host: host, RawPath: "/", Header: h, Body: []byte(body), BodyComplete: true,
			ClaimedService: service, ClaimedRegion: region, Account: account,
		})
	}
	const sts, iam, eu = "sts.eu-west-1.amazonaws.com", "iam.amazonaws.com", ".eu-west-1.amazonaws.com"
	for _, tt := range []struct {
		host, claim, target, body string
		want                      bool
		secrets                   string
	}{
		{sts, "sts/eu-west-1", "", "Action=AssumeRole&RoleArn=arn:aws:iam::123456789012:role/x", true, "SecretAccessKey SessionToken WebIdentityToken"},
		{sts, "sts/eu-west-1", "", "Action=GetSessionToken", true, "SecretAccessKey SessionToken WebIdentityToken"},
		{sts, "sts/eu-west-1", "", "Action=GetDelegatedAccessToken", true, "SecretAccessKey SessionToken WebIdentityToken"},
		{sts, "sts/eu-west-1", "", "Action=SomethingNew", true, "SecretAccessKey SessionToken WebIdentityToken"},
		{sts, "sts/eu-west-1", "", "Action=GetCallerIdentity", false, ""},
		{iam, "iam/us-east-1", "", "Action=CreateAccessKey&UserName=x", true, "SecretAccessKey"},
		{iam, "iam/us-east-1", "", "Action=ListAccessKeys&UserName=x", false, ""},
		{"secretsmanager" + eu, "secretsmanager/eu-west-1", "secretsmanager.GetSecretValue", `{"SecretId":"a"}`, true, "SecretString SecretBinary"},
		{"secretsmanager" + eu, "secretsmanager/eu-west-1", "secretsmanager.DescribeSecret", `{"SecretId":"a"}`, false, ""},
		{"ssm" + eu, "ssm/eu-west-1", "AmazonSSM.GetParameter", `{"Name":"a","WithDecryption":true}`, true, "Value"},
		{"ssm" + eu, "ssm/eu-west-1", "AmazonSSM.GetParameter", `{"Name":"a","WithDecryption":"yes"}`, true, "Value"},
		{"ssm" + eu, "ssm/eu-west-1", "AmazonSSM.GetParameter", `{"Name":"a","WithDecryption":false}`, false, ""},
		{"ssm" + eu, "ssm/eu-west-1", "AmazonSSM.GetParameter", `{"Name":"a"}`, false, ""},
		{"ssm" + eu, "ssm/eu-west-1", "AmazonSSM.GetParameter", `{"Name":"/aws/reference/secretsmanager/db"}`, true, "Value"},
		{"api.ecr" + eu, "ecr/eu-west-1", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", `{}`, true, "authorizationToken"},
		{"cognito-identity" + eu, "cognito-identity/eu-west-1", "AWSCognitoIdentityService.GetCredentialsForIdentity", `{}`, true, "SecretKey SessionToken"},
		{"ecs" + eu, "ecs/eu-west-1", "AmazonEC2ContainerServiceV20141113.ExecuteCommand", `{}`, true, "tokenValue"},
		{"ecs" + eu, "ecs/eu-west-1", "AmazonEC2ContainerServiceV20141113.DescribeTasks", `{}`, false, ""},
		{"appstream2" + eu, "appstream/eu-west-1", "PhotonAdminProxyService.CreateStreamingURL", `{}`, true, ""},
		{"cognito-idp" + eu, "cognito-idp/eu-west-1", "AWSCognitoIdentityProviderService.GetTokensFromRefreshToken", `{}`, true, "AccessToken IdToken RefreshToken"},
	} {
		c := call(tt.host, tt.claim, tt.target, tt.body)
		if c.HandsOutCredentials != tt.want {
			t.Errorf("%s %s: hands out is %v", tt.target, tt.body, c.HandsOutCredentials)
		}
		if got := strings.Join(c.Secrets, " "); got != tt.secrets {
			t.Errorf("%s %s: secrets %q, want %q", tt.target, tt.body, got, tt.secrets)
		}
	}
}

// TestMatch is the endpoint table.
func TestMatch(t *testing.T) {
	for host, want := range map[string]awsscope.Target{
		"sqs.eu-west-1.amazonaws.com":                      {Partition: "aws", Endpoint: "sqs", Region: "eu-west-1"},
		"sqs.eu-west-1.api.aws":                            {Partition: "aws", Endpoint: "sqs", Region: "eu-west-1", DualStack: true},
		"kms-fips.us-gov-west-1.amazonaws.com":             {Partition: "aws-us-gov", Endpoint: "kms", Region: "us-gov-west-1", FIPS: true},
		"lambda-fips.us-east-1.api.aws":                    {Partition: "aws", Endpoint: "lambda", Region: "us-east-1", FIPS: true, DualStack: true},
		"dynamodb.cn-north-1.amazonaws.com.cn":             {Partition: "aws-cn", Endpoint: "dynamodb", Region: "cn-north-1"},
		"dynamodb.cn-north-1.api.amazonwebservices.com.cn": {Partition: "aws-cn", Endpoint: "dynamodb", Region: "cn-north-1", DualStack: true},
		"api.ecr.eu-west-1.amazonaws.com":                  {Partition: "aws", Endpoint: "api.ecr", Region: "eu-west-1"},
		"iam.us-gov.amazonaws.com":                         {Partition: "aws-us-gov", Endpoint: "iam", Region: "us-gov-west-1"},
		"B.S3.eu-west-1.amazonaws.com":                     {},
		"bkt.s3.dualstack.eu-west-1.amazonaws.com":         {Partition: "aws", Endpoint: "s3", Region: "eu-west-1", Bucket: "bkt", DualStack: true},
		"bkt.s3-fips.us-east-1.amazonaws.com":              {Partition: "aws", Endpoint: "s3", Region: "us-east-1", Bucket: "bkt", FIPS: true},
		"sqs.eu-west-1.amazonaws.com.":                     {},
		"sqs..eu-west-1.amazonaws.com":                     {},
		"evil-sqs.eu-west-1.amazonaws.com":                 {},
		"sqs.eu-west-1.amazonaws.com.cn":                   {},
		"sqs.amazonaws.com":                                {},
		"xamazonaws.com":                                   {},
		"lambda.eu-west-1.on.aws":                          {},
	} {
		got, err := awsscope.Match(host, nil)
		if want == (awsscope.Target{}) {
			if err == nil {
				t.Errorf("%s: got %+v, want an error", host, got)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", host, got, err, want)
		}
	}
}

// TestPartition: a role of one partition never serves a host of another.
func TestPartition(t *testing.T) {
	r := s3Request("GET", "/k")
	r.Partition = "aws-cn"
	if _, err := awsscope.Recognise(r); !errors.Is(err, awsscope.ErrMismatch) {
		t.Errorf("got %v", err)
	}
}

// TestHeaders: names in any case, and no second line of one that decides.
func TestHeaders(t *testing.T) {
	r := s3Request("PUT", "/dst")
	r.Header = http.Header{"x-amz-copy-source": {"src/k"}}
	if c := recognise(t, r); c.Operation != "CopyObject" {
		t.Errorf("got %s, want CopyObject", c.Operation)
	}
	r.Header = http.Header{"x-amz-copy-source": {"src/k"}, "X-Amz-Copy-Source": {"src/l"}}
	if _, err := awsscope.Recognise(r); !errors.Is(err, awsscope.ErrAmbiguous) {
		t.Errorf("got %v", err)
	}
}

// TestClaim: what an SDK signs for, by host alone.
func TestClaim(t *testing.T) {
	custom := []awsscope.Endpoint{{Host: "minio.test:9000", Service: "s3", Region: "eu-west-3"}}
	for host, want := range map[string]string{
		"bkt.s3.eu-west-1.amazonaws.com":               "s3 eu-west-1",
		"bkt.s3.amazonaws.com":                         "s3 eu-central-1",
		"bedrock-runtime.us-east-1.amazonaws.com":      "bedrock us-east-1",
		"api.ecr.us-east-1.amazonaws.com":              "ecr us-east-1",
		"iam.amazonaws.com":                            "iam us-east-1",
		"minio.test:9000":                              "s3 eu-west-3",
		"123456789012.ddb.us-east-1.amazonaws.com":     "dynamodb us-east-1",
		"nothing-of-aws.example":                       " ",
		"no-such-service.eu-west-1.amazonaws.com":      " ",
		"b.s3express-use1-az4.us-east-1.amazonaws.com": " ",
	} {
		service, region, err := awsscope.Claim(host, "eu-central-1", custom)
		if got := service + " " + region; got != want || (err == nil) != (want != " ") {
			t.Errorf("%s: got %q, %v; want %q", host, got, err, want)
		}
	}
}

// TestNoACLs: a canned ACL is an action of its own, but on servers without any.
func TestNoACLs(t *testing.T) {
	r := s3Request("PUT", "/k")
	r.Header = http.Header{"X-Amz-Acl": {"private"}}
	for _, no := range []bool{false, true} {
		r.NoACLs = no
		var actions []string
		for _, a := range recognise(t, r).Access {
			actions = append(actions, a.Action)
		}
		if slices.Contains(actions, "s3:PutObjectAcl") == no || !slices.Contains(actions, "s3:PutObject") {
			t.Errorf("NoACLs %v: actions %v", no, actions)
		}
	}
}

// TestPresignedChecksum: SDKs put the checksum of the content into presigned
// uploads. Fields that ask for more than the upload may not stand there.
func TestPresignedChecksum(t *testing.T) {
	r := s3Request("PUT", "/k")
	r.RawQuery = "x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32&x-id=PutObject"
	if c := recognise(t, r); c.Operation != "PutObject" || len(c.Access) != 1 {
		t.Errorf("got %s with %v", c.Operation, c.Access)
	}
	for _, q := range []string{"x-amz-acl=public-read", "x-amz-tagging=a%3Db", "x-amz-copy-source=a%2Fb", "X-Amz-Checksum-Crc32=AAAAAA%3D%3D"} {
		r.RawQuery = q
		if c, err := awsscope.Recognise(r); !errors.Is(err, awsscope.ErrUnsupported) {
			t.Errorf("%s: got %s, %v", q, c.Operation, err)
		}
	}
}

// TestCleartext: what the static policy allows over TLS only is not allowed over
// unencrypted HTTP.
func TestCleartext(t *testing.T) {
	const one = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":%q}}}]}`
	for _, cleartext := range []bool{false, true} {
		r := s3Request("GET", "/docs/a")
		r.Cleartext = cleartext
		for _, secure := range []bool{false, true} {
			_, err := awsscope.Derive(recognise(t, r), parse(t, fmt.Sprintf(one, fmt.Sprint(secure))), awsscope.GranularityRequest, awsscope.Options{})
			if allowed := err == nil; allowed != (secure != cleartext) {
				t.Errorf("cleartext %v, aws:SecureTransport %v: %v", cleartext, secure, err)
			}
		}
	}
}

// TestLongLists: no request makes us compare more resources than AWS would take.
func TestLongLists(t *testing.T) {
	const dynamo = "DynamoDB_20120810."
	for _, tt := range []struct{ service, target, head, entry, tail string }{
		{"ssm", "AmazonSSM.GetParameters", `{"Names":[`, `"p%d"`, `]}`},
		{"events", "AWSEvents.PutEvents", `{"Entries":[`, `{"EventBusName":"b%d"}`, `]}`},
		{"dynamodb", dynamo + "TransactGetItems", `{"TransactItems":[`, `{"Get":{"TableName":"t%d","Key":{"id":{"S":"a"}}}}`, `]}`},
		{"dynamodb", dynamo + "BatchGetItem", `{"RequestItems":{"t":{"Keys":[`, `{"id":{"S":"%d"}}`, `]}}}`},
		{"dynamodb", dynamo + "BatchGetItem", `{"RequestItems":{`, `"t%d":{"Keys":[{"id":{"S":"a"}}]}`, `}}`},
	} {
		for n, want := range map[int]error{1000: nil, 1001: awsscope.ErrMalformed} {
			entries := make([]string, n)
			for i := range entries {
				entries[i] = fmt.Sprintf(tt.entry, i)
			}
			_, err := awsscope.Recognise(awsscope.Request{
				Method: "POST", Host: tt.service + ".eu-west-1.amazonaws.com", RawPath: "/", Header: http.Header{"X-Amz-Target": {tt.target}},
				Body: []byte(tt.head + strings.Join(entries, ",") + tt.tail), BodyComplete: true, ClaimedService: tt.service, ClaimedRegion: "eu-west-1", Account: account,
			})
			if !errors.Is(err, want) {
				t.Errorf("%s with %d entries: got %v, want %v", tt.target, n, err, want)
			}
		}
	}
}
