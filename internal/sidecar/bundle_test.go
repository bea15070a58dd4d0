package sidecar

import (
	"testing"

	"github.com/attache-dev/attache/api"
)

// A workload without any documents has a policy: nothing is allowed.
func TestNoDocuments(t *testing.T) {
	b, err := api.ParseFor(api.PlacePod, "bundle", []byte(noDocuments))
	if err != nil || len(b.Policies) != 0 {
		t.Errorf("%+v, %v", b, err)
	}
}
