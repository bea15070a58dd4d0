package broker_test

import (
	"testing"

	"go.yaml.in/yaml/v3"
)

func decodeYAML(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
