package sidecar

import (
	"bytes"
	"os"

	"github.com/attache-dev/attache/internal/trust"
)

// writeTrust writes the pod's trust bundle, unless it is there: programs read
// it when they like, and what they read must not depend on when we started.
func writeTrust(dir string, caPEM []byte) error {
	want := trust.Files(dir)
	whole := true
	for _, f := range []string{want.PEM, want.TrustStore, want.Preload, want.Wgetrc} {
		if st, err := os.Stat(f); err != nil || st.Size() == 0 {
			whole = false
		}
	}
	if have, err := os.ReadFile(want.CA); err == nil && whole && bytes.Equal(bytes.TrimSpace(have), bytes.TrimSpace(caPEM)) {
		return nil
	}
	_, err := trust.WriteBundle(dir, caPEM)
	return err
}
