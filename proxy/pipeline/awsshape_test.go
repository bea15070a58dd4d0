package pipeline_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/injector/sigv4"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// TestAWSShapes checks that a refusal looks like one of the service's own,
// whatever rule or failure refuses, and whether the rule knows of AWS at all.
func TestAWSShapes(t *testing.T) {
	a := newAWSRig(t, func(s *settings) {
		s.rules = `
  - {name: other, hosts: ["other.test"], action: allow}
`
	})
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, tt := range []struct {
		name, url, service, body string
		header                   []string
		contentType, want        string
	}{
		{"query", "https://sns.eu-west-1.amazonaws.com/", "sns", "Action=Publish&TopicArn=x", form, "text/xml", "<ErrorResponse><Error><Type>Sender</Type><Code>ValidationError</Code>"},
		{"ec2", "https://ec2.eu-west-1.amazonaws.com/", "ec2", "Action=DescribeInstances&Action=x", form, "text/xml", "<Response><Errors><Error><Code>InvalidRequest</Code>"},
		{"rest-json", "https://lambda.eu-west-1.amazonaws.com/nowhere", "lambda", "", nil, "application/json", `{"__type":"ValidationException"`},
		{"cbor", "https://monitoring.eu-west-1.amazonaws.com/nowhere", "monitoring", "", []string{"Smithy-Protocol", "rpc-v2-cbor"}, "application/cbor", "ValidationException"},
		{"no rule", "https://nobody.test/", "s3", "", nil, "application/xml", "<Error><Code>AccessDenied</Code>"},
	} {
		got := a.send(a.signed(http.MethodPost, tt.url, tt.service, "eu-west-1", tt.body, tt.header...))
		if !strings.HasPrefix(got.Header.Get("Content-Type"), tt.contentType) || !strings.Contains(got.body, tt.want) || !strings.Contains(got.body, got.Header.Get("Attache-Record")) {
			t.Errorf("%s: %d %v %s", tt.name, got.StatusCode, got.Header, got.body)
		}
	}
	if n, _ := a.verified(); n != 0 {
		t.Errorf("%d calls", n)
	}
}

// TestAWSCodes checks which refusals SDKs try again: those of 429 and 503, and
// no denial.
func TestAWSCodes(t *testing.T) {
	for status, want := range map[int][3]string{ // S3, query, JSON
		400: {"InvalidRequest", "ValidationError", "ValidationException"},
		403: {"AccessDenied", "AccessDenied", "AccessDeniedException"},
		413: {"EntityTooLarge", "ValidationError", "ValidationException"},
		429: {"SlowDown", "Throttling", "ThrottlingException"},
		502: {"ServiceUnavailable", "ServiceUnavailable", "ServiceUnavailableException"},
		503: {"SlowDown", "Throttling", "ThrottlingException"},
	} {
		for i, p := range []sigv4.Protocol{sigv4.S3XML, sigv4.QueryXML, sigv4.JSON11} {
			if got := pipeline.AWSCode(p, status); got != want[i] {
				t.Errorf("%d by %s: got %s, want %s", status, p, got, want[i])
			}
		}
	}
}

// TestAWSMetrics checks what is counted of calls to AWS.
func TestAWSMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := newAWSRig(t, func(s *settings) {
		s.transport = func(c *pipeline.Config) { c.Metrics = pipeline.NewMetrics(reg) }
	})
	get := func() { _ = a.send(a.signed(http.MethodGet, object, "s3", "eu-west-1", "")) }
	get()
	a.sts.expire()
	get()
	_ = a.send(a.signed(http.MethodGet, "https://bounded.s3.eu-west-1.amazonaws.com/private/k", "s3", "eu-west-1", "")) // refused
	a.records(3)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if strings.HasPrefix(f.GetName(), "attache_aws_") && len(m.GetLabel()) == 1 {
				got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{"attache_aws_calls_total request": 2, "attache_aws_signature_refusals_total session": 1}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
