package sidecar

import (
	"context"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/relay"
)

// Control is who attests the pod and says what it may do. Implementations are
// safe for concurrent use.
type Control interface {
	// Attest returns when the pod has an identity, or ctx ends.
	Attest(ctx context.Context) (identity.Source, error)
	// Workload is what was attested last.
	Workload() *identity.Workload
	// Follow hands policy and revocations over until ctx ends.
	Follow(ctx context.Context, f Follower) error
	// Stale says why what Follow gave last may not be used any more, nil while
	// it may. It is asked for each call.
	Stale() error
}

// Broker is a [Control] that also mints where a root is out of our reach.
type Broker interface {
	Minter(v1alpha1.CredentialProvider) (minting.Minter, error)
	// Relay is where credentials are put on that never come here.
	Relay() relay.Target
}

// Recorder is a [Control] that also takes records; without any the sink is nil.
type Recorder interface {
	Records() (ship.Sink, error)
}

// Follower takes what a [Control] says. The functions are not called
// concurrently.
type Follower struct {
	// Apply puts documents in force. With an error the last ones stay.
	Apply func(*api.Bundle) error
	// Rejected is told of documents that Apply never saw, and by nil that
	// the documents are good again.
	Rejected func(error)
	// Revoke ends credentials before it returns.
	Revoke func(Revocation)
}

// Revocation ends credentials that match every field given.
type Revocation struct {
	ID                            string
	Provider, Handle, Task, Owner string
	All                           bool      // of this pod: calls under way end, too
	Before                        time.Time // only credentials minted before it; zero: all
	Reason                        string
}
