package inject_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/webhook/inject"
)

// private volumes are the sidecar's alone.
var private = []string{"attache-token", "attache-state", "attache-spool", "attache-none"}

// checkInjected states what holds of every injected pod, whatever the input.
func checkInjected(t testing.TB, in, ns object, c inject.Config, r inject.Result) {
	t.Helper()
	checkPatch(t, in, r)
	c.Nonce = "another nonce, of the second round"
	again, err := inject.Pod(r.Pod, ns, c)
	if err != nil {
		t.Fatalf("a second round denies: %v", err)
	}
	if len(again.Patch) != 0 {
		t.Fatalf("a second round patches: %s", encode(t, again.Patch))
	}
	if r.Skipped != "" {
		if len(r.Patch) != 0 {
			t.Fatalf("skipped, and patched: %v", r.Patch)
		}
		return
	}
	if got, err := inject.TemplateOf(r.Pod); err != nil || got.Mode != r.Mode {
		t.Fatalf("admission makes a pod of no template: %v, %v", got, err)
	} else if note := encode(t, r.Pod["metadata"].(object)["annotations"]); !strings.Contains(string(note), `{\"template\":\"`+got.Hash+`\"`) {
		t.Fatalf("the pod is of template %s and says %s", got.Hash, note)
	}
	spec := r.Pod["spec"].(object)
	first := []string{"attache-sidecar"}
	if r.Mode == inject.Transparent {
		first = []string{"attache-redirect", "attache-sidecar"}
	}
	for i, name := range first {
		if got := spec["initContainers"].([]any)[i].(object)["name"]; got != name {
			t.Fatalf("initContainers[%d] is %v, not %s", i, got, name)
		}
	}
	for _, list := range []string{"initContainers", "containers"} {
		l, _ := spec[list].([]any)
		for _, v := range l {
			if c := v.(object); !strings.HasPrefix(fmt.Sprint(c["name"]), "attache-") {
				checkEquipped(t, c, r.Mode)
			}
		}
	}
}

func checkEquipped(t testing.TB, c object, mode inject.Mode) {
	t.Helper()
	names := map[any]bool{}
	env, _ := c["env"].([]any)
	for _, e := range env {
		names[e.(object)["name"]] = true
	}
	want := []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "JAVA_TOOL_OPTIONS", "OPENAI_API_KEY", "OPENAI_BASE_URL"}
	if mode == inject.Explicit {
		want = append(want, "HTTPS_PROXY", "https_proxy", "NO_PROXY")
	}
	for _, n := range want {
		if !names[n] {
			t.Fatalf("container %v lacks %s", c["name"], n)
		}
	}
	trust := 0
	mounts, _ := c["volumeMounts"].([]any)
	for _, m := range mounts {
		m := m.(object)
		if m["name"] == "attache-trust" {
			trust++
			if m["readOnly"] != true || m["mountPath"] != "/var/run/attache" {
				t.Fatalf("container %v mounts the bundle as %v", c["name"], m)
			}
		}
		if slices.Contains(private, fmt.Sprint(m["name"])) {
			t.Fatalf("container %v mounts %v", c["name"], m["name"])
		}
	}
	if trust != 1 {
		t.Fatalf("container %v mounts the bundle %d times", c["name"], trust)
	}
}

