package dataplane

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
