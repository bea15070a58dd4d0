package trail

import (
	"context"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity/issuer"
)

// Keys records which keys came, which began to sign, and which went, of those
// that this replica wrote. It fits issuer.KeysConfig.Changed of
// control/issuer.
func (t *Trail) Keys(ctx context.Context, before, after []issuer.KeyInfo) {
	if t == nil {
		return
	}
	had := map[string]bool{}
	for _, k := range before {
		had[k.Use+k.ID] = true
	}
	has := map[string]bool{}
	first := map[string]bool{} // uses that had no key
	for _, k := range before {
		first[k.Use] = true
	}
	for _, k := range after {
		has[k.Use+k.ID] = true
		if had[k.Use+k.ID] {
			continue
		}
		name := audit.EventKeyCreated
		if first[k.Use] { // the successor of another
			name = audit.EventKeyRotated
		}
		_ = t.Write(ctx, key(name, k)) // logged and counted there: a key is not taken back for it
	}
	for _, k := range before {
		if !has[k.Use+k.ID] {
			_ = t.Write(ctx, key(audit.EventKeyRetired, k))
		}
	}
}

func key(name string, k issuer.KeyInfo) *audit.Record {
	f := map[string]string{"kind": k.Use, "key_id": k.ID}
	if !k.From.IsZero() {
		f["signs_from"] = k.From.UTC().Format(time.RFC3339)
	}
	return event(name, f)
}
