package main

import (
	"slices"
	"strings"
	"testing"
)

func TestExclusionsAreNoFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"audit search -outcome:ok host:x", "audit search host:x -- -outcome:ok"},
		{"audit search -n 5 -outcome:ok -o json -method:GET", "audit search -n 5 -o json -- -outcome:ok -method:GET"},
		{"audit search host:x -o json", "audit search host:x -o json"},
		{"audit tail -- -outcome:ok", "audit tail -- -outcome:ok"},
		{"audit tail -method:GET -- -outcome:ok", "audit tail -- -outcome:ok -method:GET"},
		{"run -- curl -x:y", "run -- curl -x:y"},
		{"run --config d agent audit -x:y", "run --config d agent audit -x:y"},
		{"", ""},
	} {
		if got := exclusionsLast(strings.Fields(tt.args)); !slices.Equal(got, strings.Fields(tt.want)) {
			t.Errorf("%s: got %q, want %s", tt.args, got, tt.want)
		}
	}
}
