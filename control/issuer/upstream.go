package issuer

import (
	"context"
	"fmt"

	"github.com/attache-dev/attache/identity/issuer"
)

// Upstream is the authority of the trust domain where it is not our own.
type Upstream interface {
	// Intermediate is the authority that signs now; nil: none yet.
	Intermediate() *issuer.Intermediate
	// PublishJWT makes a key known to the trust domain. Publishing it again
	// changes nothing.
	PublishJWT(context.Context, issuer.PublicKey) error
}

// publishJWT tells upstream of the keys that it does not know yet.
func (k *Keys) publishJWT(ctx context.Context, s *issuer.Schedule) error {
	if k.cfg.Upstream == nil {
		return nil
	}
	keys, err := s.JWTKeys(k.issuing)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if k.told[key.ID].Equal(key.Expires) {
			continue
		}
		if err := k.cfg.Upstream.PublishJWT(ctx, key); err != nil {
			return fmt.Errorf("key %s: %w", key.ID, err)
		}
		k.told[key.ID] = key.Expires
	}
	return nil
}
