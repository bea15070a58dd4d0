package issuer

import (
	"bytes"
	"testing"
)

// FuzzDER: a signature from a signer outside either has the one DER form or is
// refused.
func FuzzDER(f *testing.F) {
	f.Add([]byte{0x30, 6, 2, 1, 1, 2, 1, 2})
	f.Add([]byte{0x30, 6, 2, 1, 0xff, 2, 1, 2})
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, s, err := parseDER(b)
		if err != nil {
			return
		}
		out, err := marshalDER(r, s)
		if err != nil || !bytes.Equal(out, b) {
			t.Errorf("%x became %x (%v)", b, out, err)
		}
	})
}