// subset fails if anything of a is not in b. Lists may gain members, in any
// place; a string that holds options may gain some.
func subset(a, b any) bool {
	switch a := a.(type) {
	case object:
		b, ok := b.(object)
		if !ok {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || !subset(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok {
			return false
		}
		for _, v := range a {
			i := slices.IndexFunc(b, func(w any) bool { return subset(v, w) })
			if i < 0 {
				return false
			}
			b = b[i+1:] // in the same order
		}
		return true
	case string:
		b, ok := b.(string)
		return ok && strings.HasPrefix(b, a)
	}
	return reflect.DeepEqual(a, b)
}

func TestInjectedPods(t *testing.T) {
	injected := 0
	for _, file := range inputs(t) {
		g := read(t, file)
		r, err := inject.Pod(g.pod, g.namespace, g.config)
		if err != nil {
			continue // TestGolden says why
		}
		injected++
		checkInjected(t, g.pod, g.namespace, g.config, r)
		if !subset(g.pod, r.Pod) {
			t.Errorf("%s: the author's is gone", file)
		}
	}
	if injected < 10 {
		t.Errorf("%d pods injected", injected)
	}
}

// Random pods, from the pieces that authors use.
func TestRandomPods(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	injected, classes := 0, map[string]int{}
	for range 600 {
		in, ns := randomPod(rnd)
		r, err := inject.Pod(in, ns, config())
		if denied := (*inject.Denied)(nil); errors.As(err, &denied) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		injected++
		checkInjected(t, in, ns, config(), r)
		if qos(in) != qos(r.Pod) && qos(in) != "BestEffort" || qos(r.Pod) == "BestEffort" {
			t.Fatalf("%s has become %s: %s", qos(in), qos(r.Pod), encode(t, r.Pod))
		}
		classes[qos(in)]++
		if !subset(in, r.Pod) {
			t.Fatalf("the author's is gone:\n%s\n%s", encode(t, in), encode(t, r.Pod))
		}
	}
	if injected < 150 || len(classes) != 3 {
		t.Errorf("%d of 600 injected, of %v", injected, classes)
	}
}

// qos is a pod's class, where amounts that are equal are written alike.
func qos(pod object) string {
	spec := pod["spec"].(object)
	inits, _ := spec["initContainers"].([]any)
	guaranteed, set := true, false
	for _, v := range append(slices.Clone(inits), spec["containers"].([]any)...) {
		res, _ := v.(object)["resources"].(object)
		limits, _ := res["limits"].(object)
		requests, _ := res["requests"].(object)
		set = set || len(limits)+len(requests) > 0
		for _, r := range []string{"cpu", "memory"} {
			if limits[r] == nil || requests[r] != nil && requests[r] != limits[r] {
				guaranteed = false
			}
		}
	}
	switch {
	case guaranteed:
		return "Guaranteed"
	case set:
		return "Burstable"
	}
	return "BestEffort"
}

func randomPod(rnd *rand.Rand) (pod, ns object) {
	maybe := func(o object, key string, v any) {
		if rnd.IntN(3) == 0 {
			o[key] = v
		}
	}
	env := []any{}
	for _, n := range []string{"A", "HTTPS_PROXY", "SSL_CERT_FILE", "JAVA_TOOL_OPTIONS", "OPENAI_API_KEY", "A"} {
		e := object{"name": n}
		if rnd.IntN(3) == 0 {
			e["valueFrom"] = object{"secretKeyRef": object{"name": "s", "key": n}}
		} else {
			e["value"] = fmt.Sprint("v", rnd.IntN(5))
		}
		if rnd.IntN(2) == 0 {
			env = append(env, e)
		}
	}
	full := rnd.IntN(2) == 0
	container := func(name string) any {
		c := object{"name": name, "image": "x"}
		maybe(c, "env", env)
		maybe(c, "volumeMounts", []any{object{"name": "d", "mountPath": "/d"}, object{"name": "d", "mountPath": "/e"}})
		maybe(c, "restartPolicy", "Always")
		if full {
			c["resources"] = object{"limits": object{"cpu": json.Number("1"), "memory": "1Gi"}}
		} else {
			maybe(c, "resources", object{"requests": object{"cpu": "100m"}})
		}
		maybe(c, "new~field/x", object{"a": []any{json.Number("1"), nil, true}})
		return c
	}
	spec := object{"containers": []any{container("a"), container("b")}}
	maybe(spec, "initContainers", []any{container("i"), container("j")})
	maybe(spec, "volumes", []any{object{"name": "d", "emptyDir": object{}}})
	maybe(spec, "serviceAccountName", "x")
	if rnd.IntN(20) == 0 {
		spec["hostNetwork"] = true
	}
	meta := object{"name": "p"}
	maybe(meta, "annotations", object{"attache.dev/mode": []string{"explicit", "transparent"}[rnd.IntN(2)], "x/y": "z"})
	labels := object{"attache.dev/inject": "enabled"}
	maybe(labels, "attache.dev/mode", "transparent")
	return object{"metadata": meta, "spec": spec, "unknown": "kept"}, object{"labels": labels}
}

// The author's values never leave by a patch, a warning, the annotation or an
// error: those are logged.
func TestNoSecretLeaves(t *testing.T) {
	const secret = "ghp_0123456789abcdefghijABCDEF"
	found := 0
	for _, file := range inputs(t) {
		g := read(t, file)
		if !strings.Contains(string(encode(t, g.pod)), secret) {
			continue
		}
		found++
		r, err := inject.Pod(g.pod, g.namespace, g.config)
		if err != nil {
			t.Fatal(err)
		}
		if out := string(encode(t, []any{r.Patch, r.Warnings})); strings.Contains(out, secret) {
			t.Errorf("%s: the secret is in %s", file, out)
		}
		if len(r.Warnings) < 5 {
			t.Errorf("%s: warnings %q", file, r.Warnings)
		}
		g.pod["spec"].(object)["hostNetwork"] = true
		if _, err = inject.Pod(g.pod, g.namespace, g.config); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: error %v", file, err)
		}
	}
	if found == 0 {
		t.Error("no input holds the secret")
	}
}

// Another webhook changed the pod after us: the second round makes it what it
// was, and keeps what the other added.
func TestRepair(t *testing.T) {
	g := read(t, "testdata/init-containers.in.yaml")
	g.namespace["labels"].(object)["attache.dev/mode"] = "transparent"
	r, err := inject.Pod(g.pod, g.namespace, g.config)
	if err != nil {
		t.Fatal(err)
	}
	want := encode(t, r.Pod)
	inits := func(p object) []any { return p["spec"].(object)["initContainers"].([]any) }
	named := func(l []any, name string) object {
		return l[slices.IndexFunc(l, func(v any) bool { return v.(object)["name"] == name })].(object)
	}
	app := func(p object) object { return p["spec"].(object)["containers"].([]any)[0].(object) }
	for name, tamper := range map[string]func(p object){
		"image":        func(p object) { named(inits(p), "attache-sidecar")["image"] = "evil:1" },
		"mounts":       func(p object) { named(inits(p), "attache-sidecar")["volumeMounts"] = []any{} },
		"resources":    func(p object) { delete(named(inits(p), "attache-sidecar"), "resources") },
		"capabilities": func(p object) { delete(named(inits(p), "attache-redirect"), "securityContext") },
		"order":        func(p object) { slices.Reverse(inits(p)[:2]) },
		"sidecar gone": func(p object) { p["spec"].(object)["initContainers"] = slices.Delete(inits(p), 1, 2) },
		"twice": func(p object) {
			p["spec"].(object)["initContainers"] = append(inits(p), maps.Clone(named(inits(p), "attache-sidecar")))
		},
		"variable": func(p object) { named(app(p)["env"].([]any), "SSL_CERT_FILE")["value"] = "/x" },
		"second variable": func(p object) {
			app(p)["env"] = append(app(p)["env"].([]any), object{"name": "SSL_CERT_FILE", "value": "/x"})
		},
		"bundle writable": func(p object) { delete(named(app(p)["volumeMounts"].([]any), "attache-trust"), "readOnly") },
		"bundle twice": func(p object) {
			app(p)["volumeMounts"] = append(app(p)["volumeMounts"].([]any), object{"name": "attache-trust", "mountPath": "/w"})
		},
		"audience": func(p object) {
			named(p["spec"].(object)["volumes"].([]any), "attache-token")["projected"] = object{"sources": []any{}}
		},
		"volume gone": func(p object) {
			l := p["spec"].(object)["volumes"].([]any)
			p["spec"].(object)["volumes"] = slices.DeleteFunc(l, func(v any) bool { return v.(object)["name"] == "attache-state" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			var p object
			decode(t, want, &p)
			tamper(p)
			r, err := inject.Pod(p, g.namespace, g.config)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Patch) == 0 {
				t.Fatal("no patch")
			}
			checkInjected(t, p, g.namespace, g.config, r)
			// The order of volumes and of variables of one name is free.
			if name == "volume gone" || name == "second variable" {
				return
			}
			if got := encode(t, r.Pod); string(got) != string(want) {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
	t.Run("added", func(t *testing.T) {
		var p object
		decode(t, want, &p)
		p["spec"].(object)["initContainers"] = slices.Insert(inits(p), 0, any(object{
			"name": "first", "image": "other:1", "env": []any{object{"name": "PASSWORD", "value": "hunter2hunter2"}},
		}))
		r, err := inject.Pod(p, g.namespace, g.config)
		if err != nil {
			t.Fatal(err)
		}
		checkInjected(t, p, g.namespace, g.config, r)
		if strings.Contains(string(encode(t, r.Patch)), "hunter2") {
			t.Errorf("the patch repeats what is not ours: %s", encode(t, r.Patch))
		}
		if !subset(named(inits(p), "first"), named(inits(r.Pod), "first")) {
			t.Error("the other webhook's container is gone")
		}
	})
}

// A status that an author copied gives nothing: neither a container of our
// name, nor a mount of what is the sidecar's.
func TestForgedStatus(t *testing.T) {
	g := read(t, "testdata/deployment.in.yaml")
	r, err := inject.Pod(g.pod, g.namespace, g.config)
	if err != nil {
		t.Fatal(err)
	}
	stolen := r.Pod["metadata"].(object)["annotations"].(object)["attache.dev/status"]
	evil := object{"name": "attache-sidecar", "image": "evil:1", "restartPolicy": "Always"}
	pod := func(spec object) object {
		return object{"metadata": object{"annotations": object{"attache.dev/status": stolen}}, "spec": spec}
	}
	app := object{"name": "agent", "image": "agent:1"}
	r, err = inject.Pod(pod(object{"containers": []any{app}, "initContainers": []any{evil}}), g.namespace, g.config)
	if err != nil || strings.Contains(string(encode(t, r.Pod)), "evil") {
		t.Errorf("%v: %s", err, encode(t, r.Pod))
	}
	for name, spec := range map[string]object{
		"among containers": {"containers": []any{app, evil}},
		"mounts the token": {"containers": []any{object{"name": "agent", "volumeMounts": []any{object{"name": "attache-token", "mountPath": "/t"}}}}},
		"unseen container": {"containers": []any{object{"name": "other", "volumeMounts": []any{object{"name": "attache-trust", "mountPath": "/t"}}}}},
	} {
		if _, err := inject.Pod(pod(spec), g.namespace, g.config); err == nil {
			t.Errorf("%s: admitted", name)
		}
	}
	other := g.config
	other.Image = "registry.example/attache-sidecar:2"
	if _, err := inject.Pod(r.Pod, g.namespace, other); err == nil {
		t.Error("a status of another template is taken")
	}
}

func TestTooManyContainers(t *testing.T) {
	for n, want := range map[int]bool{200: true, 201: false} {
		list := make([]any, n)
		for i := range list {
			list[i] = object{"name": fmt.Sprint("c", i)}
		}
		ns := object{"labels": object{"attache.dev/inject": "enabled"}}
		in := object{"spec": object{"initContainers": list, "containers": []any{object{"name": "a"}}}}
		r, err := inject.Pod(in, ns, config())
		if (err == nil) != want {
			t.Errorf("%d containers: %v", n, err)
		}
		if err == nil {
			checkInjected(t, in, ns, config(), r) // ours do not count in a second round
		}
	}
}

func TestPlaceholdersDiffer(t *testing.T) {
	g := read(t, "testdata/deployment.in.yaml")
	value := func(nonce string) string {
		g.config.Nonce = nonce
		r, err := inject.Pod(g.pod, g.namespace, g.config)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Pod["spec"].(object)["containers"].([]any)[0].(object)["env"].([]any) {
			if e.(object)["name"] == "OPENAI_API_KEY" {
				return e.(object)["value"].(string)
			}
		}
		t.Fatal("no placeholder")
		return ""
	}
	a, b := value("nonce of the first pod"), value("nonce of the second pod")
	if a == b || !strings.HasPrefix(a, "sk-attache") {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestBadConfig(t *testing.T) {
	g := read(t, "testdata/deployment.in.yaml")
	for want, change := range map[string]func(*inject.Config){
		"image: is missing":                func(c *inject.Config) { c.Image = "" },
		"nonce: is not of 16":              func(c *inject.Config) { c.Nonce = "x" },
		"mode: is \"x\"":                   func(c *inject.Config) { c.Mode = "x" },
		"modes: lack explicit":             func(c *inject.Config) { c.Modes = []inject.Mode{inject.Transparent} },
		"uid: is -1":                       func(c *inject.Config) { c.UID = -1 },
		"tokenTTL: is 1s":                  func(c *inject.Config) { c.TokenTTL = 1e9 },
		"port 80":                          func(c *inject.Config) { c.ProxyPort = 80 },
		"port 15001":                       func(c *inject.Config) { c.ProxyPort = 15001 },
		"imagePullPolicy: is \"x\"":        func(c *inject.Config) { c.ImagePullPolicy = "x" },
		"resources.cpuLimit: \"x\"":        func(c *inject.Config) { c.Resources.CPULimit = "x" },
		"the memory request is 0 or above": func(c *inject.Config) { c.Resources.MemoryRequest = "1Gi" },
		"limitRange.cpu: min is above max": func(c *inject.Config) { c.LimitRange.CPU = inject.Range{Min: "2", Max: "1"} },
		"limitRange.cpu.ratio: is below 1": func(c *inject.Config) { c.LimitRange.CPU.Ratio = "0.5" },
		"placeholders[0].env":              func(c *inject.Config) { c.Placeholders = []inject.Placeholder{{Env: "HTTPS_PROXY"}} },
		"variables[0].name":                func(c *inject.Config) { c.Variables = []inject.Variable{{Name: "OPENAI_API_KEY"}} },
	} {
		c := config()
		change(&c)
		_, err := inject.Pod(g.pod, g.namespace, c)
		if !errors.Is(err, inject.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func FuzzPod(f *testing.F) {
	for _, file := range inputs(f) {
		g := read(f, file)
		f.Add(encode(f, g.pod), encode(f, g.namespace))
		if r, err := inject.Pod(g.pod, g.namespace, g.config); err == nil {
			f.Add(encode(f, r.Pod), encode(f, g.namespace)) // as a second round sees it
		}
	}
	f.Fuzz(func(t *testing.T, pod, namespace []byte) {
		var p, ns object
		for _, in := range []struct {
			text []byte
			into *object
		}{{pod, &p}, {namespace, &ns}} {
			d := json.NewDecoder(bytes.NewReader(in.text))
			d.UseNumber()
			if d.Decode(in.into) != nil {
				return
			}
		}
		before := encode(t, p)
		_, _ = inject.TemplateOf(p) // must not panic
		r, err := inject.Pod(p, ns, config())
		if string(before) != string(encode(t, p)) {
			t.Fatal("the input has changed")
		}
		if err != nil {
			if denied := (*inject.Denied)(nil); !errors.As(err, &denied) || len(denied.Problems) == 0 {
				t.Fatal(err)
			}
			return
		}
		checkInjected(t, p, ns, config(), r)
	})
}

func BenchmarkPod(b *testing.B) {
	for _, name := range []string{"deployment", "static-secrets", "transparent", "not-opted-in"} {
		b.Run(name, func(b *testing.B) {
			g := read(b, "testdata/"+name+".in.yaml")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := inject.Pod(g.pod, g.namespace, g.config); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
