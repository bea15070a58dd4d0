package release

import (
	"slices"
	"testing"

	"github.com/attache-dev/attache/internal/oci"
)

// The sidecar's image has one program; the control plane's has the one that
// reads the store beside it, too.
func TestPrograms(t *testing.T) {
	var got []string
	for _, i := range Images("registry.example", "1", "amd64", "bin") {
		for _, f := range i.Files {
			got = append(got, i.Entrypoint[0]+" "+f.Path+" "+f.Source)
		}
	}
	want := []string{"/attache-sidecar /attache-sidecar bin/attache-sidecar", "/attache-control /attache-control bin/attache-control", "/attache-control /attache bin/attache"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if i := Images("r", "1", "amd64", "bin"); i[0].Files[0].Capabilities == nil || slices.ContainsFunc(i[1].Files, func(f oci.File) bool { return f.Capabilities != nil }) {
		t.Error("the sidecar's program alone has a file capability")
	}
}
