package pipeline

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// errIdle is the cause of a tunnel that was cut because nothing passed.
var errIdle = errors.New("limits.tunnelIdleTimeout reached")

// idleSlices is how many times in a limit a copy is interrupted to see what has
// passed: an idle tunnel lives for the limit and one slice at most.
const idleSlices = 8

// idle cuts a tunnel through which nothing has passed, in either direction,
// for a while. The zero idle never does.
type idle struct {
	limit time.Duration
	start time.Time
	last  atomic.Int64 // when something passed, from start
	mu    sync.Mutex   // guards timer
	timer *time.Timer
}

// watch calls cut once nothing has passed for limit; zero means never. The
// caller stops it.
func (i *idle) watch(limit time.Duration, cut func()) {
	if limit <= 0 {
		return
	}
	i.limit, i.start = limit, time.Now()
	patience := limit + limit/idleSlices
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = time.AfterFunc(patience, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if left := patience - (time.Since(i.start) - time.Duration(i.last.Load())); left > 0 {
			i.timer.Reset(left)
			return
		}
		cut()
	})
}

func (i *idle) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer != nil {
		i.timer.Stop()
	}
}

func (i *idle) passed() { i.last.Store(int64(time.Since(i.start))) }

// copy copies one direction of the tunnel from src, which reads conn. Where
// conn takes deadlines they interrupt the copy, which may run in the kernel,
// to see whether something has passed; elsewhere each read is seen.
func (i *idle) copy(dst io.Writer, src io.Reader, conn any) (int64, error) {
	c, ok := conn.(interface{ SetReadDeadline(t time.Time) error })
	switch {
	case i.limit <= 0:
		return io.Copy(dst, src)
	case !ok:
		return io.Copy(dst, seen{src, i})
	}
	var total int64
	for {
		_ = c.SetReadDeadline(time.Now().Add(i.limit / idleSlices))
		n, err := io.Copy(dst, src)
		if total += n; n > 0 {
			i.passed()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
	}
}

// seen notes each read of r.
type seen struct {
	r io.Reader
	i *idle
}

// Read implements io.Reader.
func (s seen) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 {
		s.i.passed()
	}
	return n, err
}
