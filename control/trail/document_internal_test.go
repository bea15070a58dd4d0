package trail

import (
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want string }{
		"equal":   {"a\n", "a\n", ""},
		"new":     {"", "a\nb\n", "@@ -1,0 +1,2 @@\n+a\n+b\n"},
		"gone":    {"a\n", "", "@@ -1,1 +1,0 @@\n-a\n"},
		"changed": {"1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		"between": {"a\nb\nc\n", "a\nc\nd\n", "@@ -1,3 +1,3 @@\n a\n-b\n c\n+d\n"},
	} {
		if got := diff(c.before, c.after); got != c.want {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
	large := diff(strings.Repeat("a line\n", 9000), strings.Repeat("b line\n", 9000))
	if len(large) > maxDiff || !strings.HasSuffix(large, "…\n") {
		t.Errorf("%d bytes", len(large))
	}
}
