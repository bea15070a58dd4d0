package trail

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
)

func plain(s string) []string { return strings.Split(s, "\n") }

func TestDiff(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want string }{
		"equal":   {"a\n", "a\n", ""},
		"new":     {"", "a\nb\n", "@@ -1,0 +1,2 @@\n+a\n+b\n"},
		"gone":    {"a\n", "", "@@ -1,1 +1,0 @@\n-a\n"},
		"changed": {"1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		"between": {"a\nb\nc\n", "a\nc\nd\n", "@@ -1,3 +1,3 @@\n a\n-b\n c\n+d\n"},
	} {
		if got := diff(c.before, c.after, plain); got != c.want {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
	var r audit.Redactor
	if got := diff("a: 1\nb: |+\n  x\n\n", "a: 2\nb: |+\n  x\n\n", r.DocumentLines); !strings.Contains(got, "+a: 2") || strings.Contains(got, audit.Mask) {
		t.Errorf("a text that ends with an empty line: got\n%s", got)
	}
	large := diff(strings.Repeat("a line\n", 9000), strings.Repeat("b line\n", 9000), plain)
	if len(large) > maxDiff || !strings.HasSuffix(large, "…\n") {
		t.Errorf("%d bytes", len(large))
	}
}

// TestDiffShowsNoMaskedLine: a line that both texts have, and one of them masks.
func TestDiffShowsNoMaskedLine(t *testing.T) {
	mask := func(s string) []string {
		out := strings.Split(s, "\n")
		for i, l := range out {
			if strings.HasPrefix(s, "secret") && strings.HasPrefix(l, " ") {
				out[i] = " ***"
			}
		}
		return out
	}
	for _, c := range [][3]string{
		{"secret:\n a\nx\n b\n", "open:\n a\ny\n b\n", "@@ -1,4 +1,4 @@\n-secret:\n+open:\n  ***\n-x\n+y\n  ***\n"},
		{"open:\n a\n", "secret:\n a\n", "@@ -1,2 +1,2 @@\n-open:\n+secret:\n  ***\n"},
		{"secret:\n a\n", "secret:\n b\n", "@@ -1,2 +1,2 @@\n secret:\n- ***\n+ ***\n"},
	} {
		if got := diff(c[0], c[1], mask); got != c[2] {
			t.Errorf("got\n%s", got)
		}
	}
	if got := diff("a\n", "a\nb\n", func(string) []string { return nil }); got != "@@ -1,1 +1,2 @@\n ***\n+***\n" {
		t.Errorf("a mask that loses lines shows\n%s", got)
	}
}
