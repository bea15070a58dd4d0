package inject_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/webhook/inject"
)

var update = flag.Bool("update", false, "rewrite the golden files")

type object = map[string]any

const nonce = "0123456789abcdef0123456789abcdef"

func config() inject.Config {
	return inject.Config{
		Image:        "registry.example/attache-sidecar@sha256:" + strings.Repeat("0", 64),
		Control:      "attache-control.attache-system.svc:8443",
		NoProxy:      []string{"10.96.0.0/12"},
		Placeholders: []inject.Placeholder{{Env: "OPENAI_API_KEY", Prefix: "sk-", Provider: "openai"}},
		Variables:    []inject.Variable{{Name: "OPENAI_BASE_URL", Value: "http://127.0.0.1:15100/v1"}},
		Modes:        []inject.Mode{inject.Explicit, inject.Transparent},
		Owners:       []string{"team-a@example.com"},
		Nonce:        nonce,
	}
}

func decode(t testing.TB, b []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cases reads testdata/NAME.in.yaml: a pod and, before it, the documents that
// it needs: Config (added to the one above) and the namespace's metadata.
type golden struct {
	config         inject.Config
	pod, namespace object
}

func read(t testing.TB, file string) golden {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	g := golden{config: config(), namespace: object{"labels": object{"attache.dev/inject": "enabled"}}}
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc object
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		j := encode(t, doc)
		switch doc["kind"] {
		case "Config":
			decode(t, j, &g.config)
		case "Namespace":
			var ns object
			decode(t, j, &ns)
			g.namespace = ns["metadata"].(object)
		case "Pod":
			g.pod = nil
			decode(t, j, &g.pod)
		default:
			t.Fatalf("%s: kind %v", file, doc["kind"])
		}
	}
}

func inputs(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	return files
}

func TestGolden(t *testing.T) {
	for _, file := range inputs(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".in.yaml"), func(t *testing.T) {
			g := read(t, file)
			before := encode(t, g.pod)
			r, err := inject.Pod(g.pod, g.namespace, g.config)
			if !bytes.Equal(before, encode(t, g.pod)) {
				t.Error("the input has changed")
			}
			out := object{}
			switch denied := (*inject.Denied)(nil); {
			case errors.As(err, &denied):
				out["denied"] = strings.Split(denied.Error(), "\n")
			case err != nil:
				t.Fatal(err)
			default:
				checkPatch(t, g.pod, r)
				out["pod"], out["mode"], out["skipped"], out["warnings"] = r.Pod, r.Mode, r.Skipped, r.Warnings
				out["patch"] = paths(r.Patch)
			}
			compare(t, strings.Replace(file, ".in.", ".out.", 1), out)
		})
	}
}

func paths(ops []inject.Operation) []string {
	var l []string
	for _, o := range ops {
		l = append(l, o.Op+" "+o.Path)
	}
	return l
}

func compare(t *testing.T, file string, out object) {
	t.Helper()
	var plain any // numbers as yaml writes them
	if err := json.Unmarshal(encode(t, out), &plain); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(plain); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, d)
	}
}

// checkPatch applies the patch, over the wire, to the input.
func checkPatch(t testing.TB, pod object, r inject.Result) {
	t.Helper()
	var doc any
	decode(t, encode(t, pod), &doc)
	var ops []object
	decode(t, encode(t, r.Patch), &ops)
	for _, op := range ops {
		doc = apply(t, doc, op["op"].(string), strings.Split(op["path"].(string), "/")[1:], op["value"])
	}
	var want any
	decode(t, encode(t, r.Pod), &want)
	if !reflect.DeepEqual(doc, want) {
		t.Fatalf("the patch does not make the pod:\n%s", cmp.Diff(want, doc))
	}
}

// apply carries out one operation as RFC 6902 section 4 says: what is removed
// or replaced must be there, and an index to add at must not be beyond the end.
func apply(t testing.TB, doc any, op string, path []string, value any) any {
	t.Helper()
	key := strings.NewReplacer("~1", "/", "~0", "~").Replace(path[0])
	switch d := doc.(type) {
	case object:
		old, ok := d[key]
		switch {
		case len(path) > 1 && ok:
			d[key] = apply(t, old, op, path[1:], value)
		case len(path) > 1, op != "add" && !ok:
			t.Fatalf("%s %v: no member", op, path)
		case op == "remove":
			delete(d, key)
		default:
			d[key] = value
		}
		return d
	case []any:
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i > len(d) || i == len(d) && (op != "add" || len(path) > 1) {
			t.Fatalf("%s %v: no index", op, path)
		}
		switch {
		case len(path) > 1:
			d[i] = apply(t, d[i], op, path[1:], value)
		case op == "remove":
			return append(d[:i:i], d[i+1:]...)
		case op == "replace":
			d[i] = value
		default:
			return append(d[:i:i], append([]any{value}, d[i:]...)...)
		}
		return d
	}
	t.Fatalf("%s %v: in %T", op, path, doc)
	return nil
}
