package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The node on the PATH is asked for its version, and may have been put there
// by an agent of an earlier run: it must not run outside the sandbox.
func TestPlantedNode(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	key := w.file("vendor.key", "file-key-0123456789\n")
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [`+o.destination()+`]
  apiKey: {file: `+key+`}
`)
	w.write("policy.yaml", o.allow(", credential: {provider: vendor}"))
	loot := filepath.Join(w.dir, "work", "loot")
	node := w.file("work/node", "#!/bin/sh\n{ echo began; cat "+key+"; ls "+w.state+"; } >"+loot+" 2>&1\necho v22.21.0\n")
	if err := os.Chmod(node, 0o700); err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "PATH="+filepath.Dir(node)+":"+os.Getenv("PATH"))
	r := w.run("--", "sh", "-c", "echo proxy=$NODE_USE_ENV_PROXY").must(t)
	if !strings.Contains(r.stdout, "proxy=1") {
		t.Errorf("node's version was not asked for: %s", r.all())
	}
	got, err := os.ReadFile(loot)
	if err != nil || !strings.HasPrefix(string(got), "began\n") {
		t.Fatalf("the planted node did not run: %q, %v", got, err)
	}
	for _, secret := range []string{"file-key", "audit"} {
		if strings.Contains(string(got), secret) {
			t.Errorf("the planted node reads %q: %s", secret, got)
		}
	}
}
