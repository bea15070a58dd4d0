package inject_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/attache-dev/attache/webhook/inject"
)

func injected(t testing.TB, mode inject.Mode, change func(*inject.Config)) object {
	t.Helper()
	c := config()
	if change != nil {
		change(&c)
	}
	pod := object{
		"metadata": object{"name": "agent", "namespace": "team-a"},
		"spec": object{
			"volumes":        []any{object{"name": "data", "emptyDir": object{}}},
			"initContainers": []any{object{"name": "fetch", "image": "fetch"}},
			"containers": []any{object{
				"name": "agent", "image": "agent",
				"volumeMounts":    []any{object{"name": "data", "mountPath": "/data"}},
				"securityContext": object{"capabilities": object{"drop": []any{"ALL"}}},
			}},
		},
	}
	r, err := inject.Pod(pod, object{"labels": object{"attache.dev/inject": "enabled", "attache.dev/mode": string(mode)}}, c)
	if err != nil {
		t.Fatal(err)
	}
	return r.Pod
}

func templates(t testing.TB, c inject.Config) map[inject.Mode]inject.Template {
	t.Helper()
	list, err := c.Templates()
	if err != nil {
		t.Fatal(err)
	}
	m := map[inject.Mode]inject.Template{}
	for _, x := range list {
		m[x.Mode] = x
	}
	if len(m) != 2 || m[inject.Explicit].Hash == m[inject.Transparent].Hash {
		t.Fatalf("templates: %v", m)
	}
	return m
}

// The size of the spool is no part of the template: pods of before a change of it
// keep their identity, and a pod may ask for more. Anything else of its volume is.
func TestSpoolsOfAnySizeAreOfTheTemplate(t *testing.T) {
	want := templates(t, config())[inject.Explicit]
	for _, size := range []string{"", "16Mi", "2Gi"} {
		pod := injected(t, inject.Explicit, func(c *inject.Config) { c.Resources.Spool = size })
		if got, err := inject.Verify(pod, config()); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", size, got, err, want)
		}
	}
	for name, change := range map[string]func(dir object){
		"in memory": func(dir object) { dir["medium"] = "Memory" }, "without a bound": func(dir object) { delete(dir, "sizeLimit") },
	} {
		pod := injected(t, inject.Explicit, nil)
		for _, v := range pod["spec"].(object)["volumes"].([]any) {
			if v := v.(object); v["name"] == "attache-spool" {
				change(v["emptyDir"].(object))
			}
		}
		if _, err := inject.Verify(pod, config()); err == nil {
			t.Errorf("a spool %s is of the template", name)
		}
	}
}

// All golden pods of one operator's settings are of the same two templates,
// whatever their authors chose.
func TestGoldenPodsAreOfTheTemplate(t *testing.T) {
	found := 0
	for _, file := range inputs(t) {
		g := read(t, file)
		r, err := inject.Pod(g.pod, g.namespace, g.config)
		if err != nil || r.Skipped != "" {
			continue
		}
		got, err := inject.TemplateOf(r.Pod)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		list, err := g.config.Templates()
		if err != nil {
			t.Fatal(err)
		}
		ok := false
		for _, want := range list {
			ok = ok || got == want
		}
		if !ok {
			t.Errorf("%s: is of %v; want one of %v", file, got, list)
		}
		if _, err := inject.Verify(r.Pod, g.config); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		found++
	}
	if found < 10 {
		t.Errorf("%d pods", found)
	}
}

