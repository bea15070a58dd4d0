package sidecar

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
)

// What was minted before a revocation is revoked, also where our clock is ahead
// and notes a later time.
func TestRevocationByAnotherClock(t *testing.T) {
	at := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	pb := &controlpb.Revocation{Id: "r", Provider: "model", NotBefore: timestamppb.New(at)}
	for skew, want := range map[time.Duration]time.Time{0: at, -20 * time.Second: at.Add(20 * time.Second), 20 * time.Second: at} {
		if got := revocation(pb, skew).Before; !got.Equal(want) {
			t.Errorf("the control plane is %s ahead: got %s, want %s", skew, got, want)
		}
	}
}

// A workload without any documents has a policy: nothing is allowed.
func TestNoDocuments(t *testing.T) {
	b, err := api.ParseFor(api.PlacePod, "bundle", []byte(noDocuments))
	if err != nil || len(b.Policies) != 0 {
		t.Errorf("%+v, %v", b, err)
	}
}
