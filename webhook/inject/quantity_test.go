package inject

import "testing"

// Amounts are written as Kubernetes leaves them: with a suffix that keeps
// them whole, k8s.io/apimachinery/pkg/api/resource.
func TestQuantity(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", "1": "1", "0.5": "500m", ".5": "500m", "5.": "5", "+1": "1", "1000m": "1", "1500m": "1500m",
		"1000": "1k", "1024": "1Ki", "1024Ki": "1Mi", "1024Mi": "1Gi", "1.5Gi": "1536Mi", "200M": "200M", "1e3": "1k", "1E3": "1k",
		"9P": "8789062500000Ki", "12e-1": "1200m", "1u": "1m", "1n": "1m", "1001u": "2m", "0.0001": "1m", "500000000": "500M",
	} {
		q, err := parseQuantity(in)
		if err != nil || q.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, q, err, want)
		}
	}
	for _, in := range []string{
		"", "x", "-1", "1x", "1 Mi", "1.2.3", "Mi", "1ki", "1K", "1e", "1e99", "1e999999999", "1E", "9Ei", "1+", "++1", "0x10", "1_000", "1/2", "NaN", "e3",
		"999999999999999999999999999999999999",
	} {
		if q, err := parseQuantity(in); err == nil {
			t.Errorf("%q: got %s, want an error", in, q)
		}
	}
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"100m", "1.5Gi", "1e3", "12e-1", "200M", "1n", "+.5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := parseQuantity(s)
		if err != nil {
			return
		}
		if again, err := parseQuantity(q.String()); q < 0 || err != nil || again != q {
			t.Fatalf("%q is %d, written %s, read %d, %v", s, q, q, again, err)
		}
	})
}

// A share stays in the LimitRange, and its request below its limit.
func TestFit(t *testing.T) {
	for name, tt := range map[string]struct {
		bounds
		in, want share
	}{
		"free":       {bounds{unit: 1}, share{50, 1000}, share{50, 1000}},
		"max":        {bounds{unit: 1, max: 400}, share{500, 1000}, share{400, 400}},
		"min":        {bounds{unit: 1, min: 100}, share{50, 60}, share{100, 100}},
		"ratio":      {bounds{unit: 1, ratio: 3000}, share{50, 1000}, share{334, 1000}},
		"ratio of 1": {bounds{unit: 1, ratio: 1000}, share{50, 1000}, share{1000, 1000}},
		"bytes":      {bounds{unit: 1000, ratio: 3000}, share{1000, 10000}, share{4000, 10000}},
		"all":        {bounds{unit: 1, min: 100, max: 400, ratio: 2000}, share{50, 1000}, share{200, 400}},
	} {
		if got := tt.fit(tt.in); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}
