package api_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const docsFile = "../docs/configuration.md"

const docsHead = `<!-- Generated from api/v1alpha1 by "go test ./api -run TestDocs -update"; do not edit. -->
# Configuration

Attaché reads YAML documents from one folder (` + "`*.yaml`, `*.yml`" + `; several documents a file; folders below are not
read). Each document has ` + "`apiVersion: attache.dev/v1alpha1`" + `, a ` + "`kind`" + `, ` + "`metadata`" + ` and a ` + "`spec`" + `. Unknown fields,
wrong types and dangling references are errors; every mistake is reported at once as ` + "`file:line:column: what is wrong;\nwhat would be right`" + `. A change is picked up within a second; a bad one is reported and the last good documents stay.

Bounds: 1 MiB a file, 10,000 documents. Relative paths (` + "`caFile`, `apiKey.file`, `tlsKeyFile`, `sshAgent`, `audit.dir`, …" + `) start at the folder of the
document. Durations are text such as ` + "`90s`" + ` or ` + "`5m`" + `. **R** marks required fields.

## Presets

| preset | mints by | fields of ` + "`oauth2.extra`" + ` you must give | agent sees |
|---|---|---|---|
| ` + "`anthropic`" + ` | RFC 7523 grant at api.anthropic.com | ` + "`federation_rule_id`, `organization_id`, `service_account_id` (and `workspace_id` if the rule needs one)" + ` | ` + "`ANTHROPIC_API_KEY` (placeholder), `ANTHROPIC_BASE_URL`" + ` |
| ` + "`openai`" + ` | RFC 8693 exchange at auth.openai.com | ` + "`identity_provider_id`, `service_account_id`" + ` | ` + "`OPENAI_API_KEY` (placeholder), `OPENAI_BASE_URL`" + ` |

A preset fills in every other field of its provider; what you write wins, maps are joined key by key.
`

// TestDocs keeps docs/configuration.md equal to the Go documentation.
func TestDocs(t *testing.T) {
	g := generator{t: t, types: map[string]*ast.StructType{}, docs: map[string]string{}}
	sources, _ := filepath.Glob("v1alpha1/*.go")
	var decls []ast.Decl
	for _, name := range sources {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		decls = append(decls, file.Decls...)
	}
	for _, decl := range decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			if ts, ok := spec.(*ast.TypeSpec); ok {
				if st, ok := ts.Type.(*ast.StructType); ok {
					g.types[ts.Name.Name], g.docs[ts.Name.Name] = st, gen.Doc.Text()
				}
			}
		}
	}
	g.b.WriteString(docsHead)
	for _, kind := range []string{
		"CredentialProvider", "CredentialProviderSpec", "ClusterCredentialProvider", "ClusterCredentialProviderSpec",
		"AccessPolicy", "AccessPolicySpec", "ClusterAccessPolicy", "AttacheConfig", "AttacheConfigSpec", "Revocation", "RevocationSpec",
	} {
		g.table(kind)
	}
	g.table("ObjectMeta")
	for len(g.queue) > 0 {
		next := g.queue[0]
		g.queue = g.queue[1:]
		g.table(next)
	}
	got := g.b.String()
	if *update {
		if err := os.WriteFile(docsFile, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/configuration.md is stale, run go test ./api -run TestDocs -update (-file +generated):\n%s", diff)
	}
}

type generator struct {
	t     *testing.T
	types map[string]*ast.StructType
	docs  map[string]string
	done  []string
	queue []string
	b     strings.Builder
}

var spaces = regexp.MustCompile(`\s+`)

// markers are instructions to controller-gen.
var markers = regexp.MustCompile(`(?m)^\+.*$`)

func oneLine(s string) string {
	s = markers.ReplaceAllString(s, "")
	return strings.ReplaceAll(strings.TrimSpace(spaces.ReplaceAllString(s, " ")), "|", `\|`)
}

func (g *generator) table(name string) {
	for _, d := range g.done {
		if d == name {
			return
		}
	}
	g.done = append(g.done, name)
	fmt.Fprintf(&g.b, "\n## %s\n\n%s\n\n| field | type | meaning |\n|---|---|---|\n", name, oneLine(g.docs[name]))
	inherited := "" // one comment may speak of several fields
	for _, f := range g.types[name].Fields.List {
		tag := ""
		if f.Tag != nil {
			tag = reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json")
		}
		field, opts, _ := strings.Cut(tag, ",")
		if base := typeName(f.Type); field == "" && base != "TypeMeta" {
			fmt.Fprintf(&g.b, "| … | %s | the fields of %s |\n", g.link(f.Type), base)
		}
		if field == "" {
			continue
		}
		doc := oneLine(f.Doc.Text() + " " + f.Comment.Text())
		if doc != "" {
			inherited = doc
		} else if strings.Contains(inherited, f.Names[0].Name) {
			doc = inherited
		}
		if doc == "" {
			doc = oneLine(g.docs[strings.TrimLeft(typeName(f.Type), "[]*")])
		}
		required := ""
		if !strings.Contains(opts, "omitempty") && !strings.Contains(f.Doc.Text(), "+optional") {
			required = " **R**"
		}
		fmt.Fprintf(&g.b, "| `%s`%s | %s | %s |\n", field, required, g.link(f.Type), doc)
	}
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.ArrayType:
		return "[]" + typeName(e.Elt)
	case *ast.MapType:
		return "map"
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.Ident:
		return e.Name
	}
	return "?"
}

func (g *generator) link(e ast.Expr) string {
	name := typeName(e)
	list := ""
	if rest, ok := strings.CutPrefix(name, "[]"); ok {
		list, name = "list of ", rest
	}
	if _, ok := g.types[name]; ok {
		g.queue = append(g.queue, name)
		return fmt.Sprintf("%s[%s](#%s)", list, name, strings.ToLower(name))
	}
	words := map[string]string{
		"string": "text", "bool": "true/false", "int": "number", "int64": "number", "float64": "number", "map": "mapping of text",
		"Duration": "duration", "RawMessage": "any", "AgentCredentials": "strip, pass", "AnswerCredentials": "seal, pass", "Durability": "process, power, collector",
		"OwnerList": "list of text",
	}
	word, ok := words[name]
	if !ok {
		g.t.Fatalf("no word for type %s", name)
	}
	return list + word
}
