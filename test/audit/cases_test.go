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

// The times of pages are read out of what the test prints.
func TestBetween(t *testing.T) {
	for line, want := range map[string]int{"    speed_test.go:64: /?p=30d   median   91 ms, 95 %  283 ms, worst  283 ms": 283, "95 % ms": -1, "95 %  12": -1, "": -1} {
		n, ok := between(line, "95 %", "ms")
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %v", line, n, ok)
		}
	}
}