// What differs between namespaces, pods and registries does not change the
// template; what the operator decides does.
func TestTemplatesHash(t *testing.T) {
	base := templates(t, config())
	for name, change := range map[string]func(*inject.Config){
		"nonce":        func(c *inject.Config) { c.Nonce = strings.Repeat("x", 32) },
		"placeholders": func(c *inject.Config) { c.Placeholders = nil },
		"base URLs": func(c *inject.Config) {
			c.BaseURLs = []inject.BaseURL{{Env: "X_BASE_URL", Provider: "x", Host: "x.example", Port: 443}}
		},
		"limit range": func(c *inject.Config) { c.LimitRange.CPU.Max = "100m" },
		"owners":      func(c *inject.Config) { c.Owners = nil },
		"resources":   func(c *inject.Config) { c.Resources.MemoryLimit = "512Mi" },
		"pull policy": func(c *inject.Config) { c.ImagePullPolicy = "Always" },
	} {
		c := config()
		change(&c)
		got, err := inject.TemplateOf(injected(t, inject.Transparent, change))
		if err != nil || got != base[inject.Transparent] {
			t.Errorf("%s changes the template: %v, %v", name, got, err)
		}
		for mode, want := range base {
			if got := templates(t, c)[mode]; got != want {
				t.Errorf("%s changes the operator's template: %v", name, got)
			}
		}
	}
	for name, change := range map[string]func(*inject.Config){
		"uid":     func(c *inject.Config) { c.UID = 64300 },
		"control": func(c *inject.Config) { c.Control = "elsewhere:8443" },
		"roots":   func(c *inject.Config) { c.ControlCA = "another" },
		"port":    func(c *inject.Config) { c.HealthPort = 15021 },
	} {
		c := config()
		change(&c)
		if got := templates(t, c)[inject.Explicit]; got.Hash == base[inject.Explicit].Hash {
			t.Errorf("%s does not change the template", name)
		}
		if _, err := inject.Verify(injected(t, inject.Explicit, change), config()); err == nil {
			t.Errorf("a pod of another %s is verified", name)
		}
	}
	other := config()
	other.Image = "another"
	if got := templates(t, other)[inject.Explicit]; got.Hash != base[inject.Explicit].Hash || got.Image != "another" {
		t.Errorf("the image is not apart from the hash: %v", got)
	}
}

