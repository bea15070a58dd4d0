package awsscope_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/policy/awsscope"
)

// TestTable loads the tables and bounds their size.
func TestTable(t *testing.T) {
	if n := awsscope.TableSize(); n > 600<<10 {
		t.Errorf("%d bytes of data; want at most 600 KiB", n)
	}
	if n := len(awsscope.RuleActions()); n < 250 {
		t.Errorf("rules name %d actions", n)
	}
	const ops = "service a iam=a sign=a endpoint=a protocol=json target=T\nGet 0\n"
	for _, tt := range [][2]string{
		{ops, ""},
		{"service a iam=a sign=a endpoint=a protocol=rest-json\nGet\n", ""},
		{"", "[nosuch]\nGet | | *\n"},
		{strings.Replace(ops, " 0", "", 1), "[a]\nGet *\n"},
		{"", "[s3]\nobject GET - GetObject\n"},
		{"", "[s3]\nobject GET - A s3:A\nobject GET - B s3:B\n"},
	} {
		if awsscope.LoadTable(tt[0], tt[1]) == nil {
			t.Errorf("no error for %q %q", tt[0], tt[1])
		}
	}
}

// iamData is the folder of iam-data's JSON files.
func iamData(t *testing.T) string {
	return filepath.Join(npmTree(t), "node_modules", "@cloud-copilot", "iam-data", "data")
}

// TestRulesAgainstIAM: every action that is written by hand is an IAM action.
func TestRulesAgainstIAM(t *testing.T) {
	data := iamData(t)
	services := map[string]map[string]any{}
	known := func(action string) bool {
		prefix, name, _ := strings.Cut(action, ":")
		if services[prefix] == nil {
			services[prefix] = map[string]any{}
			b, err := os.ReadFile(filepath.Join(data, "actions", prefix+".json"))
			if err != nil {
				return false
			}
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatal(err)
			}
			services[prefix] = m
		}
		_, ok := services[prefix][strings.ToLower(name)]
		return ok
	}
	for _, a := range awsscope.RuleActions() {
		if !known(a) {
			t.Errorf("%s is no IAM action", a)
		}
	}
	for _, a := range awsscope.CredentialActions() {
		if a = strings.TrimPrefix(a, "!"); !strings.Contains(a, "*") && !known(a) {
			t.Errorf("[credentials] %s is no IAM action", a)
		}
	}
	if known("s3:HeadObject") {
		t.Error("the check finds everything known")
	}
}

// TestGenerated: operations.txt is what the generator writes today. It needs
// Debian's python3-botocore and is skipped elsewhere.
func TestGenerated(t *testing.T) {
	if _, err := os.Stat("/usr/lib/python3/dist-packages/botocore/data/s3"); err != nil {
		t.Skip("needs Debian's python3-botocore")
	}
	want, err := exec.CommandContext(t.Context(), "python3", "gen/gen.py", iamData(t)).Output() //nolint:gosec // our own script
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("data/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	header, _, _ := strings.Cut(string(got), "\n")
	if now, _, _ := strings.Cut(string(want), "\n"); now != header {
		t.Skipf("another botocore is installed: %s", now)
	}
	if string(got) != string(want) {
		t.Error("data/operations.txt is stale: go generate ./policy/awsscope")
	}
}
