package rules

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	root      = "../.."
	rulesFile = "charts/attache/files/rules/attache.yaml"
	runbooks  = "https://github.com/attache-dev/attache/blob/main/docs/runbooks/"
)

type rule struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var f struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(read(t, rulesFile), &f); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range f.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("%d rules", len(all))
	}
	return all
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// promtool runs Prometheus' own tool, which promtool/build.sh builds.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(root, ".cache", "bin", "promtool"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		if os.Getenv("ATTACHE_REQUIRE_PROMTOOL") != "1" {
			t.Skip("promtool is not built; run test/rules/promtool/build.sh")
		}
		out, err := exec.CommandContext(t.Context(), "promtool/build.sh").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
	return string(out), err
}

func TestRules(t *testing.T) {
	out, err := promtool(t, "check", "rules", "--lint=all", "--lint-fatal", filepath.Join(root, rulesFile))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestAlerts has Prometheus evaluate every rule over series in which it should
// fire, and over others in which it should not.
func TestAlerts(t *testing.T) {
	path, err := filepath.Abs(filepath.Join(root, rulesFile))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(read(t, "test/rules/alerts.yaml")), "RULES", path)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "test", "rules", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Each alert has a case in which it fires and one in which it does not.
func TestEachAlertIsTried(t *testing.T) {
	var f struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(read(t, "test/rules/alerts.yaml"), &f); err != nil {
		t.Fatal(err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, c := range f.Tests {
		for _, a := range c.AlertRuleTest {
			if len(a.ExpAlerts) > 0 {
				fires[a.Alertname] = true
			} else {
				quiet[a.Alertname] = true
			}
		}
	}
	for _, r := range readRules(t) {
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: fires in a test: %v, is quiet in one: %v", r.Alert, fires[r.Alert], quiet[r.Alert])
		}
	}
}

func TestRunbooks(t *testing.T) {
	pages := map[string]bool{}
	for _, r := range readRules(t) {
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if want := runbooks + r.Alert + ".md"; r.Annotations["runbook_url"] != want || r.Annotations["summary"] == "" {
			t.Errorf("%s: runbook_url is %q, want %q; summary %q", r.Alert, r.Annotations["runbook_url"], want, r.Annotations["summary"])
		}
		pages[r.Alert+".md"] = true
		page := string(read(t, "docs/runbooks/"+r.Alert+".md"))
		for _, part := range []string{"# " + r.Alert + "\n", "\n## Look at\n", "\n## Do\n", r.Expr} {
			if !strings.Contains(page, part) {
				t.Errorf("the page of %s lacks %q", r.Alert, part)
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "docs/runbooks"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !pages[e.Name()] {
			t.Errorf("docs/runbooks/%s is no alert's", e.Name())
		}
	}
}

var (
	literal  = regexp.MustCompile(`"(attache_[a-z0-9_]*)"`)
	joined   = regexp.MustCompile(`"(attache_[a-z0-9_]+)" ?\+ ?name`)
	partName = regexp.MustCompile(`\b(?:desc|counter|vec|gauge|one)\("([a-z0-9_]+)"`)
	metric   = regexp.MustCompile(`\battache_[a-z0-9_]+`)
)

// known are the names of metrics in our code.
func known(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "test" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range literal.FindAllStringSubmatch(string(b), -1) {
			out[m[1]] = true
		}
		for _, p := range joined.FindAllStringSubmatch(string(b), -1) {
			for _, m := range partName.FindAllStringSubmatch(string(b), -1) {
				out[p[1]+m[1]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func checkNames(t *testing.T, known map[string]bool, where, expr string) {
	t.Helper()
	names := metric.FindAllString(expr, -1)
	if len(names) == 0 {
		t.Errorf("%s: %q asks for no metric of ours", where, expr)
	}
	for _, n := range names {
		base := n
		for _, s := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, s)
		}
		if !known[n] && !known[base] {
			t.Errorf("%s: no code has the metric %s", where, n)
		}
	}
}

func TestRulesNameMetricsThatExist(t *testing.T) {
	k := known(t)
	if k["attache_audit_no_such_thing"] || !k["attache_audit_spool_bytes"] || !k["attache_requests_total"] {
		t.Fatal("the list of metrics is wrong")
	}
	for _, r := range readRules(t) {
		checkNames(t, k, r.Alert, r.Expr)
	}
}

// variables are what Grafana puts in before it asks.
var variables = strings.NewReplacer("$__rate_interval", "5m", "$namespace", ".*")

func TestDashboards(t *testing.T) {
	k := known(t)
	files, err := filepath.Glob(filepath.Join(root, "charts/attache/files/dashboards/*.json"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%d dashboards: %v", len(files), err)
	}
	var all strings.Builder
	all.WriteString("groups:\n  - name: dashboards\n    rules:\n")
	uids, n := map[string]bool{}, 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			UID, Title string
			Panels     []struct {
				ID          int
				Type, Title string
				Targets     []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if uids[d.UID] || d.UID == "" || d.Title == "" {
			t.Errorf("%s: uid %q is missing or used twice", f, d.UID)
		}
		uids[d.UID] = true
		ids := map[int]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: panel id %d twice", f, p.ID)
			}
			ids[p.ID] = true
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %q asks nothing", f, p.Title)
			}
			for _, q := range p.Targets {
				checkNames(t, k, filepath.Base(f)+": "+p.Title, q.Expr)
				expr := variables.Replace(q.Expr)
				if strings.Contains(expr, "$") {
					t.Errorf("%s: %q has a variable that this test does not know", f, q.Expr)
				}
				fmt.Fprintf(&all, "      - record: dashboard:%d\n        expr: %q\n", n, expr)
				n++
			}
		}
	}
	if n < 40 {
		t.Errorf("%d queries", n)
	}
	file := filepath.Join(t.TempDir(), "dashboards.yaml")
	if err := os.WriteFile(file, []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "check", "rules", file); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
