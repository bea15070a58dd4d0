package api_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

const awsProvider = `kind: CredentialProvider
metadata: {name: aws}
spec:
  destinations: [{host: "**.amazonaws.com"}, {host: "*.s3.eu-west-1.amazonaws.com"}, {host: "**.minio.example.com", port: 9000}, {host: minio.example.com, port: 9000}]
  aws:
    roleARN: arn:aws:iam::123456789012:role/agents/${workload.name}
    region: eu-west-1
    tokenFile: token
    policy:
      Version: 2012-10-17
      Statement: {Effect: Allow, Action: "s3:*", Resource: "*"}
    chain:
      roleARN: arn:aws:iam::210987654321:role/second
      tags: {team: "${workload.labels.team}"}
      transitiveTags: [team]
      sourceIdentity: ${human.email}
    endpoints: [{host: minio.example.com, port: 9000, service: s3, virtualHost: true}, {host: a.minio.example.com, port: 9000, service: sqs, region: home}]
`

// TestAWS: what an aws provider may leave out, and that its policy stays as it
// is written.
func TestAWS(t *testing.T) {
	b, err := api.Parse("aws.yaml", docs(awsProvider))
	if err != nil {
		t.Fatal(err)
	}
	got := b.Providers[0].Spec
	if diff := cmp.Diff(`{"Statement":{"Action":"s3:*","Effect":"Allow","Resource":"*"},"Version":"2012-10-17"}`, string(got.AWS.Policy)); diff != "" {
		t.Errorf("policy: %s", diff)
	}
	required := true
	if diff := cmp.Diff(v1alpha1.Injection{As: api.InjectSigV4, RequirePlaceholder: &required}, got.Inject); diff != "" {
		t.Errorf("inject: %s", diff)
	}
	if diff := cmp.Diff([]v1alpha1.Placeholder{{Env: "AWS_ACCESS_KEY_ID", Prefix: "AKIA"}, {Env: "AWS_SECRET_ACCESS_KEY"}}, got.Placeholders); diff != "" {
		t.Errorf("placeholders: %s", diff)
	}
	a := got.AWS
	switch {
	case a.Audience != "sts.amazonaws.com", a.Duration.D() != 15*time.Minute, a.Chain.Duration.D() != 15*time.Minute,
		a.CallsPerSecond != 20, a.Timeout.D() != 10*time.Second, len(a.Doors) != 1 || a.Doors[0] != api.DoorEnv,
		!filepath.IsAbs(a.TokenFile), a.Endpoints[0].Region != "eu-west-1", a.Endpoints[1].Region != "home",
		got.RetryStatus != nil:
		t.Errorf("got %+v", a)
	}
}

// TestAWSEscapes: MinIO honours no escapes, unless its provider says that it
// does by now.
func TestAWSEscapes(t *testing.T) {
	const head, minio = "kind: CredentialProvider\nmetadata: {name: p}\nspec:\n  destinations: [{host: s.example.com}]\n  aws:\n" +
		"    region: r-1\n    endpoint: https://s.example.com\n    endpoints: [{host: s.example.com, service: s3}]\n", "    roleARN: arn:minio:iam:us-east-1::role/x\n"
	for _, tt := range []struct {
		name, rest string
		want       bool
	}{
		{"aws", "    roleARN: arn:aws:iam::123456789012:role/x\n", false},
		{"minio", minio, true},
		{"minio with escapes", minio + "    noEscapes: false\n", false},
		{"another server without", "    roleARN: arn:aws:iam::123456789012:role/x\n    noEscapes: true\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := api.Parse("p.yaml", docs(head+tt.rest))
			if err != nil {
				t.Fatal(err)
			}
			if got := *b.Providers[0].Spec.AWS.NoEscapes; got != tt.want {
				t.Errorf("noEscapes %v, want %v", got, tt.want)
			}
		})
	}
}

