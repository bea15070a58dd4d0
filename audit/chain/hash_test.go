package chain_test

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit/chain"
)

func TestChainIsWhatItsDocumentSays(t *testing.T) {
	first := sha256.Sum256([]byte("attache.audit.chain/v1\n" + "e1"))
	if chain.First("e1") != chain.Hash(first) {
		t.Error("First is not SHA-256 of its prefix and the epoch")
	}
	next := sha256.Sum256(append(first[:], `{"a":1}`...))
	if got := chain.Next(chain.First("e1"), []byte(`{"a":1}`)); got != chain.Hash(next) {
		t.Errorf("Next = %v, want %v", got, chain.Hash(next))
	}
	if chain.First("e1") == chain.First("e2") {
		t.Error("two epochs begin with the same hash")
	}
}

func TestHashTextIsOneToOne(t *testing.T) {
	h := chain.First("epoch")
	text := h.String()
	if len(text) != chain.TextSize {
		t.Fatalf("text has %d characters, want %d", len(text), chain.TextSize)
	}
	got, err := chain.ParseHash(text)
	if err != nil || got != h {
		t.Fatalf("ParseHash(%q) = %v, %v", text, got, err)
	}
	// 43 characters hold 258 bits: the last two must be zero.
	last := text[len(text)-1]
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	other := text[:len(text)-1] + string(digits[strings.IndexByte(digits, last)|3])
	for _, bad := range []string{"", text[1:], text + "A", text[:42] + "=", text[:42] + "+", other, text[:40] + "\n" + text[41:]} {
		if _, err := chain.ParseHash(bad); err == nil {
			t.Errorf("ParseHash(%q) was taken", bad)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	h, line := chain.First("e"), []byte(strings.Repeat("x", 900))
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		h = chain.Next(h, line)
	}
}
