package podspool_test

import (
	"errors"
	"testing"

	"github.com/attache-dev/attache/internal/podspool"
)

func TestParse(t *testing.T) {
	const mi = 1 << 20
	for _, c := range []struct {
		name, spool, volume, ephemeral string
		want                           podspool.Sizes
		wrong                          string // field
	}{
		{"defaults", "", "", "", podspool.Sizes{Spool: 192 * mi, Volume: 256 * mi, Ephemeral: 320 * mi}, ""},
		{"a larger spool", "1Gi", "", "", podspool.Sizes{Spool: 1024 * mi, Volume: 1152 * mi, Ephemeral: 1216 * mi}, ""},
		{"all three", "64Mi", "104Mi", "105Mi", podspool.Sizes{Spool: 64 * mi, Volume: 104 * mi, Ephemeral: 105 * mi}, ""},
		{"a larger volume", "", "1Gi", "", podspool.Sizes{Spool: 192 * mi, Volume: 1024 * mi, Ephemeral: 1088 * mi}, ""},
		{"no ephemeral storage", "", "", "0", podspool.Sizes{Spool: 192 * mi, Volume: 256 * mi}, ""},
		{"parts of bytes", "16777216001m", "", "0", podspool.Sizes{Spool: 16*mi + 1, Volume: 81 * mi}, ""},
		{"too small", "1Mi", "", "", podspool.Sizes{}, "spool"},
		{"too large", "17Gi", "", "", podspool.Sizes{}, "spool"},
		{"no quantity", "lots", "", "", podspool.Sizes{}, "spool"},
		{"a volume of the spool's size", "64Mi", "64Mi", "", podspool.Sizes{}, "spoolVolume"},
		{"a volume without room for what sinks set aside", "64Mi", "103Mi", "", podspool.Sizes{}, "spoolVolume"},
		{"a spool above the volume", "300Mi", "256Mi", "", podspool.Sizes{}, "spoolVolume"},
		{"a limit of the volume's size", "", "", "256Mi", podspool.Sizes{}, "ephemeralStorage"},
		{"a limit below the volume", "", "1Gi", "512Mi", podspool.Sizes{}, "ephemeralStorage"},
		{"no amount of storage", "", "", "-1", podspool.Sizes{}, "ephemeralStorage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := podspool.Parse(c.spool, c.volume, c.ephemeral)
			var f *podspool.FieldError
			if errors.As(err, &f) != (c.wrong != "") || f != nil && f.Field != c.wrong || got != c.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// Whatever is accepted is in order, so that a full spool evicts no pod.
func FuzzParse(f *testing.F) {
	f.Add("192Mi", "256Mi", "320Mi")
	f.Add("16Gi", "", "0")
	f.Add("9e15", "1n", "x")
	f.Fuzz(func(t *testing.T, spool, volume, ephemeral string) {
		s, err := podspool.Parse(spool, volume, ephemeral)
		if err == nil && (s.Spool < podspool.MinSpool || s.Spool > podspool.MaxSpool || s.Volume < s.Spool+podspool.Aside || s.Ephemeral != 0 && s.Ephemeral <= s.Volume) {
			t.Errorf("%q, %q, %q: %+v", spool, volume, ephemeral, s)
		}
	})
}
