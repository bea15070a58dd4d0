package audit_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
)

// Every document of a bundle is in one of its fields, or counted as left out,
// and no field is longer than an event's may be.
func TestBundleFields(t *testing.T) {
	for _, n := range []int{0, 1, 17, 18, 40, 24 * 20, 5000} {
		list := make([]string, n)
		for i := range list {
			list[n-1-i] = fmt.Sprintf("AccessPolicy team/p%04d 1 %s", i, strings.Repeat("d", 64+i%40))
		}
		given := slices.Clone(list)
		f := audit.BundleFields("v1", list)
		if !slices.Equal(list, given) {
			t.Fatal("the caller's list is another one now")
		}
		var all []string
		for i := 1; ; i++ {
			key := "documents"
			if i > 1 {
				key += fmt.Sprint(".", i)
			}
			if f[key] == "" {
				break
			}
			all = append(all, strings.Split(f[key], "\n")...)
		}
		left := 0
		if s, ok := f["left_out"]; ok {
			if _, err := fmt.Sscan(s, &left); err != nil || left == 0 {
				t.Errorf("left_out %q", s)
			}
		}
		slices.Sort(given)
		if !slices.Equal(all, given[:len(all)]) || len(all)+left != n || f["count"] != fmt.Sprint(n) || f["version"] != "v1" || left > 0 && len(f) != 24+3 || n <= 400 && left > 0 {
			t.Errorf("%d: %d listed, %d left out, fields %v", n, len(all), left, slices.Sorted(maps.Keys(f)))
		}
		for k, v := range f {
			if len(v) > 2048 {
				t.Errorf("%d: %s has %d bytes", n, k, len(v))
			}
		}
	}
}
