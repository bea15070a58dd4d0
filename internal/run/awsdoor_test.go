package run

import (
	"slices"
	"testing"
)

// awsProvider is a provider with these doors.
func awsProvider(name, doors string) string {
	return `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: ` + name + `}
spec:
  destinations: [{host: "**.amazonaws.com"}]
  aws: {roleARN: "arn:aws:iam::123456789012:role/reader", region: eu-west-1` + doors + `}
`
}

// Where the agent may reach Attaché's ports only, the door's is one of them.
func TestAWSDoorPort(t *testing.T) {
	for doors, want := range map[string]int{"": 1, ", doors: [webIdentity]": 1, ", doors: [container]": 2, ", doors: [imds]": 2} {
		d, err := openDoors(t.Context(), &Options{Listen: "127.0.0.1:0"}, bundle(t, awsProvider("aws", doors)))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(d.ports()); got != want || len(d.addrs()) != want {
			t.Errorf("%q: got %d ports, want %d", doors, got, want)
		}
		d.close()
	}
}

func TestAWSRegion(t *testing.T) {
	b := bundle(t, awsProvider("aws", ""))
	if got := awsRegion(b, []string{"AWS_REGION=", "X=y"}); !slices.Equal(got, []string{"AWS_REGION=eu-west-1", "AWS_DEFAULT_REGION=eu-west-1"}) {
		t.Errorf("got %q", got)
	}
	for _, own := range []string{"AWS_REGION=us-west-2", "AWS_DEFAULT_REGION=us-west-2"} {
		if got := awsRegion(b, []string{own}); got != nil {
			t.Errorf("%s is overridden by %q", own, got)
		}
	}
	if got := awsRegion(bundle(t, provider+"  jwt: {}\n"), nil); got != nil {
		t.Errorf("without aws: %q", got)
	}
}

// A projected token would let the agent ask STS by itself.
func TestAWSTokenFileIsHidden(t *testing.T) {
	b := bundle(t, awsProvider("aws", ", tokenFile: /var/run/token"))
	if got := (&Options{State: "/state"}).hidden(b); !slices.Contains(got, "/var/run/token") {
		t.Errorf("got %q", got)
	}
}
