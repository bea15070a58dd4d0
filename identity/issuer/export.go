package issuer

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"

	"github.com/attache-dev/attache/internal/replace"
)

// Export writes the discovery document and the JWKS of the running issuer
// below dir, for a static web host that stands at the issuer's URL.
//
// Keys of [Memory] die with the process and are followed by others at the next
// rotation: such an export verifies this process's tokens only until then. For
// a federation that lasts, hold the key outside, as with [SSHAgent].
func (i *Issuer) Export(ctx context.Context, dir string) error {
	return Export(dir, i.cfg.URL, i.Keys(ctx))
}

// Export writes DIR/.well-known/openid-configuration and DIR/keys for an
// issuer at issuerURL that signs with the private halves of keys. Files are
// replaced atomically, the keys first.
func Export(dir, issuerURL string, keys jose.JSONWebKeySet) error {
	if err := CheckURL(issuerURL); err != nil {
		return err
	}
	if len(keys.Keys) == 0 {
		return errors.New("issuer: no keys to export")
	}
	clean := jose.JSONWebKeySet{}
	for _, k := range keys.Keys {
		pub, ok := k.Key.(*ecdsa.PublicKey)
		if !ok { // above all not a private key
			return fmt.Errorf("issuer: key %q is a %T; only public ECDSA keys are exported", k.KeyID, k.Key)
		}
		j, err := publicJWK(pub)
		if err != nil {
			return fmt.Errorf("issuer: key %q: %w", k.KeyID, err)
		}
		clean.Keys = append(clean.Keys, j)
	}
	for _, f := range []struct {
		path string
		doc  any
	}{{KeysPath, clean}, {DiscoveryPath, newDiscovery(issuerURL)}} {
		b, err := encode(f.doc)
		if err != nil {
			return fmt.Errorf("issuer: encode %s: %w", f.path, err)
		}
		if err := replaceFile(filepath.Join(dir, filepath.FromSlash(f.path)), append(b, '\n')); err != nil {
			return fmt.Errorf("issuer: export: %w", err)
		}
	}
	return nil
}

// replaceFile writes a world-readable file in one step: a reader sees the old
// or the new content.
func replaceFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // published on the web
		return err
	}
	return replace.File(path, b, replace.How{Mode: 0o644, Durability: replace.Whole})
}
