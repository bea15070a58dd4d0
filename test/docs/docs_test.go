// Package docs_test holds the documentation to the code.
package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/proxy/pipeline"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryRefusalCodeIsDocumented(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "proxy/pipeline/refusal.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, codes := read(t, "docs/errors.md"), map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Names) != 1 || !strings.HasPrefix(v.Names[0].Name, "Code") || len(v.Values) != 1 {
			return true
		}
		code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes[code] = true
		if !strings.Contains(page, "\n| `"+code+"` |") {
			t.Errorf("docs/errors.md lacks a row for %s", code)
		}
		return true
	})
	if len(codes) < 20 {
		t.Fatalf("found %d codes only", len(codes))
	}
	for _, m := range regexp.MustCompile("\n\\| `([a-z_]+)` \\| [0-9c]").FindAllStringSubmatch(page, -1) {
		if !codes[m[1]] {
			t.Errorf("docs/errors.md documents %s, which the code does not have", m[1])
		}
	}
}

func TestEveryMetricIsDocumented(t *testing.T) {
	page, reg := read(t, "docs/operations.md"), prometheus.NewRegistry()
	m := pipeline.NewMetrics(reg)
	m.Connection("garbage")
	names := regexp.MustCompile(`Name: "(attache_[a-z_]+)"`).FindAllStringSubmatch(read(t, "proxy/pipeline/metrics.go")+read(t, "internal/dataplane/dataplane.go")+
		read(t, "webhook/server/metrics.go")+read(t, "webhook/certs/certs.go"), -1)
	if len(names) < 7 {
		t.Fatalf("found %d metrics only", len(names))
	}
	for _, n := range names {
		if !strings.Contains(page, "`"+n[1]) {
			t.Errorf("docs/operations.md lacks %s", n[1])
		}
	}
}

// measured are pages that suites write; they may not be there yet.
var measured = regexp.MustCompile(`(^|/)(compatibility|performance)\.md$`)

// Links between pages, and from pages to files, lead somewhere.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	var pages []string
	for _, glob := range []string{"*.md", "docs/*.md", "docs/*/*.md", "examples/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	checked := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") || measured.MatchString(m[1]) {
				continue
			}
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
			}
		}
	}
	if checked < 20 {
		t.Errorf("checked %d links only", checked)
	}
}

func TestEveryPageIsInTheIndex(t *testing.T) {
	index := read(t, "docs/README.md")
	for _, glob := range []string{"docs/*.md", "docs/*/*.md"} {
		pages, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pages {
			rel, err := filepath.Rel(filepath.Join(root, "docs"), p)
			if err != nil {
				t.Fatal(err)
			}
			if rel != "README.md" && !strings.Contains(index, "("+filepath.ToSlash(rel)+")") {
				t.Errorf("docs/README.md does not name %s", rel)
			}
		}
	}
}
