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
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
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
	if len(found) < 50 {
		t.Fatalf("only %d tests are named: the pattern is broken", len(found))
	}
	for _, m := range found {
		if !tests[m[1]+"."+m[2]] {
			t.Errorf("docs/security.md names %s.%s, which does not exist", m[1], m[2])
		}
		if sub := strings.TrimPrefix(m[3], "/"); sub != "" && !strings.Contains(text[m[1]], `"`+strings.ReplaceAll(sub, "_", " ")+`"`) {
			t.Errorf("docs/security.md names %s.%s%s: no such subtest", m[1], m[2], m[3])
		}
	}
	rows := 0
	row := regexp.MustCompile(`(?m)^\| \d+ \|.*$`)
	for _, line := range row.FindAllString(string(page), -1) {
		rows++
		if !mention.MatchString(line) {
			t.Errorf("no test in: %s", line)
		}
	}
	if rows != 8+11 {
		t.Errorf("%d rows, want 8 invariants and 11 rules", rows)
	}
}
