package chart

import (
	"cmp"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files")

// discovery is what API servers of a version tell Helm, as far as the chart
// asks.
var discovery = map[string][]string{
	"1.33": {"--kube-version", "1.33.0"},
	"1.37": {"--kube-version", "1.37.2", "--api-versions", "certificates.k8s.io/v1/ClusterTrustBundle"},
}

var version = regexp.MustCompile(`(?m)^# Kubernetes (.*)$`)

// Every set of values in testdata renders what it did, with both Helms. CRDs
// are left out here; TestCRDs reads them.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d sets of values (%v)", len(files), err)
	}
	var goldens []string
	for _, file := range files {
		golden := strings.TrimSuffix(file, ".values.yaml") + ".golden"
		goldens = append(goldens, golden)
		t.Run(filepath.Base(golden), func(t *testing.T) {
			t.Parallel()
			values, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			m := version.FindSubmatch(values)
			if m == nil {
				t.Fatalf("%s does not begin with its version of Kubernetes", file)
			}
			args := append(discovery[string(m[1])], "--set", "crds.install=false")
			four := objects(t, render(t, string(values), args...))
			out, err := template(t, "helm3", string(values), args...)
			if err != nil {
				t.Fatalf("helm 3: %s", out)
			}
			if three := objects(t, out); three != four {
				t.Errorf("Helm 3 renders something else:\n%s", firstDifference(three, four))
			}
			if *update {
				if err := os.WriteFile(golden, []byte(four), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != four {
				t.Errorf("%s is stale (go test ./test/chart -update):\n%s", golden, firstDifference(string(want), four))
			}
		})
	}
	kept, err := filepath.Glob("testdata/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range kept {
		if !slices.Contains(goldens, f) {
			t.Errorf("%s has no values", f)
		}
	}
}

// objects sorts what was rendered, and drops the chart's version.
func objects(t testing.TB, text string) string {
	t.Helper()
	type named struct{ name, text string }
	var list []named
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if len(o) == 0 {
			continue
		}
		b, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		meta := o["metadata"].(object)
		ns, _ := meta["namespace"].(string)
		list = append(list, named{o["kind"].(string) + " " + ns + "/" + meta["name"].(string), string(b)})
	}
	slices.SortFunc(list, func(a, b named) int { return cmp.Compare(a.name, b.name) })
	var out strings.Builder
	for i, n := range list {
		if i > 0 && list[i-1].name == n.name {
			t.Errorf("%s is rendered twice", n.name)
		}
		out.WriteString("---\n# " + n.name + "\n" + n.text)
	}
	return out.String()
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return strings.Join(x[max(0, i-5):min(len(x), i+3)], "\n") + "\n=== not ===\n" + strings.Join(y[max(0, i-5):min(len(y), i+3)], "\n")
		}
	}
	return "one is longer"
}

// helm lint finds nothing to complain of, with either Helm.
func TestLint(t *testing.T) {
	for _, name := range []string{"helm", "helm3"} {
		files, err := filepath.Glob("testdata/*.values.yaml")
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"lint", chartDir, "--namespace", release, "--strict"}
		for _, f := range files {
			if out, err := helm(t, name, "", append(args, "--values", f)...); err != nil {
				t.Errorf("%s with %s: %s", name, f, out)
			}
		}
	}
}

