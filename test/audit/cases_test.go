package main

import (
	"strings"
	"testing"
)

// A case whose tests do not exist is no passed one.
func TestCaseWithoutTestsFails(t *testing.T) {
	const pkg = "github.com/attache-dev/attache/internal/peercred"
	r := &run{dir: t.TempDir(), short: true}
	if err := goTest(pkg, "Test.*")(t.Context(), r); err != nil {
		t.Errorf("a package with tests: %v", err)
	}
	for _, name := range []string{".", "TestThatIsNot"} {
		if err := goTest(pkg, name)(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no test of") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
