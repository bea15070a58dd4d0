// Package arch checks the shape of the code: who may import whom, package
// comments, no init functions, small interfaces, and who may reveal a secret.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/attache-dev/attache/"

// forbidden lists imports that would turn an arrow of docs/architecture.md
// round: room -> rooms it must never import.
var forbidden = map[string][]string{
	"internal/secret": {"api", "identity", "policy", "minting", "injector", "audit", "proxy", "cmd"},
	"api":             {"identity", "policy", "minting", "injector", "audit", "proxy", "cmd"},
	"policy":          {"minting", "injector", "audit", "proxy", "cmd"},
	"identity":        {"policy", "minting", "injector", "audit", "proxy", "cmd"},
	"minting":         {"policy", "injector", "audit", "proxy", "cmd"},
	"injector":        {"audit", "proxy", "cmd"},
	"audit":           {"policy", "minting", "injector", "identity", "proxy", "cmd"},
	"webhook":         {"identity", "policy", "minting", "injector", "audit", "proxy", "control", "cmd"},
	"control":         {"proxy", "injector", "cmd"},
	"proxy":           {"control", "webhook", "cmd", "minting/oauth2", "minting/apikey", "minting/jwtsvid", "minting/aws", "minting/all"},
}

// besides lists packages of a room that may import what the rest of it must
// not: the relay is a data path of its own, beside the control plane.
// What works with records and policies stands between the two.
var besides = map[string][]string{"control/relay": {"proxy", "injector"}, "policy/replay": {"audit"}, "policy/suggest": {"audit"}}

// revealers may call secret.Value.Reveal (invariant 7): who puts a secret on
// the wire, who presents one to an issuer, and the guard that looks for it.
var revealers = []string{"internal/secret", "injector", "minting", "identity/task", "identity/issuer", "identity/kubernetes", "control/issuer", "control/broker", "audit/ui", "identity/identitytest", "audit/ship/otlp", "test/"}

type file struct {
	path string // slash-separated, from the module's root
	ast  *ast.File
	fset *token.FileSet
}

func files(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "tools") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if !ast.IsGenerated(f) {
			out = append(out, file{filepath.ToSlash(rel), f, fset})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("found %d files only: the walk is broken", len(out))
	}
	return out
}

func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

func TestImportsPointOneWay(t *testing.T) {
	for _, f := range files(t) {
		dir := filepath.ToSlash(filepath.Dir(f.path))
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		for room, banned := range forbidden {
			if !within(dir, room) {
				continue
			}
			for _, imp := range f.ast.Imports {
				p, err := strconv.Unquote(imp.Path.Value)
				if err != nil || !strings.HasPrefix(p, module) {
					continue
				}
				for _, b := range banned {
					if slices.Contains(besides[dir], b) {
						continue
					}
					if within(strings.TrimPrefix(p, module), b) {
						t.Errorf("%s imports %s: %s must not know %s", f.path, p, room, b)
					}
				}
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	doc := map[string]bool{}
	for _, f := range files(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(f.path))
		doc[dir] = doc[dir] || f.ast.Doc != nil
	}
	for dir, ok := range doc {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func TestNoInitAndSmallInterfaces(t *testing.T) {
	const maxMethods = 4
	for _, f := range files(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: init function; wire it where it is used", f.path)
				}
			case *ast.InterfaceType:
				if n.Methods.NumFields() > maxMethods {
					t.Errorf("%s: interface with %d methods at %v; at most %d", f.path, n.Methods.NumFields(), f.fset.Position(n.Pos()).Line, maxMethods)
				}
			}
			return true
		})
	}
}

func TestExportsAreDocumented(t *testing.T) {
	for _, f := range files(t) {
		if strings.HasSuffix(f.path, "_test.go") || strings.HasPrefix(f.path, "test/") {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d)) {
					t.Errorf("%s: %s has no comment", f.path, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: type %s has no comment", f.path, ts.Name.Name)
					}
				}
			}
		}
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	e := d.Recv.List[0].Type
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if g, ok := e.(*ast.IndexExpr); ok {
		e = g.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}

func TestOnlyFewMayReveal(t *testing.T) {
	calls := 0
	for _, f := range files(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := c.Fun.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "Reveal" {
				return true
			}
			calls++
			for _, r := range revealers {
				if strings.HasPrefix(f.path, r) {
					return true
				}
			}
			t.Errorf("%s:%d reveals a secret; only %v may", f.path, f.fset.Position(c.Pos()).Line, revealers)
			return true
		})
	}
	if calls == 0 {
		t.Error("no call of Reveal found: the check is broken")
	}
}
