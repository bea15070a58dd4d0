package awsscope_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/policy/awsscope"
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

	AllowOnly bool `json:"allowOnly"` // no changed requests
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

// TestIntersection: what Derive emits under a static policy, that policy
// allows too, by the simulator's judgement. Our evaluator may refuse more than
// AWS would, never less.
func TestIntersection(t *testing.T) {
	tree := npmTree(t)
	statics := []string{
		`{"Effect":"Allow","Action":"s3:*","Resource":["arn:aws:s3:::media","arn:aws:s3:::media/docs/*"]}`,
		`{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"s3:Delete*","Resource":"*"}`,
		`{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"*","NotResource":["arn:aws:s3:::media*","arn:aws:dynamodb:*:*:table/Orders"]}`,
		`{"Effect":"Allow","NotAction":["s3:Put*","dynamodb:*Item"],"Resource":"*"}`,
		`{"Effect":"Allow","Action":"*","NotResource":["arn:aws:s3:::media/a*"]}`,
		`{"Effect":"Allow","Action":["S3:GETOBJECT","dynamodb:?etItem"],"Resource":["arn:aws:s3:::media/a${*}b","arn:aws:s3:::media/?","arn:aws:dynamodb:eu-west-1:123456789012:table/O*s"]}`,
		`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringLike":{"s3:prefix":["docs/*","a${*}"]}}}`,
		`{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringNotEquals":{"aws:RequestedRegion":"eu-west-1"}}}`,
		`{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:RequestAlias":"alias/app"}}}`,
		`{"Effect":"Allow","Action":["sqs:Send*","lambda:Invoke*","ssm:Get*","secretsmanager:*"],"Resource":["arn:aws:sqs:*:123456789012:j*","arn:aws:lambda:*:*:function:resize","arn:aws:ssm:*:*:parameter/app/*","arn:aws:secretsmanager:*:*:secret:db/*"]}`,
	}
	var cases []judged
	refused, nth := 0, 0
	for i, text := range statics {
		doc := `{"Version":"2012-10-17","Statement":[` + text + `]}`
		static := parse(t, doc)
		emitted := 0
		for _, file := range caseFiles(t) {
			for _, c := range readCases(t, file) {
				call, err := awsscope.Recognise(c.req)
				if err != nil || c.refuse || call.Region != "eu-west-1" {
					continue
				}
				for _, g := range []awsscope.Granularity{awsscope.GranularityRequest, awsscope.GranularityPrefix, awsscope.GranularityTask, awsscope.GranularitySession} {
					policy, err := awsscope.Derive(call, static, g, awsscope.Options{})
					if err != nil {
						refused++
						continue
					}
					emitted++
					// The wide ones are all alike: every ninth will do.
					if nth++; nth%9 != 0 && g != awsscope.GranularityRequest && g != awsscope.GranularityPrefix {
						continue
					}
					wants := slices.Clone(c.wants)
					for j := range wants {
						wants[j].Context = maps.Clone(wants[j].Context)
						wants[j].Context["aws:RequestedRegion"] = "eu-west-1"
						wants[j].Context["aws:SecureTransport"] = "true"
					}
					name := fmt.Sprintf("static %d, %s, %s: %s", i, g, file, c.name)
					cases = append(cases, judged{Name: name + " (derived)", Policy: policy, Wants: wants, AllowOnly: true})
					if g == awsscope.GranularityRequest {
						cases = append(cases, judged{Name: name + " (static)", Policy: doc, Wants: wants, AllowOnly: true})
					}
				}
			}
		}
		if emitted == 0 {
			t.Errorf("static policy %d allows nothing", i)
		}
	}
	complaints, n := judge(t, tree, cases)
	for _, c := range complaints {
		t.Error(c)
	}
	t.Logf("%d policies, %d refusals, %d simulations", len(cases), refused, n)
}

// TestTwoEnds: where the static policy ends by itself, a session ends with the
// earlier of both, by the simulator's judgement.
func TestTwoEnds(t *testing.T) {
	tree := npmTree(t)
	end := time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC)
	at := func(own, now string) judged {
		static := parse(t, `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"`+own+`"}}}}`)
		p, err := awsscope.Derive(recognise(t, s3Request("GET", "/k")), static, awsscope.GranularityRequest, awsscope.Options{NotAfter: end})
		if err != nil {
			t.Fatal(err)
		}
		return judged{Name: own + " at " + now, Policy: p, AllowOnly: true,
			Wants: []want{{Action: "s3:GetObject", Resource: "arn:aws:s3:::media/k", Context: map[string]string{"aws:CurrentTime": now}}}}
	}
	for _, tt := range []struct {
		own, now string
		allowed  bool
	}{
		{"2031-01-01T00:00:00Z", "2026-12-30T00:00:00Z", true},
		{"2031-01-01T00:00:00Z", "2027-01-01T00:00:00Z", false},
		{"2026-06-01T00:00:00Z", "2026-05-01T00:00:00Z", true},
		{"2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", false},
	} {
		if complaints, _ := judge(t, tree, []judged{at(tt.own, tt.now)}); (len(complaints) == 0) != tt.allowed {
			t.Errorf("ends %s, at %s: %v", tt.own, tt.now, complaints)
		}
	}
}
