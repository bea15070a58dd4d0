package awsscope_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/policy/awsscope"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

const account = "123456789012"

// A want is an expectation written by hand: this action on this resource, in
// this context, is what AWS will ask of the policy. Loose ones are resources
// that the request does not name.
type want struct {
	Unjudged bool              `json:"unjudged"` // the simulator does not know this kind of resource
	Loose    bool              `json:"loose"`
	Action   string            `json:"action"`
	Resource string            `json:"resource"`
	Context  map[string]string `json:"context"`
}

type testCase struct {
	name   string
	req    awsscope.Request
	wants  []want
	refuse bool
}

// readCases reads testdata/*.requests: a line `== name`, the request line,
// headers, `claim SERVICE/REGION`, `want` and `refuse` lines, and after a blank
// line the body.
func readCases(t testing.TB, file string) []testCase {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []testCase
	for part := range strings.SplitSeq("\n\n"+strings.TrimSuffix(string(b), "\n"), "\n\n== ") {
		if part = strings.TrimLeft(part, "\n"); part == "" {
			continue
		}
		head, body, _ := strings.Cut(part, "\n\n")
		lines := strings.Split(head, "\n")
		c := testCase{name: lines[0], req: awsscope.Request{
			Header: http.Header{}, Body: []byte(body), BodyComplete: true, Account: account,
			Endpoints:     []awsscope.Endpoint{{Host: "minio.test:9000", Service: "s3", Region: "us-east-1", VirtualHost: true}},
			PartitionKeys: map[string]string{"Known": "id"},
		}}
		method, url, _ := strings.Cut(lines[1], " ")
		rest, ok := strings.CutPrefix(url, "https://")
		if !ok {
			t.Fatalf("%s: %s: url %q", file, c.name, url)
		}
		i := strings.IndexAny(rest, "/?")
		c.req.Method, c.req.Host = method, rest[:i]
		c.req.RawPath, c.req.RawQuery, _ = strings.Cut(rest[i:], "?")
		for _, l := range lines[2:] {
			word, arg, _ := strings.Cut(l, " ")
			switch {
			case word == "claim":
				c.req.ClaimedService, c.req.ClaimedRegion, _ = strings.Cut(arg, "/")
			case word == "refuse":
				c.refuse = true
			case word == "want":
				c.wants = append(c.wants, parseWant(t, arg))
			default:
				k, v, _ := strings.Cut(l, ": ")
				c.req.Header.Add(k, v)
			}
		}
		out = append(out, c)
	}
	return out
}

func parseWant(t testing.TB, s string) want {
	w := want{Context: map[string]string{}}
	if s, ok := strings.CutPrefix(s, "json:"); ok { // one action, and a resource with blanks
		action, res, _ := strings.Cut(s, " ")
		w.Action = action
		if err := json.Unmarshal([]byte(res), &w.Resource); err != nil {
			t.Fatal(err)
		}
		return w
	}
	s, w.Loose = strings.CutPrefix(s, "~")
	s, w.Unjudged = strings.CutPrefix(s, "!")
	f := strings.Fields(s)
	w.Action, w.Resource = f[0], f[1]
	for _, kv := range f[2:] {
		k, v, _ := strings.Cut(kv, "=")
		w.Context[k] = v
	}
	return w
}

func allowAll(t testing.TB) awsscope.Policy {
	t.Helper()
	return parse(t, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`)
}

func parse(t testing.TB, doc string) awsscope.Policy {
	t.Helper()
	p, err := awsscope.ParsePolicy([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func caseFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.requests")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*.requests (%v)", err)
	}
	return files
}

func describe(c testCase, all awsscope.Policy) (text, policy string, call awsscope.Call) {
	call, err := awsscope.Recognise(c.req)
	if err != nil {
		return "refused: " + err.Error(), "", call
	}
	head := fmt.Sprintf("%s %s %s %s", call.Protocol, call.Service, call.Operation, call.ScopeKind)
	if call.HandsOutCredentials {
		head += " hands-out-credentials"
	}
	facts, _ := json.Marshal(call.Facts)
	policy, err = awsscope.Derive(call, all, awsscope.GranularityRequest, awsscope.Options{})
	if err != nil {
		return head + "\n" + string(facts) + "\nrefused: " + err.Error(), "", call
	}
	return head + "\n" + string(facts) + "\n" + policy, policy, call
}

// TestGolden derives a policy for every recorded-shape request.
func TestGolden(t *testing.T) {
	all := allowAll(t)
	derived, refused := 0, 0
	for _, file := range caseFiles(t) {
		var got strings.Builder
		for _, c := range readCases(t, file) {
			text, policy, call := describe(c, all)
			fmt.Fprintf(&got, "== %s\n%s\n\n", c.name, text)
			if (policy == "") != c.refuse {
				t.Errorf("%s: %s: refused is %v, want %v: %s", file, c.name, policy == "", c.refuse, text)
			}
			if c.refuse {
				refused++
				continue
			}
			derived++
			if len(c.wants) == 0 {
				t.Errorf("%s: %s: no expectation", file, c.name)
			}
			loose := slices.ContainsFunc(c.wants, func(w want) bool { return w.Loose })
			if !loose && call.ScopeKind == awsscope.ScopeActionOnly {
				t.Errorf("%s: %s: action-only, want the resource", file, c.name)
			}
		}
		golden := strings.TrimSuffix(file, ".requests") + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s differs from the golden file; run with -update and review the difference", file)
		}
	}
	if derived < 300 || refused < 60 {
		t.Errorf("%d derived and %d refused requests; want at least 300 and 60", derived, refused)
	}
}

// TestBodyNeeded: without the whole body no scope is derived from it.
func TestBodyNeeded(t *testing.T) {
	n := 0
	for _, file := range caseFiles(t) {
		for _, c := range readCases(t, file) {
			whole, err := awsscope.Recognise(c.req)
			if err != nil || whole.Protocol == "rest-json" || whole.Protocol == "rest-xml" && whole.Operation != "DeleteObjects" || c.req.Method == "GET" {
				continue
			}
			c.req.BodyComplete = false
			if _, err := awsscope.Recognise(c.req); !errors.Is(err, awsscope.ErrBodyNeeded) {
				t.Errorf("%s: %s: got %v, want ErrBodyNeeded", file, c.name, err)
			}
			n++
		}
	}
	if n < 100 {
		t.Errorf("%d requests with a body", n)
	}
}
