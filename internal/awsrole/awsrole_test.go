package awsrole_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/awsrole"
)

func workload() *identity.Workload {
	return &identity.Workload{
		ID: spiffeid.RequireFromString("spiffe://local/agent/invoices"), Namespace: "finance", ServiceAccount: "inv",
		Labels: map[string]string{"team": "blue", "app.kubernetes.io/name": "x", "bad": "a/../b", "colon": "a:role/admin", "star": "*", "none": ""},
	}
}

func task() *identity.Task {
	return &identity.Task{Purpose: "close-books", Human: &identity.Human{Subject: "auth0|7", Email: "alice@example.com"}}
}

func TestExpand(t *testing.T) {
	const pre = "arn:aws:iam::123456789012:role/"
	tests := []struct {
		template string
		w        *identity.Workload
		t        *identity.Task
		want     string // empty: refused
	}{
		{pre + "plain", nil, nil, pre + "plain"},
		{pre + "a-${workload.name}", workload(), nil, pre + "a-invoices"},
		{pre + "${workload.namespace}/${workload.serviceAccount}", workload(), nil, pre + "finance/inv"},
		{pre + "${workload.labels.team}", workload(), nil, pre + "blue"},
		{pre + "${workload.labels.app.kubernetes.io/name}", workload(), nil, pre + "x"},
		{pre + "${task.purpose}-${human.email}", workload(), task(), pre + "close-books-alice@example.com"},
		{"arn:minio:iam:us-east-1::role/${workload.name}", workload(), nil, "arn:minio:iam:us-east-1::role/invoices"},
		{pre + "${human.subject}", workload(), task(), ""}, // | is in no role's name
		{pre + "${workload.labels.bad}", workload(), nil, ""},
		{pre + "${workload.labels.colon}", workload(), nil, ""},
		{pre + "${workload.labels.star}", workload(), nil, ""},
		{pre + "${workload.labels.none}", workload(), nil, ""},
		{pre + "${workload.labels.absent}", workload(), nil, ""},
		{pre + "${workload.labels.}", workload(), nil, ""},
		{pre + "a${task.purpose}", workload(), nil, ""},
		{pre + "a${human.email}", workload(), &identity.Task{Purpose: "x"}, ""},
		{pre + "a${human.email}", workload(), &identity.Task{Human: &identity.Human{}}, ""},
		{pre + "a${workload.name}", nil, nil, ""},
		{pre + "${nobody}", workload(), nil, ""},
		{pre + "${workload.name", workload(), nil, ""},
		{pre + strings.Repeat("${workload.name}", 9), workload(), nil, ""}, // 72 characters
		{"", workload(), nil, ""},
	}
	for _, tc := range tests {
		got, err := awsrole.Expand(tc.template, tc.w, tc.t)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("Expand(%q) = %q, %v; want %q", tc.template, got, err, tc.want)
		}
	}
}

// TestValuesAreNotTemplates: what a task says is not looked at again.
func TestValuesAreNotTemplates(t *testing.T) {
	tk := &identity.Task{Purpose: "${workload.name}"}
	all := func(rune) bool { return true }
	if got, err := awsrole.Text("x${task.purpose}", workload(), tk, all); err != nil || got != "x${workload.name}" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := awsrole.Expand("arn:aws:iam::123456789012:role/${task.purpose}", workload(), tk); err == nil {
		t.Error("a purpose with a variable in it became part of an ARN")
	}
}

