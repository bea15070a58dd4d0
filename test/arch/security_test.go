package arch

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mention is a test as docs/security.md names it.
var mention = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)(/[^`]+)?`")

// Every test that the security page names exists, and every invariant and rule
// names one. Subtests' names are looked for in the text of the test's package.
func TestSecurityPage(t *testing.T) {
	page := checkMentions(t, "docs/security.md", 50)
	rows := 0
	row := regexp.MustCompile(`(?m)^\| \d+ \|.*$`)
	for _, line := range row.FindAllString(page, -1) {
		rows++
		if !mention.MatchString(line) {
			t.Errorf("no test in: %s", line)
		}
	}
	if rows != 8+11 {
		t.Errorf("%d rows, want 8 invariants and 11 rules", rows)
	}
}

// Each line of the compliance page names a test that exists, a page, and what
// is not covered. That the pages exist test/docs.TestLinks sees.
func TestCompliancePage(t *testing.T) {
	page := checkMentions(t, "docs/compliance.md", 80)
	rows := map[string]int{}
	row := regexp.MustCompile(`(?m)^\| (NHI|ASI)?\d+ \|.*$`)
	for _, m := range row.FindAllStringSubmatch(page, -1) {
		rows[m[1]]++
		cells := strings.Split(strings.Trim(m[0], "|"), " | ")
		if len(cells) != 5 {
			t.Errorf("%d cells in: %s", len(cells), m[0])
			continue
		}
		if !strings.Contains(cells[2], ".md") || !mention.MatchString(cells[3]) || len(strings.TrimSpace(cells[4])) < 10 {
			t.Errorf("lacks a page, a test or what is not covered: %s", m[0])
		}
	}
	if rows["NHI"] != 10 || rows["ASI"] != 10 || rows[""] != 7 {
		t.Errorf("rows: %v; want 10 NHI, 10 ASI and 7 tenets", rows)
	}
}

// checkMentions checks that every test that a page names exists, and returns
// the page.
func checkMentions(t *testing.T, path string, least int) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", path))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	text := map[string]string{}
	for _, f := range files(t) {
		if !strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(f.path))
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				tests[dir+"."+fn.Name.Name] = true
			}
		}
		b, err := os.ReadFile(filepath.Join("..", "..", f.path))
		if err != nil {
			t.Fatal(err)
		}
		text[dir] += string(b)
	}
	found := mention.FindAllStringSubmatch(string(page), -1)
	if len(found) < least {
		t.Fatalf("only %d tests are named: the pattern is broken", len(found))
	}
	for _, m := range found {
		if !tests[m[1]+"."+m[2]] {
			t.Errorf("%s names %s.%s, which does not exist", path, m[1], m[2])
		}
		if sub := strings.TrimPrefix(m[3], "/"); sub != "" && !strings.Contains(text[m[1]], `"`+strings.ReplaceAll(sub, "_", " ")+`"`) {
			t.Errorf("%s names %s.%s%s: no such subtest", path, m[1], m[2], m[3])
		}
	}
	return string(page)
}
