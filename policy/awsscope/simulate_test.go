package awsscope_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// npmTree is test/npm/aws as test/deps.sh installs it. Where it is missing the
// test is skipped, unless ATTACHE_REQUIRE_SERVERS=1.
func npmTree(t *testing.T) string {
	t.Helper()
	tree, err := filepath.Abs("../../.cache/npm/aws")
	if err != nil {
		t.Fatal(err)
	}
	_, errTree := os.Stat(filepath.Join(tree, "node_modules", "@cloud-copilot", "iam-simulate"))
	_, errNode := exec.LookPath("node")
	if errTree == nil && errNode == nil {
		return tree
	}
	if os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skip("needs node and .cache/npm/aws (npm ci of test/npm/aws)")
	}
	t.Fatalf("node: %v; tree: %v", errNode, errTree)
	return ""
}

type judged struct {
	Name   string `json:"name"`
	Policy string `json:"policy"`
	Wants  []want `json:"wants"`
}

// judge runs every case through the simulator, in one process.
func judge(t *testing.T, tree string, cases []judged) (complaints []string, simulations int) {
	t.Helper()
	in := filepath.Join(t.TempDir(), "cases.json")
	b, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "testdata/simulate.mjs", tree, in) //nolint:gosec // our own script
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	m := regexp.MustCompile(`^simulations (\d+) wrong (\d+)$`).FindStringSubmatch(lines[len(lines)-1])
	if m == nil {
		t.Fatalf("the simulator ended with %q", lines[len(lines)-1])
	}
	simulations, _ = strconv.Atoi(m[1])
	return lines[:len(lines)-1], simulations
}

// TestSimulate is the property of the derived policies, judged by an evaluator
// that is not ours: each allows its request, and denies it with any one field
// (bucket, key, table, action, account, condition) changed.
func TestSimulate(t *testing.T) {
	tree := npmTree(t)
	all := allowAll(t)
	var cases []judged
	for _, file := range caseFiles(t) {
		for _, c := range readCases(t, file) {
			if _, policy, _ := describe(c, all); policy != "" {
				cases = append(cases, judged{Name: file + ": " + c.name, Policy: policy, Wants: c.wants})
			}
		}
	}
	complaints, n := judge(t, tree, cases)
	for _, c := range complaints {
		t.Error(c)
	}
	if len(cases) < 300 || n < 5*len(cases) {
		t.Errorf("%d simulations of %d policies", n, len(cases))
	}
	t.Logf("%d policies, %d simulations", len(cases), n)

	// The judge must be able to complain: a policy too wide, and one too narrow.
	w := []want{{Action: "s3:GetObject", Resource: "arn:aws:s3:::b/k"}}
	for _, p := range []string{
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/k2"}]}`,
	} {
		if complaints, _ := judge(t, tree, []judged{{Name: "control", Policy: p, Wants: w}}); len(complaints) == 0 {
			t.Errorf("the judge finds nothing wrong with %s", p)
		}
	}
}
