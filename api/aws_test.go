package api_test

import (
	"path/filepath"
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
