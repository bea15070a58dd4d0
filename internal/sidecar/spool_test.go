package sidecar

import (
	"errors"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/internal/podspool"
)

// The spool has the size that injection says, or less where the documents say
// so: never more than its volume.
func TestSpoolOfThePodsSize(t *testing.T) {
	for _, c := range []struct {
		name, env, spec string
		want            int64
	}{
		{"default", "", "", podspool.DefaultSpool},
		{"larger than the default of audit.maxBytes", "8589934592", "", 8 << 30},
		{"smaller by the documents", "8589934592", "audit: {maxBytes: 67108864}", 64 << 20},
		{"larger by the documents", "", "audit: {maxBytes: 1073741824}", podspool.DefaultSpool},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := api.ParseFor(api.PlacePod, "config.yaml", []byte("apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: default}\nspec: {"+c.spec+"}\n"))
			if err != nil {
				t.Fatal(err)
			}
			var o Options
			if err := o.FromEnv(func(name string) string { return map[string]string{envSpoolBytes: c.env}[name] }); err != nil {
				t.Fatal(err)
			}
			_ = o.Check()
			got := spoolOptions(b.Config.Spec.Audit, o.SpoolBytes)
			if got.MaxBytes != c.want || got.SegmentBytes > c.want/4 || got.KeepBytes > c.want/2 {
				t.Errorf("%d bytes in segments of %d, %d kept; want %d", got.MaxBytes, got.SegmentBytes, got.KeepBytes, c.want)
			}
		})
	}
	for _, bad := range []string{"1", "-1", "x", "999999999999", "192Mi"} {
		var o Options
		if err := o.FromEnv(func(name string) string { return map[string]string{envSpoolBytes: bad}[name] }); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