// TestAWSGeneration: the roots of the STS endpoint are part of the provider.
func TestAWSGeneration(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	writeFile(t, filepath.Join(dir, "p.yaml"), string(docs(awsProvider+"    caFile: ca.pem\n")))
	var generations []string
	for _, pem := range []string{certA, certA + certA} {
		writeFile(t, ca, pem)
		b, err := api.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		generations = append(generations, b.Generations["aws"])
	}
	if generations[0] == generations[1] {
		t.Error("a CA file's content is not part of the generation")
	}
}

// TestAWSBounds: the last value that AWS takes, and the first that it does not.
func TestAWSBounds(t *testing.T) {
	tags := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("t%d: v", i)
		}
		return "{" + strings.Join(list, ", ") + "}"
	}
	text := func(n int) string { return strings.Repeat("é", n) }
	for _, tt := range []struct {
		field     string // of spec, or of spec.aws.chain
		good, bad []string
	}{
		{"ttl", []string{"15m"}, []string{"15m1s"}},
		{"aws.duration", []string{"15m", "12h"}, []string{"899s", "12h1s", "15m500ms", "1s"}},
		{"aws.callsPerSecond", []string{"1", "1000"}, []string{"-1", "1001"}},
		{"aws.timeout", []string{"1m"}, []string{"61s"}},
		{"aws.region", []string{"us-gov-west-1", "eusc-de-east-1", "ap-southeast-12"}, []string{"eu-west", "EU-west-1", "'eu-west-1 '", "eu.west-1"}},
		{"aws.endpoint", []string{"https://sts.example.com:8443/x"}, []string{"https://u:p@sts.example.com", "https://sts.example.com/?", "https://sts.example.com/#a"}},
		{"aws.partitionKeys", []string{"{abc: k}", "{" + strings.Repeat("a", 255) + ": k}"}, []string{"{ab: k}", "{" + strings.Repeat("a", 256) + ": k}", "{abc: " + strings.Repeat("k", 256) + "}"}},
		{"aws.chain.duration", []string{"15m", "1h"}, []string{"899s", "3601s"}},
		{"aws.chain.externalID", []string{"ab", strings.Repeat("a", 1224)}, []string{"a", strings.Repeat("a", 1225), "a*"}},
		{"aws.chain.tags", []string{tags(50), "{" + text(128) + ": " + text(256) + "}"}, []string{tags(51), "{" + text(129) + ": v}", "{k: " + text(257) + "}", "{AWS:x: v}", "{k: $}"}},
		{"aws.chain.sourceIdentity", []string{"none", "ab", strings.Repeat("a", 64), "a${human.subject}"}, []string{"a", strings.Repeat("a", 65), "a:b", "${human}"}},
	} {
		load := func(value string) error {
			spec := map[string]string{"ttl": "", "aws.region": "    region: eu-west-1\n"}
			parts := strings.Split(tt.field, ".")
			line := strings.Repeat("  ", len(parts)) + parts[len(parts)-1] + ": " + value + "\n"
			chain := "    chain:\n      roleARN: arn:aws:iam::210987654321:role/second\n"
			if len(parts) < 3 {
				chain = ""
			}
			spec[tt.field] = line
			_, err := api.Parse("a.yaml", docs("kind: CredentialProvider\nmetadata: {name: a}\nspec:\n  destinations: [{host: \"**.amazonaws.com\"}]\n"+
				spec["ttl"]+"  aws:\n    roleARN: arn:aws:iam::123456789012:role/r\n"+spec["aws.region"]+map[bool]string{true: line}[len(parts) == 2 && tt.field != "aws.region"]+
				chain+map[bool]string{true: line}[len(parts) == 3]))
			return err
		}
		for _, v := range tt.good {
			if err := load(v); err != nil {
				t.Errorf("%s: %.40s: %v", tt.field, v, err)
			}
		}
		for _, v := range tt.bad {
			var p api.Problem
			if err := load(v); !errors.As(err, &p) || !strings.HasPrefix(p.Ref.Field, "spec."+tt.field) {
				t.Errorf("%s: %.40s: got %v", tt.field, v, err)
			}
		}
	}
}