// Mistakes in values are refused with the field's name.
func TestSchema(t *testing.T) {
	for _, c := range []struct{ name, values, field, why string }{
		{"unknown field", "control: {replica: 3}", "/control", "replica"},
		{"unknown section", "webhooks: {}", "", "webhooks"},
		{"wrong type", "control: {replicas: two}", "/control/replicas", "integer"},
		{"no replica", "control: {replicas: 0}", "/control/replicas", "minimum"},
		{"unknown role", "control: {roles: [webhook, audit]}", "/control/roles/1", "webhook"},
		{"unknown place of checkpoints", "audit: {checkpoints: {sinks: [{name: a, type: s3, bucket: b}]}}", "/audit/checkpoints/sinks/0/type", "objectLock"},
		{"signer without key", "audit: {checkpoints: {sinks: [{name: a, type: witness, url: 'https://w.example'}]}}", "/audit/checkpoints/sinks/0", "key"},
		{"claim of a witness", "audit: {checkpoints: {sinks: [{name: a, type: witness, url: 'https://w.example', key: k, claim: c}]}}", "/audit/checkpoints/sinks/0", "directory"},
		{"a path out of the claim", "audit: {checkpoints: {sinks: [{name: a, type: directory, claim: c, path: ../x}]}}", "/audit/checkpoints/sinks/0/path", "not"},
		{"an absolute path in a claim", "audit: {checkpoints: {sinks: [{name: a, type: directory, claim: c, path: /x}]}}", "/audit/checkpoints/sinks/0/path", "not"},
		{"roots of a folder", "audit: {checkpoints: {sinks: [{name: a, type: directory, path: /x, caFile: /y}]}}", "/audit/checkpoints/sinks/0", "witness"},
		{"no place for a folder", "audit: {checkpoints: {sinks: [{name: a, type: directory}]}}", "/audit/checkpoints/sinks/0", "path"},
		{"three writers of a file", "audit: {replicas: 3}", "audit.replicas", "PostgreSQL"},
		{"unknown sink", "audit: {sinks: [{name: a, type: kafka}]}", "/audit/sinks/0", "otlp"},
		{"field that no sink has", "audit: {sinks: [{name: a, type: otlp, adress: 'a:1'}]}", "/audit/sinks/0", "adress"},
		{"no role", "control: {roles: []}", "/control/roles", "min"},
		{"low port", "control: {ports: {grpc: 80}}", "/control/ports/grpc", "1,024"},
		{"tag in a digest", "sidecar: {image: {digest: v1}}", "/sidecar/image/digest", "pattern"},
		{"pull policy", "sidecar: {image: {pullPolicy: Sometimes}}", "/sidecar/image/pullPolicy", "one of"},
		{"image with a space", `sidecar: {acceptedImages: ["a b"]}`, "/sidecar/acceptedImages/0", "pattern"},
		{"plain issuer", "issuerURL: http://issuer.example", "/issuerURL", "pattern"},
		{"issuer with a slash", "issuerURL: https://issuer.example/", "/issuerURL", "pattern"},
		{"long time-out", "webhook: {timeoutSeconds: 60}", "/webhook/timeoutSeconds", "maximum"},
		{"hostPath", "guards: {hostPath: none}", "/guards/hostPath", "nodeSecrets"},
		{"CEL in a user's name", `guards: {statusWriters: ["x' || true || '"]}`, "/guards/statusWriters/0", "pattern"},
		{"CEL in a label of namespaces", `guards: {frozenNamespaceLabels: ["a'"]}`, "/guards/frozenNamespaceLabels/0", "pattern"},
		{"label in two lines", `guards: {frozenLabels: ["a\nb"]}`, "/guards/frozenLabels/0", "pattern"},
		{"all secrets", "broker: {secrets: [{namespace: a, names: []}]}", "/broker/secrets/0/names", "min"},
		{"no namespace", "broker: {secrets: [{names: [a]}]}", "/broker/secrets/0", "namespace"},
		{"argument", "control: {extraArgs: [leader-elect]}", "/control/extraArgs/0", "pattern"},
		{"registry", "registry: mirror.example/", "/registry", "pattern"},
		{"kubelet's port", "control: {hostNetwork: true}", "control.ports.webhook", "kubelet"},
		{"newer API", "clusterTrustBundle: true", "clusterTrustBundle", "Kubernetes 1.37"},
		{"same ports", "control: {ports: {grpc: 8444}}", "control.ports", "same"},
		{"the relay's port twice", "control: {ports: {relay: 8443}}", "control.ports", "same"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"helm", "helm3"} {
				out, err := template(t, name, c.values)
				if err == nil || !strings.Contains(out, c.field) || !strings.Contains(out, c.why) {
					t.Errorf("%s: %v, %s; want %q and %q", name, err, out, c.field, c.why)
				}
			}
		})
	}
	if out, err := helm(t, "helm", "", "template", "attache", chartDir, "--namespace", "default", "--kube-version", "1.37.2"); err == nil || !strings.Contains(out, "namespace of its own") {
		t.Errorf("in the namespace default: %v, %s", err, out)
	}
	if out, err := helm(t, "helm", "", "template", "attache", chartDir, "--namespace", release, "--kube-version", "1.32.9"); err == nil || !strings.Contains(out, "1.33") {
		t.Errorf("on Kubernetes 1.32: %v, %s", err, out)
	}
	if out, err := helm(t, "helm", "", "template", "attache", chartDir, "--namespace", release, "--kube-version", "1.33.5-gke.100"); err != nil {
		t.Errorf("on a vendor's Kubernetes: %s", out)
	}
}