// Each of these pods is one in which something else could hold the sidecar's
// identity, or in which the sidecar is not ours.
func TestForeignPods(t *testing.T) {
	spec := func(pod object) object { return pod["spec"].(object) }
	initContainer := func(pod object, i int) object { return spec(pod)["initContainers"].([]any)[i].(object) }
	agent := func(pod object) object { return spec(pod)["containers"].([]any)[0].(object) }
	mount := func(c object, name string, readOnly bool) {
		l, _ := c["volumeMounts"].([]any)
		c["volumeMounts"] = append(l, object{"name": name, "mountPath": "/x", "readOnly": readOnly})
	}
	env := func(c object, e object) { l, _ := c["env"].([]any); c["env"] = append(l, e) }
	volume := func(pod object, name string) object {
		for _, v := range spec(pod)["volumes"].([]any) {
			if v.(object)["name"] == name {
				return v.(object)
			}
		}
		t.Fatal("no volume " + name)
		return nil
	}
	token := func(audience string) object {
		return object{"name": "mine", "projected": object{"sources": []any{object{"serviceAccountToken": object{"audience": audience, "path": "t"}}}}}
	}
	base := templates(t, config())
	for name, change := range map[string]func(pod object){
		"no sidecar":           func(p object) { spec(p)["initContainers"] = spec(p)["initContainers"].([]any)[:1] },
		"no redirect":          func(p object) { spec(p)["initContainers"] = spec(p)["initContainers"].([]any)[1:] },
		"redirect after":       func(p object) { l := spec(p)["initContainers"].([]any); l[0], l[1] = l[1], l[0] },
		"two sidecars":         func(p object) { l := spec(p)["initContainers"].([]any); spec(p)["initContainers"] = append(l, l[1]) },
		"sidecar as container": func(p object) { agent(p)["name"] = inject.SidecarName },
		"other command":        func(p object) { initContainer(p, 1)["command"] = []any{"/bin/sh"} },
		"other arguments":      func(p object) { initContainer(p, 1)["args"] = []any{"proxy", "--mode=transparent"} },
		"other args of redirect": func(p object) {
			initContainer(p, 0)["args"] = append(initContainer(p, 0)["args"].([]any), "--to-port=1")
		},
		"no mode":          func(p object) { initContainer(p, 1)["args"] = []any{} },
		"redirect's image": func(p object) { initContainer(p, 0)["image"] = "evil" },
		"a variable": func(p object) {
			env(initContainer(p, 1), object{"name": "LD_PRELOAD", "value": "/x"})
		},
		"a variable from elsewhere": func(p object) {
			env(initContainer(p, 1), object{"name": "ATTACHE_LOG_LEVEL", "valueFrom": object{"secretKeyRef": object{"name": "s", "key": "k"}}})
		},
		"envFrom":               func(p object) { initContainer(p, 1)["envFrom"] = []any{object{"secretRef": object{"name": "x"}}} },
		"a hook":                func(p object) { initContainer(p, 1)["lifecycle"] = object{"preStop": object{}} },
		"a field of the future": func(p object) { initContainer(p, 1)["sharesKeys"] = true },
		"a mount in it":         func(p object) { mount(initContainer(p, 1), "data", false) },
		"no sidecar's restart":  func(p object) { delete(initContainer(p, 1), "restartPolicy") },
		"its user":              func(p object) { initContainer(p, 1)["securityContext"].(object)["runAsUser"] = 1000 },
		"agent mounts token":    func(p object) { mount(agent(p), "attache-token", true) },
		"agent mounts state":    func(p object) { mount(agent(p), "attache-state", true) },
		"agent writes CA":       func(p object) { mount(agent(p), "attache-trust", false) },
		"init mounts token":     func(p object) { mount(initContainer(p, 2), "attache-token", true) },
		"another token":         func(p object) { spec(p)["volumes"] = append(spec(p)["volumes"].([]any), token("attache.dev")) },
		"state on disk":         func(p object) { delete(volume(p, "attache-state")["emptyDir"].(object), "medium") },
		"state on the host": func(p object) {
			v := volume(p, "attache-state")
			delete(v, "emptyDir")
			v["hostPath"] = object{"path": "/tmp"}
		},
		"token by other means": func(p object) {
			v := volume(p, "attache-token")
			delete(v, "projected")
			v["secret"] = object{"secretName": "stolen"}
		},
		"volume twice":     func(p object) { spec(p)["volumes"] = append(spec(p)["volumes"].([]any), volume(p, "attache-trust")) },
		"no volume":        func(p object) { spec(p)["volumes"] = []any{} },
		"agent's user":     func(p object) { agent(p)["securityContext"] = object{"runAsUser": 64200} },
		"pod's user":       func(p object) { spec(p)["securityContext"] = object{"runAsUser": 64200} },
		"shared processes": func(p object) { spec(p)["shareProcessNamespace"] = true },
		"host's network":   func(p object) { spec(p)["hostNetwork"] = true },
		"privileged":       func(p object) { agent(p)["securityContext"] = object{"privileged": true} },
		"ptrace": func(p object) {
			agent(p)["securityContext"] = object{"capabilities": object{"add": []any{"SYS_PTRACE"}}}
		},
		"kubelet's folder":    func(p object) { volume(p, "data")["hostPath"] = object{"path": "/var/lib/kubelet"} },
		"debugger's mount":    func(p object) { debugger(p, func(c object) { mount(c, "attache-state", true) }) },
		"debugger's user":     func(p object) { debugger(p, func(c object) { c["securityContext"] = object{"runAsUser": 64200} }) },
		"debugger's target":   func(p object) { debugger(p, func(c object) { c["targetContainerName"] = inject.SidecarName }) },
		"debugger's name":     func(p object) { debugger(p, func(c object) { c["name"] = inject.SidecarName }) },
		"debugger privileged": func(p object) { debugger(p, func(c object) { c["securityContext"] = object{"privileged": true} }) },
	} {
		t.Run(name, func(t *testing.T) {
			pod := injected(t, inject.Transparent, nil)
			change(pod)
			got, err := inject.TemplateOf(pod)
			if err == nil && got == base[inject.Transparent] {
				t.Error("is taken for ours")
			}
			if denied := (*inject.Denied)(nil); err != nil && !errors.As(err, &denied) {
				t.Errorf("fails with %v", err)
			}
		})
	}
}

func debugger(pod object, change func(object)) {
	c := object{"name": "debugger", "image": "busybox"}
	change(c)
	pod["spec"].(object)["ephemeralContainers"] = []any{c}
}

