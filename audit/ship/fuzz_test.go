package ship

import (
	"os"
	"testing"

	"github.com/attache-dev/attache/audit"
)

// FuzzCursor holds that whatever stands in a cursor's file, what comes are lines
// of the spool in their order up to its end: at worst from the beginning.
func FuzzCursor(f *testing.F) {
	s, err := audit.Open(audit.Options{Dir: f.TempDir(), SegmentBytes: 8 << 10})
	if err != nil {
		f.Fatal(err)
	}
	for range 60 {
		if err := s.Event("test.event", map[string]string{"pad": "0123456789012345678901234567890123456789012345678901234567890123456789"}); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	last := uint64(62) // with the open and the close
	for _, text := range []string{
		"", "{}", `{"segment":1,"offset":0,"line":0}`, `{"segment":2,"offset":17,"line":3}`, `{"segment":99,"offset":1,"line":1}`,
		`{"segment":1,"offset":99999999,"line":1}`, `{"segment":-1}`, `{"segment":1,"offset":9223372036854775807}`, "\x00\x00\x00",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(cursorPath(s.Dir(), "x"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		src, err := FromSpool(s, "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if src.Committed() == src.spool.Durable() {
			return // the very end: nothing is left
		}
		var seq uint64
		for seq < last {
			b, _, err := src.Next(t.Context())
			if err != nil {
				t.Fatalf("cursor %q: after sequence %d: %v", text, seq, err)
			}
			for _, l := range b.Lines {
				if seq != 0 && l.Sequence != seq+1 {
					t.Fatalf("cursor %q: sequence %d after %d", text, l.Sequence, seq)
				}
				seq = l.Sequence
			}
		}
	})
}
