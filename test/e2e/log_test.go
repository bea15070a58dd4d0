package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The log is not the agent's to fill, and with --log-file not its to read.
func TestLogFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", strings.Replace(newOrigin(t).allow(""), "hosts: ["+apiHost, "hosts: [nowhere.invalid, "+apiHost, 1))
	const agent = "for n in 1 2 3 4 5; do curl -s -o /dev/null https://nowhere.invalid/; done; "
	if r := w.run("--", "sh", "-c", agent+"true").must(t); strings.Count(r.all(), "call refused") != 1 {
		t.Errorf("standard error: %s", r.all())
	}
	file := filepath.Join(w.dir, "attache.log")
	r := w.run("--log-file", file, "--", "sh", "-c", agent+"cat "+file+"; echo over > "+file+"; true").must(t)
	if strings.Contains(r.all(), "call refused") {
		t.Errorf("the agent reads the log: %s", r.all())
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Count(string(b), "call refused") != 1 || strings.Contains(string(b), "over") {
		t.Errorf("the log: %s, %v", b, err)
	}
}
