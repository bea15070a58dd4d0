package policy_test

import (
	"os"
	"strings"
	"testing"
)

// TestDocumentedConditions compiles every condition of docs/policy.md.
func TestDocumentedConditions(t *testing.T) {
	doc, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(doc)) {
		expr, ok := strings.CutPrefix(strings.TrimSpace(line), "when: ")
		if !ok {
			continue
		}
		n++
		compile(t, accessPolicy("p", with(allow("r", "a.test"), when(strings.Trim(expr, "'")))))
	}
	if n < 5 {
		t.Errorf("found %d conditions", n)
	}
}
