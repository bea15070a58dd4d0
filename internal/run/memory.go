package run

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is how far the heap may grow before it is collected, however
// little of it is live. A proxy's live heap is a few MiB and its garbage
// thousands of small objects a second: with Go's default of twice the live
// heap the collector took a sixth of the CPU of a request.
const heapFloor = 16 << 20

// maxPercent bounds what a nearly empty heap leads to.
const maxPercent = 800

// tuner is told of each collection by its finalizer and sets the target of
// the next one.
type tuner struct {
	sample  [1]metrics.Sample
	percent int
	stopped chan struct{}
}

// keepHeap keeps the collector from running before the heap has heapFloor
// bytes, until stop is called. GOGC in the environment wins.
func keepHeap() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	t := &tuner{percent: 100, stopped: make(chan struct{})}
	t.sample[0].Name = "/gc/heap/live:bytes"
	t.tune()
	runtime.SetFinalizer(&sentinel{t}, (*sentinel).collected)
	return func() {
		close(t.stopped)
		debug.SetGCPercent(100)
	}
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
	percent := percentFor(t.sample[0].Value.Uint64())
	// Setting it stops the world for a moment; small changes are not worth it.
	if d := percent - t.percent; d > t.percent/8 || -d > t.percent/8 {
		debug.SetGCPercent(percent)
		t.percent = percent
	}
}

// percentFor is GOGC for a live heap of so many bytes.
func percentFor(live uint64) int {
	if live == 0 || live >= heapFloor/2 {
		return 100
	}
	return int(min(maxPercent, (heapFloor-live)*100/live))
}
