package policy_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, deny, allow, want string }{
		{"methods lose to a path", `hosts: [a.test], methods: [DELETE]`, `hosts: [a.test], paths: ["/repos/**"]`, "/repos/**"},
		{"the whole host", `hosts: [a.test]`, `hosts: [a.test], paths: ["/x", "/y"]`, "/x"},
		{"any path", `hosts: [a.test], paths: ["/**"]`, `hosts: [a.test], paths: ["/x"]`, "/x"},
		{"under a wildcard", `hosts: ["*.test"]`, `hosts: [a.test], paths: ["/x"]`, "*.test"},
		{"under a deep wildcard", `hosts: ["**.test"]`, `hosts: ["*.b.test"], paths: ["/x"]`, "**.test"},
		{"everywhere, by method", `hosts: ["*"], methods: [DELETE]`, `hosts: [a.test], paths: ["/x"]`, "/x"},
		{"with a condition", `hosts: [a.test], when: "request.path.contains('admin')"`, `hosts: [a.test], paths: ["/x/**"]`, "/x/**"},
		{"the default", `hosts: ["*"]`, `hosts: [a.test], paths: ["/x"]`, ""},
		{"other methods", `hosts: [a.test], methods: [DELETE]`, `hosts: [a.test], methods: [GET], paths: ["/x"]`, ""},
		{"another host", `hosts: [b.test]`, `hosts: [a.test], paths: ["/x"]`, ""},
		{"another port", `hosts: [a.test], ports: [8443]`, `hosts: [a.test], paths: ["/x"]`, ""},
		{"no path", `hosts: [a.test], methods: [DELETE]`, `hosts: [a.test]`, ""},
		{"the denial has the path", `hosts: [a.test], paths: ["/x"], methods: [DELETE]`, `hosts: [a.test], paths: ["/x"]`, ""},
		{"a wider allow loses", `hosts: [a.test]`, `hosts: ["*.test"], paths: ["/x"]`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := api.Parse("policy.yaml", []byte(`apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p}
spec:
  rules:
  - {name: no, action: deny, `+tt.deny+`}
  - {name: yes, action: allow, `+tt.allow+`}
`))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := policy.Compile(b); err != nil {
				t.Fatal(err)
			}
			got := policy.Warnings(b)
			if tt.want == "" {
				if len(got) != 0 {
					t.Errorf("got %v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Position.Line != 6 || got[0].Ref.Field != "spec.rules[0]" {
				t.Fatalf("got %+v, want one of line 6", got)
			}
			for _, want := range []string{tt.want, `"no"`, `"yes"`, "policy.yaml:7:"} {
				if !strings.Contains(got[0].Text, want) {
					t.Errorf("%q is missing in %s", want, got[0].Text)
				}
			}
		})
	}
}

func TestWarningsOfWhatDoesNotCompile(t *testing.T) {
	if got := policy.Warnings(bundle(v1alpha1.AccessPolicy{Spec: v1alpha1.AccessPolicySpec{Rules: []v1alpha1.Rule{{}}}})); got != nil {
		t.Errorf("got %v", got)
	}
}