func TestCheck(t *testing.T) {
	for template, ok := range map[string]bool{
		"arn:aws:iam::123456789012:role/x":                             true,
		"arn:aws:iam::123456789012:role/${workload.labels.k}":          true,
		"arn:aws:iam::${workload.labels.account}:role/x":               true,
		"arn:aws:iam::123456789012:role/${workload.labels.k}${x}":      false,
		"arn:aws:iam::123456789012:role/${":                            false,
		"arn:aws:iam::123456789012:user/${human.email}":                false,
		"arn:aws:iam::123456789012:role/" + strings.Repeat("x", 65):    false,
		"arn:aws:iam::123456789012:role/${workload.labels.${task.id}}": false,
		strings.Repeat("x", 3000):                                      false,
	} {
		if err := awsrole.Check(template); (err == nil) != ok {
			t.Errorf("Check(%q) = %v", template, err)
		}
	}
	if awsrole.CheckText("a ${human.email}") != nil || awsrole.CheckText("${human.name}") == nil {
		t.Error("CheckText: wrong")
	}
	if !awsrole.HasVariables("a${human.email}") || awsrole.HasVariables("a$b") {
		t.Error("HasVariables: wrong")
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		arn  string
		want awsrole.ARN
	}{
		{"arn:aws:iam::123456789012:role/x", awsrole.ARN{"aws", "123456789012", "/", "x"}},
		{"arn:aws-us-gov:iam::123456789012:role/a/b/x+y", awsrole.ARN{"aws-us-gov", "123456789012", "/a/b/", "x+y"}},
		{"arn:minio:iam:us-east-1::role/Q1-x_y", awsrole.ARN{"minio", "", "/", "Q1-x_y"}},
		{"arn:minio:iam:::role/x", awsrole.ARN{"minio", "", "/", "x"}},
	}
	for _, tc := range tests {
		if got, err := awsrole.Parse(tc.arn); err != nil || got != tc.want {
			t.Errorf("Parse(%q) = %+v, %v", tc.arn, got, err)
		}
	}
	for _, arn := range []string{
		"", "arn", "arn:aws:iam::123456789012:role/", "arn:aws:iam::123456789012:role", "arn:aws:iam::1:role/x", "arn:aws:iam::12345678901x:role/x",
		"arn:aws:iam:us-east-1:123456789012:role/x", "arn:aws:sts::123456789012:role/x", "arn:aws:iam::123456789012:user/x", "arn:gcp:iam::123456789012:role/x",
		"arn:aws:iam::123456789012:role/a*", "arn:aws:iam::123456789012:role/*/a", "arn:aws:iam::123456789012:role/${x}/a", "arn:aws:iam::123456789012:role/a b",
		"arn:minio:iam:us-east-1:1:role/x", "arn:aws-X:iam::123456789012:role/x", "arn:aws:iam::123456789012:role/é", "arn:aws:iam::123456789012:role/a:b",
	} {
		if a, err := awsrole.Parse(arn); err == nil {
			t.Errorf("Parse(%q) = %+v", arn, a)
		}
	}
}

// FuzzExpand: an expanded template is a role's ARN in the account that its
// text names, and no longer holds a variable.
func FuzzExpand(f *testing.F) {
	f.Add("arn:aws:iam::123456789012:role/${task.purpose}", "p", "e@x")
	f.Add("arn:aws:iam::123456789012:role/p/${human.email}", "p:q", "e/x")
	f.Fuzz(func(t *testing.T, template, purpose, email string) {
		tk := &identity.Task{Purpose: purpose, Human: &identity.Human{Email: email}}
		got, err := awsrole.Expand(template, workload(), tk)
		if err != nil {
			return
		}
		a, err := awsrole.Parse(got)
		if err != nil || strings.Contains(got, "${") {
			t.Fatalf("%q became %q: %v", template, got, err)
		}
		if fixed, ok := strings.CutPrefix(template, "arn:aws:iam::123456789012:role/"); ok {
			if a.Account != "123456789012" || strings.Count(a.Path+a.Name, "/") != 1+strings.Count(strings.ReplaceAll(fixed, "${workload.labels.app.kubernetes.io/name}", ""), "/") {
				t.Fatalf("%q became %q, another place", template, got)
			}
		}
	})
}

func TestIsMinIO(t *testing.T) {
	if !awsrole.IsMinIO("arn:minio:iam:us-east-1::role/r") || awsrole.IsMinIO("arn:aws:iam::111122223333:role/arn:minio:") {
		t.Error("MinIO's role is not told from AWS's")
	}
}
