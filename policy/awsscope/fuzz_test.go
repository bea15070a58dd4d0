package awsscope_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/policy/awsscope"
)

// seeds adds every recorded request.
func seeds(f *testing.F) {
	for _, file := range caseFiles(f) {
		for _, c := range readCases(f, file) {
			h := ""
			for k, v := range c.req.Header {
				h += k + ": " + v[0] + "\n"
			}
			f.Add(c.req.Method, c.req.Host, c.req.RawPath, c.req.RawQuery, c.req.ClaimedService+"/"+c.req.ClaimedRegion, h, c.req.Body)
		}
	}
}

func fuzzRequest(method, host, path, query, claim, headers string, body []byte) awsscope.Request {
	h := http.Header{}
	for l := range strings.Lines(headers) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), ": "); ok {
			h.Add(k, v)
		}
	}
	service, region, _ := strings.Cut(claim, "/")
	return awsscope.Request{
		Method: method, Host: host, RawPath: path, RawQuery: query, Header: h, Body: body, BodyComplete: true,
		ClaimedService: service, ClaimedRegion: region, Account: account,
		Endpoints: []awsscope.Endpoint{{Host: "minio.test:9000", Service: "s3", Region: "us-east-1", VirtualHost: true}},
	}
}

// FuzzRecognise: whatever comes in, what comes out has an action, resources
// whose wildcards are ours alone, and derives the same policy twice.
func FuzzRecognise(f *testing.F) {
	seeds(f)
	all := allowAll(f)
	f.Fuzz(func(t *testing.T, method, host, path, query, claim, headers string, body []byte) {
		r := fuzzRequest(method, host, path, query, claim, headers, body)
		call, err := awsscope.Recognise(r)
		if err != nil {
			return
		}
		if call.Service == "" || call.Operation == "" || len(call.Access) == 0 {
			t.Fatalf("incomplete call %+v", call)
		}
		for _, a := range call.Access {
			if len(a.Resources) == 0 || !strings.HasPrefix(a.Action, call.Service+":") {
				t.Fatalf("access %+v", a)
			}
			for _, p := range a.Resources {
				plain := strings.NewReplacer("${*}", "", "${?}", "", "${$}", "").Replace(string(p))
				if strings.Contains(plain, "${") {
					t.Fatalf("a policy variable in %q", p)
				}
				if call.Service == "s3" && call.Operation != "ListBuckets" && strings.ContainsAny(plain, "*?") {
					t.Fatalf("a wildcard in %q", p)
				}
				if call.ScopeKind == awsscope.ScopeRequest && p == "*" && strings.Contains(path+query, "*") && call.Service == "s3" {
					t.Fatalf("a star from the request")
				}
			}
		}
		p, err := awsscope.Derive(call, all, awsscope.GranularityRequest, awsscope.Options{})
		if err != nil {
			return
		}
		checkPolicy(t, p)
		again, err := awsscope.Recognise(r)
		if err != nil {
			t.Fatal(err)
		}
		if p2, _ := awsscope.Derive(again, all, awsscope.GranularityRequest, awsscope.Options{}); p2 != p {
			t.Fatalf("not deterministic:\n%s\n%s", p, p2)
		}
	})
}

// checkPolicy: valid JSON, ASCII, in size, and a policy to our own parser.
func checkPolicy(t *testing.T, p string) {
	t.Helper()
	if len(p) > awsscope.MaxPolicy || !json.Valid([]byte(p)) {
		t.Fatalf("policy %q", p)
	}
	for _, r := range p {
		if r < 0x20 || r > 0x7e {
			t.Fatalf("character %q in %q", r, p)
		}
	}
	if _, err := awsscope.ParsePolicy([]byte(p)); err != nil {
		t.Fatalf("%v: %s", err, p)
	}
}

// FuzzDerive: with any static policy and request, what is derived at request
// granularity is allowed by the static policy again (deriving is idempotent).
func FuzzDerive(f *testing.F) {
	for _, s := range []string{
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::media/*"}]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":"s3:Put*","NotResource":"arn:aws:s3:::x/?"},{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}`,
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringLike":{"s3:prefix":"a${*}*"},"DateLessThan":{"aws:CurrentTime":"2026-11-23T10:00:00Z"}}}}`,
	} {
		f.Add([]byte(s), "/docs/a", "")
		f.Add([]byte(s), "/", "prefix=a*b")
		f.Add([]byte(s), "/$%7Bx%7D*", "versionId=$")
	}
	f.Fuzz(func(t *testing.T, doc []byte, path, query string) {
		static, err := awsscope.ParsePolicy(doc)
		if err != nil {
			return
		}
		r := s3Request("GET", "/")
		r.RawPath, r.RawQuery = path, query
		call, err := awsscope.Recognise(r)
		if err != nil {
			return
		}
		for _, g := range []awsscope.Granularity{awsscope.GranularityRequest, awsscope.GranularityPrefix, awsscope.GranularityTask, awsscope.GranularitySession} {
			p, err := awsscope.Derive(call, static, g, awsscope.Options{})
			if err != nil {
				continue
			}
			checkPolicy(t, p)
			if g != awsscope.GranularityRequest {
				continue
			}
			narrow, err := awsscope.ParsePolicy([]byte(p))
			if err != nil {
				t.Fatal(err)
			}
			if p2, err := awsscope.Derive(call, narrow, g, awsscope.Options{}); err == nil && p2 != p {
				t.Fatalf("not idempotent:\n%s\n%s", p, p2)
			}
		}
	})
}

// FuzzBodies: the parsers of bodies end, and agree with encoding/json where
// both take a body.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}],"c":"d"}`))
	f.Add([]byte("\xbf\x61a\x9f\x01\xff\x61b\xa1\x61c\xf5\xff"))
	f.Add([]byte(`<Delete><Object><Key>a</Key></Object></Delete>`))
	f.Add([]byte(`Action=a&B=c%20d`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := awsscope.ParseJSON(b); err == nil && len(strings.TrimSpace(string(b))) > 0 && !json.Valid(b) {
			t.Fatalf("took %q", b)
		}
		_, _ = awsscope.ParseCBOR(b)
		_, _ = awsscope.ParseDelete(b)
		_, _ = awsscope.ParseQuery(string(b))
	})
}

// FuzzPatterns: containment implies overlap, and a literal covers itself alone.
func FuzzPatterns(f *testing.F) {
	f.Add("arn:aws:s3:::a*b?c", "axbyc")
	f.Add("*", "${*}")
	f.Fuzz(func(t *testing.T, p, s string) {
		lit := awsscope.Literal(s)
		arn := awsscope.Pattern("arn:aws:s3:::") + lit
		if !awsscope.Covers(arn, arn) {
			t.Fatalf("%q does not cover itself", arn)
		}
		if awsscope.Covers(awsscope.Pattern(p), arn) && !awsscope.Overlaps(awsscope.Pattern(p), arn) {
			t.Fatalf("%q covers but does not overlap %q", p, arn)
		}
		other := awsscope.Pattern("arn:aws:s3:::") + awsscope.Literal(p)
		if p != s && strings.ToValidUTF8(p, "\ufffd") != strings.ToValidUTF8(s, "\ufffd") && awsscope.Covers(other, arn) {
			t.Fatalf("literal %q covers %q", other, arn)
		}
	})
}
