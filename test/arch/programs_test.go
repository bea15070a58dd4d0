package arch

import (
	"os/exec"
	"strings"
	"testing"
)

// TestTheSidecarStaysSmall: what runs beside every agent has no store, no pages,
// no client of the Kubernetes API, and no code of the admission server.
func TestTheSidecarStaysSmall(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"cmd/attache-sidecar").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d packages: the check is broken", len(deps))
	}
	for _, p := range deps {
		for _, no := range []string{
			module + "audit/store", module + "audit/ui", module + "audit/checkpoint", module + "webhook", module + "control/collector",
			"k8s.io/client-go", "modernc.org/sqlite", "github.com/jackc/pgx", "github.com/aws/aws-sdk-go-v2/service/s3",
		} {
			if p == no || strings.HasPrefix(p, no+"/") {
				t.Errorf("cmd/attache-sidecar links %s", p)
			}
		}
	}
}
