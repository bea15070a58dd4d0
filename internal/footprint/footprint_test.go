package footprint

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestPercentFor(t *testing.T) {
	for _, tt := range []struct {
		live, stacks uint64
		want         int
	}{
		{0, 0, 100}, {1 << 20, 0, maxPercent}, {4 << 20, 0, 300}, {4 << 20, 4 << 20, 200}, {heapFloor / 2, 0, 100},
		{12 << 20, 0, minPercent}, {4 << 20, heapFloor, minPercent}, {heapFloor * 2, 0, minPercent},
	} {
		if got := percentFor(tt.live, tt.stacks); got != tt.want {
			t.Errorf("%d MiB live, %d of stacks: got %d, want %d", tt.live>>20, tt.stacks>>20, got, tt.want)
		}
	}
}

// TestLimitFollowsTheHeap: a heap that grows where the percentage has reached
// its end must not meet a limit made for a smaller one.
func TestLimitFollowsTheHeap(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	u := newTuner()
	hold := make([]byte, 2*heapFloor)
	runtime.GC()
	u.tune()
	before := u.limit
	more := make([]byte, 4*heapFloor)
	runtime.GC()
	u.tune()
	if want := 6 * heapFloor; before == 0 || u.percent != minPercent || u.limit < want {
		t.Errorf("limit %d, then %d; want %d at least, at %d %%", before, u.limit, want, u.percent)
	}
	runtime.KeepAlive(hold)
	runtime.KeepAlive(more)
}

// TestReleaseCode: the code still runs, and its pages were given back.
func TestReleaseCode(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("Linux only")
	}
	before := fileRSS(t)
	code := ownCode()
	for range 3 {
		code.release()
		if after := fileRSS(t); after >= before*3/4 {
			t.Errorf("resident file pages: %d KiB before, %d after", before, after)
		}
	}
}

func fileRSS(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "RssFile:")
	if !ok {
		t.Fatal("no RssFile")
	}
	for _, c := range strings.TrimSpace(rest) {
		if c < '0' || c > '9' {
			break
		}
		kib = kib*10 + int(c-'0')
	}
	return kib
}