// CRDs are those of the folder, to be kept, and only if asked for.
func TestCRDs(t *testing.T) {
	files, err := filepath.Glob(chartDir + "/files/crds/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d CRDs (%v)", len(files), err)
	}
	out := render(t, "")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var want object
		if err := yaml.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, doc := range strings.Split(out, "\n---\n") {
			var o object
			if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
				t.Fatal(err)
			}
			meta, _ := o["metadata"].(object)
			if o["kind"] != "CustomResourceDefinition" || meta["name"] != want["metadata"].(object)["name"] {
				continue
			}
			found = true
			notes := meta["annotations"].(object)
			if notes["helm.sh/resource-policy"] != "keep" {
				t.Errorf("%s: helm would remove it, and all objects of its kind", f)
			}
			delete(notes, "helm.sh/resource-policy")
			a, _ := yaml.Marshal(want)
			b, _ := yaml.Marshal(o)
			if string(a) != string(b) {
				t.Errorf("%s: %s", f, firstDifference(string(a), string(b)))
			}
		}
		if !found {
			t.Errorf("%s is not rendered", f)
		}
	}
	if strings.Contains(render(t, "crds: {install: false}"), "CustomResourceDefinition") {
		t.Error("CRDs are rendered that nobody asked for")
	}
}

// What is written by hand in the chart says what the code says.
func TestGuardsSpeakOfWhatInjectionAdds(t *testing.T) {
	pod := injected(t, "transparent")
	var containers, volumes []string
	for _, c := range pod["spec"].(object)["initContainers"].([]any) {
		if n := c.(object)["name"].(string); n != "setup" {
			containers = append(containers, n)
		}
	}
	for _, v := range pod["spec"].(object)["volumes"].([]any) {
		volumes = append(volumes, v.(object)["name"].(string))
	}
	text, err := os.ReadFile(chartDir + "/templates/guards/_guards.tpl")
	if err != nil {
		t.Fatal(err)
	}
	list := func(name string) []string {
		m := regexp.MustCompile(`define "attache.` + name + `" -}}\[(.*?)\]`).FindSubmatch(text)
		var names []string
		for _, n := range strings.Split(string(m[1]), ", ") {
			names = append(names, strings.Trim(n, "'"))
		}
		slices.Sort(names)
		return names
	}
	slices.Sort(containers)
	slices.Sort(volumes)
	if got := list("ownContainers"); !slices.Equal(got, containers) {
		t.Errorf("containers: the chart has %v, injection %v", got, containers)
	}
	if got := list("ownVolumes"); !slices.Equal(got, volumes) {
		t.Errorf("volumes: the chart has %v, injection %v", got, volumes)
	}
	source, err := os.ReadFile("../../webhook/inject/guard.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hostSecrets", "strongCapabilities"} {
		m := regexp.MustCompile(`(?s)var ` + name + ` = \[\]string\{(.*?)\}`).FindSubmatch(source)
		var want []string
		for _, q := range regexp.MustCompile(`"([^"]+)"`).FindAllSubmatch(m[1], -1) {
			want = append(want, string(q[1]))
		}
		slices.Sort(want)
		if got := list(name); !slices.Equal(got, want) {
			t.Errorf("%s: the chart has %v, injection %v", name, got, want)
		}
	}
	private := slices.DeleteFunc(volumes, func(v string) bool { return v == "attache-trust" })
	if got := list("privateVolumes"); !slices.Equal(got, private) {
		t.Errorf("private volumes: the chart has %v, injection %v", got, private)
	}
}

// Every binding names a policy that is there: a wrong name does nothing, and
// says nothing. Every policy fails closed and is bound to deny.
func TestBindings(t *testing.T) {
	out := render(t, "")
	guards := policies(t, out)
	// The one that keeps Kubernetes reading parameters guards nothing.
	const anchor = "attache-parameters"
	if guards[anchor] == nil {
		t.Errorf("%s is gone: after an uninstall the next guards see old parameters", anchor)
	}
	delete(guards, anchor)
	bound := 0
	for _, doc := range strings.Split(out, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if o["kind"] != "ValidatingAdmissionPolicyBinding" {
			continue
		}
		spec := o["spec"].(object)
		if spec["policyName"] == anchor {
			continue
		}
		policy := guards[spec["policyName"].(string)]
		if policy == nil {
			t.Errorf("binding %v is of no policy", o["metadata"])
			continue
		}
		bound++
		if a := spec["validationActions"].([]any); len(a) != 1 || a[0] != "Deny" {
			t.Errorf("%s: actions %v", spec["policyName"], a)
		}
		hasParams := policy["spec"].(object)["paramKind"] != nil
		if (spec["paramRef"] != nil) != hasParams {
			t.Errorf("%s: parameters in one of policy and binding alone", spec["policyName"])
		}
		if hasParams && spec["paramRef"].(object)["parameterNotFoundAction"] != "Deny" {
			t.Errorf("%s: allows what it cannot judge", spec["policyName"])
		}
	}
	if bound != len(guards) || bound != 10 {
		t.Errorf("%d policies, %d bindings; want 10", len(guards), bound)
	}
	for name, p := range guards {
		if p["spec"].(object)["failurePolicy"] != "Fail" {
			t.Errorf("%s fails open", name)
		}
	}
}
