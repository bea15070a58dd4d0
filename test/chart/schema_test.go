package chart

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The schema of the values has that of AttacheConfig below config: a mistake
// there is refused when the chart is rendered, by name, and not found in a log.
func TestConfigSchema(t *testing.T) {
	text, err := os.ReadFile(chartDir + "/files/crds/attache.dev_attacheconfigs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd object
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	version := crd["spec"].(object)["versions"].([]any)[0].(object)
	spec := version["schema"].(object)["openAPIV3Schema"].(object)["properties"].(object)["spec"].(object)
	line, err := json.Marshal(asSchema(spec))
	if err != nil {
		t.Fatal(err)
	}
	const file = chartDir + "/values.schema.json"
	schema, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	place := regexp.MustCompile(`(?m)^    "config": (.*),$`)
	m := place.FindSubmatch(schema)
	if m == nil {
		t.Fatal("values.schema.json has no line for config")
	}
	if *update {
		replaced := place.ReplaceAllLiteralString(string(schema), `    "config": `+string(line)+`,`)
		if err := os.WriteFile(file, []byte(replaced), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(m[1]) != string(line) {
		t.Error("values.schema.json is older than the AttacheConfig: go test ./test/chart -run TestConfigSchema -update")
	}
	for _, c := range []struct{ values, field, why string }{
		{"config: {cluster: {injection: {mode: implicit}}}", "/config/cluster/injection/mode", "explicit"},
		{"config: {cluster: {nameserver: [10.0.0.10]}}", "/config/cluster", "nameserver"},
		{"config: {limits: {maxHeaders: many}}", "/config/limits/maxHeaders", "integer"},
	} {
		if out, err := template(t, "helm", c.values); err == nil || !strings.Contains(out, c.field) || !strings.Contains(out, c.why) {
			t.Errorf("%s: %v, %s; want %q and %q", c.values, err, out, c.field, c.why)
		}
	}
}

// asSchema makes JSON Schema of a resource definition's: without what only the
// API server knows, and with unknown fields refused, which that drops.
func asSchema(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = asSchema(v[i])
		}
		return out
	case object:
		out := object{}
		for k, member := range v {
			switch {
			case k == "description" || k == "format" || strings.HasPrefix(k, "x-kubernetes-"):
			case k == "properties":
				properties := object{}
				for name, p := range member.(object) {
					properties[name] = asSchema(p)
				}
				out[k] = properties
				if v["type"] == "object" && v["additionalProperties"] == nil {
					out["additionalProperties"] = false
				}
			default:
				out[k] = asSchema(member)
			}
		}
		return out
	}
	return v
}
