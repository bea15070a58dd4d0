package run

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/identity"
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

func testWorkload(t *testing.T) *identity.Workload {
	t.Helper()
	return &identity.Workload{ID: spiffeid.RequireFromString("spiffe://attache.local/agent/x"), Namespace: "local", ServiceAccount: "x", RunID: "0123456789abcdef0123456789abcdef"}
}

// SDKs get what their doors need and not one variable more: they prefer plain
// keys over every door.
func TestAWSDoorEnvironment(t *testing.T) {
	tests := []struct {
		name, doors  string
		placeholders []string // variables
		others       []string // variables
	}{
		{"default", "", []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, nil},
		{"container", ", doors: [container]", []string{envContainerToken}, []string{envContainerURI}},
		{"imds", ", doors: [imds]", nil, []string{envIMDS}},
		{"webIdentity", ", doors: [webIdentity]", nil, []string{envRole, envTokenFile, envRoleSession}},
		{"all", ", doors: [env, container, imds, webIdentity]", []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", envContainerToken},
			[]string{envContainerURI, envIMDS, envRole, envTokenFile, envRoleSession}},
	}
	names := func(env []string) []string {
		var out []string
		for _, kv := range env {
			name, value, _ := strings.Cut(kv, "=")
			if value == "" {
				t.Errorf("%s is empty", name)
			}
			out = append(out, name)
		}
		return out
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bundle(t, awsProvider("aws", tt.doors))
			a := findAWSDoors(b)
			holders, err := placeholders(b, a.specs())
			if err != nil {
				t.Fatal(err)
			}
			w := testWorkload(t)
			if err := a.open(holders, w); err != nil {
				t.Fatal(err)
			}
			a.addr = "127.0.0.1:1"
			dir := t.TempDir()
			ph, others, err := a.env(holders.Env(), dir, w.RunID)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(ph); !slices.Equal(got, tt.placeholders) {
				t.Errorf("got placeholders %q, want %q", got, tt.placeholders)
			}
			if got := names(others); !slices.Equal(got, tt.others) {
				t.Errorf("got %q, want %q", got, tt.others)
			}
			for _, kv := range others {
				if file, ok := strings.CutPrefix(kv, envTokenFile+"="); ok {
					text, err := os.ReadFile(file)
					if env, of, ok := holders.Lookup(string(text)); err != nil || !ok || of != "aws" || env != hiddenWebIdentity {
						t.Errorf("the token's file holds %q, %v", text, err)
					}
				}
			}
		})
	}
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

// A role that depends on a task is told in general terms.
func TestAWSDoorRole(t *testing.T) {
	w := testWorkload(t)
	for template, want := range map[string]string{
		"role/reader":                   "arn:aws:iam::123456789012:role/reader",
		"role/${workload.name}":         "arn:aws:iam::123456789012:role/x",
		"role/for-${task.purpose}":      "arn:aws:iam::000000000000:role/aws",
		"role/of-${human.email}-reader": "arn:aws:iam::000000000000:role/aws",
	} {
		b := bundle(t, strings.Replace(awsProvider("aws", ", doors: [webIdentity]"), "role/reader", template, 1))
		if got := doorRole(&b.Providers[0], w); got != want {
			t.Errorf("%s: got %s, want %s", template, got, want)
		}
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
