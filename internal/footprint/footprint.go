// Package footprint keeps a proxy's memory small: it paces the garbage
// collector by what is live, and gives the pages of code that is rarely used
// back to the page cache.
package footprint

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The waits between two trims: short at first, since the first connections,
// policies and tokens touch much that is rarely used again.
const (
	firstTrim = time.Second
	lastTrim  = 10 * time.Second
)

// KeepTrimmed releases our code's pages now and, ever more rarely, until ctx
// ends. What is in use comes back from the page cache within about a
// millisecond.
func KeepTrimmed(ctx context.Context) {
	code := ownCode()
	var r rest
	for wait := firstTrim; ; wait = min(2*wait, lastTrim) {
		r.giveBack()
		code.release()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// rest gives back what a burst of connections has left, once it is over: the
// runtime alone keeps a tenth more than the next collection's goal.
type rest struct{ allocated uint64 }

const (
	quiet   = 4 << 20 // allocated between two looks
	surplus = 4 << 20 // of free heap, and of what is dead
)

func (r *rest) giveBack() {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(sample)
	allocated, used, free := sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64()
	calm := r.allocated != 0 && allocated-r.allocated < quiet
	r.allocated = allocated
	// What is dead counts as used until it is collected.
	if calm && free+dead(used) > surplus {
		debug.FreeOSMemory()
	}
}

// dead is how much of the used heap the last collection did not find alive.
func dead(used uint64) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if live := sample[0].Value.Uint64(); used > live {
		return used - live
	}
	return 0
}

// heapFloor is how far heap and stacks together may grow before the heap is
// collected, however little of it is live. A proxy's live heap is a few MiB and its garbage
// thousands of small objects a second: with Go's default of twice the live
// heap the collector took a sixth of the CPU of a request.
const heapFloor = 16 << 20

// minPercent is for heaps beyond the floor: many connections, where memory is
// scarcer than CPU. maxPercent bounds what a nearly empty heap leads to.
const (
	minPercent = 35
	maxPercent = 800
)

// tuner is told of each collection by its finalizer and sets the target of
// the next one.
type tuner struct {
	sample  [3]metrics.Sample
	percent int
	limit   int // 0: not set yet
	stopped chan struct{}
}

// KeepHeap keeps the collector from running before the heap has heapFloor
// bytes, until stop is called. GOGC in the environment wins.
func KeepHeap() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	t := newTuner()
	t.tune()
	runtime.SetFinalizer(&sentinel{t}, (*sentinel).collected)
	return func() {
		close(t.stopped)
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
	}
}

func newTuner() *tuner {
	t := &tuner{percent: 100, stopped: make(chan struct{})}
	for i, name := range []string{"/gc/heap/live:bytes", "/memory/classes/heap/stacks:bytes", "/memory/classes/metadata/other:bytes"} {
		t.sample[i].Name = name
	}
	return t
}

// sentinel is unreachable, so that each collection finds it.
type sentinel struct{ t *tuner }

func (s *sentinel) collected() {
	select {
	case <-s.t.stopped:
		return
	default:
	}
	s.t.tune()
	runtime.SetFinalizer(s, (*sentinel).collected)
}

func (t *tuner) tune() {
	metrics.Read(t.sample[:])
	live, stacks := t.sample[0].Value.Uint64(), t.sample[1].Value.Uint64()
	rest := stacks + t.sample[2].Value.Uint64()
	percent := percentFor(live, stacks)
	// Setting one stops the world for a moment; small changes are not worth it.
	if differs(percent, t.percent) {
		debug.SetGCPercent(percent)
		t.percent = percent
	}
	// The limit lies above what the percentage leads to. It makes the runtime
	// give back what a burst has left, rather than keep it. It must follow the
	// live heap also where the percentage stays: a heap that outgrows it is
	// collected without end.
	if limit := int(rest + live + (live+rest)*uint64(percent)/100 + slack); differs(limit, t.limit) {
		debug.SetMemoryLimit(int64(limit))
		t.limit = limit
	}
}

// differs reports whether a value is off by more than an eighth.
func differs(now, before int) bool {
	d := now - before
	return d > before/8 || -d > before/8
}

// slack is what the limit leaves for spans that are partly in use.
const slack = 6 << 20

// percentFor is GOGC for a live heap and stacks of so many bytes.
func percentFor(live, stacks uint64) int {
	if live == 0 {
		return 100
	}
	if live+stacks >= heapFloor {
		return minPercent
	}
	return int(min(maxPercent, max(minPercent, (heapFloor-live-stacks)*100/live)))
}
