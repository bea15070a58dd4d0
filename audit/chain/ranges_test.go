package chain_test

import (
	"testing"

	"github.com/attache-dev/attache/audit/chain"
)

func TestRangesAreOneToOne(t *testing.T) {
	for _, text := range []string{"", "1", "4-6,9", "1-2,4,6-18446744073709551615"} {
		l, err := chain.ParseRanges(text)
		if err != nil || chain.FormatRanges(l) != text {
			t.Errorf("%q was read as %v, %v", text, l, err)
		}
	}
	for _, bad := range []string{"0", "-", "3-3", "5-4", "4-6,7", "4-6,6", "9,4-6", "4,", ",4", " 4", "04", "4-", "x", "4-6-8"} {
		if l, err := chain.ParseRanges(bad); err == nil {
			t.Errorf("%q was read as %v", bad, l)
		}
	}
}

func FuzzParseRanges(f *testing.F) {
	f.Add("4-6,9")
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := chain.ParseRanges(text); err == nil && chain.FormatRanges(l) != text {
			t.Errorf("%q was read as %v", text, l)
		}
	})
}