// What others may do to a pod does not take its identity.
func TestHarmlessChanges(t *testing.T) {
	base := templates(t, config())
	for name, change := range map[string]func(pod object){
		"nothing": func(object) {},
		"debugger": func(p object) {
			debugger(p, func(c object) { c["targetContainerName"] = "agent" })
		},
		"labels":  func(p object) { p["metadata"].(object)["labels"] = object{"a": "b"} },
		"resized": func(p object) { p["spec"].(object)["initContainers"].([]any)[1].(object)["resources"] = object{} },
		"numbers": func(p object) {
			p["spec"].(object)["initContainers"].([]any)[1].(object)["securityContext"].(object)["runAsUser"] = int64(64200)
		},
		"another audience": func(p object) {
			s := p["spec"].(object)
			s["volumes"] = append(s["volumes"].([]any), object{"name": "vault", "projected": object{"sources": []any{
				object{"serviceAccountToken": object{"audience": "vault", "path": "t"}},
			}}})
		},
		"another webhook's sidecar": func(p object) {
			s := p["spec"].(object)
			s["initContainers"] = append([]any{object{"name": "first", "image": "x"}}, s["initContainers"].([]any)...)
		},
	} {
		pod := injected(t, inject.Transparent, nil)
		change(pod)
		if got, err := inject.TemplateOf(pod); err != nil || got != base[inject.Transparent] {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestBaseURLs(t *testing.T) {
	c := config()
	c.Variables = nil
	c.BaseURLs = []inject.BaseURL{
		{Env: "OPENAI_BASE_URL", Provider: "openai", Host: "api.openai.com", Port: 443, Path: "/v1"},
		{Env: "OTHER", Provider: "other", Host: "other.example", Port: 443, Scheme: "https", Listen: "127.0.0.1:15100"},
		{Env: "THIRD", Provider: "third", Host: "third.example", Port: 8443},
	}
	pod := object{"spec": object{"containers": []any{object{"name": "agent"}}}}
	ns := object{"labels": object{"attache.dev/inject": "enabled"}}
	r, err := inject.Pod(pod, ns, c)
	if err != nil {
		t.Fatal(err)
	}
	got := string(encode(t, r.Pod))
	for _, want := range []string{
		`{"name":"OPENAI_BASE_URL","value":"http://127.0.0.1:15101/v1"}`,
		`{"name":"OTHER","value":"https://127.0.0.1:15100"}`,
		`{"name":"THIRD","value":"http://127.0.0.1:15102"}`,
		`\"provider\":\"third\",\"host\":\"third.example\",\"port\":8443,\"scheme\":\"http\",\"listen\":\"127.0.0.1:15102\"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the pod lacks %s", want)
		}
	}
	if c.BaseURLs[0].Listen != "" {
		t.Error("the caller's list has changed")
	}
	pod["spec"].(object)["containers"] = []any{object{"name": "agent", "ports": []any{object{"containerPort": 15102}}}}
	decodeInto := object{}
	decode(t, encode(t, pod), &decodeInto)
	if _, err := inject.Pod(decodeInto, ns, c); err == nil || !strings.Contains(err.Error(), "15102 is the sidecar's") {
		t.Errorf("a port in use: %v", err)
	}
	for _, bad := range []inject.BaseURL{
		{Env: "X", Listen: "0.0.0.0:15100"}, {Env: "X", Listen: "15100"}, {Env: "X", Listen: "127.0.0.1:15002"},
		{Env: "X", Listen: "127.0.0.1:80"}, {Env: "X", Scheme: "ftp"}, {Env: "X", Path: "v1"}, {Env: "HTTPS_PROXY"},
	} {
		c := config()
		c.BaseURLs = []inject.BaseURL{bad}
		if _, err := inject.Pod(pod, ns, c); !errors.Is(err, inject.ErrConfig) {
			t.Errorf("%+v: %v", bad, err)
		}
		if c.Nonce = ""; !errors.Is(c.Check(), inject.ErrConfig) {
			t.Errorf("%+v: Check finds nothing", bad)
		}
	}
}
