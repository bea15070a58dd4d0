package ship

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Defaults of a [Config].
const (
	DefaultMinWait = 250 * time.Millisecond
	DefaultMaxWait = 30 * time.Second
)

// Config of a [Shipper]. Source and Sink are required.
type Config struct {
	Source Source
	Sink   Sink
	// Aside is told of lines that the sink refused for good, before they are
	// passed by. Its error keeps them from being passed: they are tried again.
	Aside func(Batch, *RejectedError) error
	// Answered is told what became of each batch that is passed by, nil for
	// delivered; nil: nobody is told.
	Answered func([]audit.Line, error)
	// Committed is called after the cursor moved; nil: nobody is told.
	Committed func()
	// MinWait and MaxWait bound the wait after an error; defaults 250ms, 30s.
	MinWait, MaxWait time.Duration
	Log              *slog.Logger
}

// Status of a [Shipper].
type Status struct {
	Sink     string    `json:"sink"`
	Lines    uint64    `json:"lines"` // delivered since the start
	Bytes    uint64    `json:"bytes"` // of their JSON
	Batches  uint64    `json:"batches"`
	Rejected uint64    `json:"rejected"` // lines refused for good
	Errors   uint64    `json:"errors"`   // attempts that failed
	Error    string    `json:"error,omitempty"`
	Last     time.Time `json:"last,omitzero"` // of the last delivery

	// What is not delivered yet. Age is that of the oldest such line, by the
	// clock of now.
	LagLines int64         `json:"lag_lines"`
	LagBytes int64         `json:"lag_bytes"`
	Age      time.Duration `json:"age"`
}

// Shipper carries the lines of one source to one sink.
type Shipper struct {
	c Config
	// hurry is closed by Hurry.
	hurry     chan struct{}
	hurryOnce sync.Once

	mu     sync.Mutex // guards what follows
	st     Status
	oldest time.Time // of the batch under way
}

// New returns a shipper; [Shipper.Run] does the work.
func New(c Config) *Shipper {
	c.MinWait = cmp.Or(c.MinWait, DefaultMinWait)
	c.MaxWait = max(cmp.Or(c.MaxWait, DefaultMaxWait), c.MinWait)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Shipper{c: c, hurry: make(chan struct{}), st: Status{Sink: c.Sink.Name()}}
}

// Hurry ends the present wait after an error and makes every later one as short
// as the first: the process is about to end, and what it cannot deliver until
// then may be lost with its disk.
func (s *Shipper) Hurry() { s.hurryOnce.Do(func() { close(s.hurry) }) }

// Run ships until the source has no more, which gives nil, or ctx ends.
func (s *Shipper) Run(ctx context.Context) error {
	wait := s.c.MinWait
	for {
		b, cur, err := s.c.Source.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.failed(err)
			s.c.Log.Error("records cannot be read for shipping", "sink", s.c.Sink.Name(), "error", err)
			if err := s.pause(ctx, err, &wait); err != nil {
				return err
			}
			continue
		}
		wait = s.c.MinWait
		if err := s.deliver(ctx, b); err != nil {
			return err
		}
		s.commit(ctx, cur)
	}
}

// deliver sends b until it is passed by, or ctx ends.
func (s *Shipper) deliver(ctx context.Context, b Batch) error {
	_, _, at := b.Lines[0].Head()
	s.mu.Lock()
	s.oldest = at
	s.mu.Unlock()
	wait := s.c.MinWait
	for {
		err := s.c.Sink.Send(ctx, b)
		if err == nil {
			s.passed(b, 0)
			s.answer(b.Lines, nil)
			return nil
		}
		if errors.Is(err, ErrRejected) {
			if err = s.setAside(b, err); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.failed(err)
		if wait == s.c.MinWait {
			s.c.Log.Warn("records are not taken and stay in the spool", "sink", s.c.Sink.Name(), "epoch", b.Lines[0].Epoch, "sequence", b.Lines[0].Sequence, "lines", len(b.Lines), "error", err)
		}
		if err := s.pause(ctx, err, &wait); err != nil {
			return err
		}
	}
}

// setAside passes lines by that the sink refused for good.
func (s *Shipper) setAside(b Batch, err error) error {
	var r *RejectedError
	if !errors.As(err, &r) {
		r = &RejectedError{Lines: b.Lines, Count: len(b.Lines), Reason: err.Error()}
	}
	aside := b
	if r.Lines != nil {
		aside.Lines = r.Lines
	}
	if s.c.Aside != nil {
		if err := s.c.Aside(aside, r); err != nil {
			return err
		}
	}
	s.c.Log.Error("records are refused for good and set aside", "sink", s.c.Sink.Name(), "epoch", aside.Lines[0].Epoch,
		"from", aside.Lines[0].Sequence, "to", aside.Lines[len(aside.Lines)-1].Sequence, "count", r.Count, "reason", r.Reason)
	s.passed(b, r.Count)
	refused := map[uint64]bool{}
	for _, l := range aside.Lines {
		refused[l.Sequence] = true
	}
	var taken []audit.Line
	for _, l := range b.Lines {
		if !refused[l.Sequence] {
			taken = append(taken, l)
		}
	}
	s.answer(taken, nil)
	s.answer(aside.Lines, r)
	return nil
}

func (s *Shipper) answer(lines []audit.Line, err error) {
	if s.c.Answered != nil && len(lines) > 0 {
		s.c.Answered(lines, err)
	}
}

// commit moves the cursor. Where that fails the lines come again after a
// restart, which the receiver knows.
func (s *Shipper) commit(ctx context.Context, cur Cursor) {
	if err := s.c.Source.Commit(cur); err != nil {
		if ctx.Err() == nil {
			s.c.Log.Error("the place in the records is not kept; they are sent again after a restart", "sink", s.c.Sink.Name(), "error", err)
		}
		return
	}
	if s.c.Committed != nil {
		s.c.Committed()
	}
}

// hinted is an error of a sink that says when to try again.
type hinted interface{ RetryAfter() time.Duration }

// maxHint bounds how long a receiver may make us wait.
const maxHint = 5 * time.Minute

// pause waits before the next attempt, longer each time.
func (s *Shipper) pause(ctx context.Context, cause error, wait *time.Duration) error {
	d := *wait/2 + rand.N(*wait) // full jitter: after an outage all come back, and not at once
	*wait = min(2**wait, s.c.MaxWait)
	var h hinted
	if errors.As(cause, &h) {
		d = max(d, min(h.RetryAfter(), maxHint))
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	case <-s.hurry:
	}
	// Already in a hurry, or from now on.
	t.Reset(min(d, s.c.MinWait))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (s *Shipper) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Errors++
	s.st.Error = err.Error()
}

func (s *Shipper) passed(b Batch, rejected int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Lines += uint64(max(len(b.Lines)-rejected, 0)) //nolint:gosec // not negative
	s.st.Rejected += uint64(rejected)                   //nolint:gosec // not negative
	s.st.Bytes += uint64(b.Bytes())                     //nolint:gosec // not negative
	s.st.Batches++
	s.st.Last, s.st.Error, s.oldest = time.Now(), "", time.Time{}
}

// lagging is a source that knows what is left.
type lagging interface{ Lag() (lines, bytes int64) }

// Status returns the present figures.
func (s *Shipper) Status() Status {
	s.mu.Lock()
	st, oldest := s.st, s.oldest
	s.mu.Unlock()
	if l, ok := s.c.Source.(lagging); ok {
		st.LagLines, st.LagBytes = l.Lag()
	}
	if !oldest.IsZero() {
		st.Age = max(time.Since(oldest), 0)
	}
	return st
}
