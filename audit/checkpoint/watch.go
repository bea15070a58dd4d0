package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

const (
	// DefaultVerifyEvery is how often a [Watch] reads everything.
	DefaultVerifyEvery = 24 * time.Hour
	// verifyRate is how many lines a second a Watch reads: ten million take eight
	// minutes of a fraction of a core.
	verifyRate = 20_000
	// verifyAgain is how long after a finding it is looked at again: retention
	// that removed lines since the newest checkpoint is in the next one.
	verifyAgain = 3 * time.Minute
	// verifyRetry is how long at most after a pass that could not be made the next
	// one is tried; the first is after verifyAgain, and each waits twice as long.
	verifyRetry = time.Hour
)

// Watched is what a [Watch] reads: a [store.DB].
type Watched interface {
	Source
	LastCheckpoint(ctx context.Context) (store.Checkpoint, error)
}

// Latest is a place outside that says which checkpoint it has last: [Witnessed].
type Latest interface {
	Name() string
	Latest(ctx context.Context, origin string) ([]byte, error)
}

// Kept is where a [Watch] keeps a value: a [store.DB].
type Kept interface {
	State(ctx context.Context, name string) ([]byte, error)
	PutState(ctx context.Context, name string, value []byte) error
}

// keptName is the name of what a Watch keeps.
const keptName = "checkpoint/verified"

// Watch verifies a store again and again where it is kept, against the newest
// checkpoint, the one that it saw before, and those of witnesses. It finds what
// fails by itself, and who changes the store without the key or without this
// process. It is no proof to anybody else: that is [Verify], on another machine.
type Watch struct {
	Store  Watched
	Origin string
	Key    note.Verifier // of the checkpoints
	From   []Latest      // asked if they answer
	Every  time.Duration // 0 means DefaultVerifyEvery
	// Record writes an event into the control plane's own spool; nil: none.
	Record func(ctx context.Context, r *audit.Record) error
	// Kept holds over restarts when the store was last found whole; nil: nothing does.
	Kept   Kept
	Logger *slog.Logger

	seen                       []byte // newest checkpoint at the last good pass
	failures, problems, passes atomic.Int64
	lines, at                  atomic.Int64
}

// Run verifies until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	every := w.every()
	w.recall(ctx)
	wait := time.NewTimer(min(verifyAgain, every))
	defer wait.Stop()
	var found *Report // at the pass before
	retry := verifyAgain
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		w.recall(ctx) // if it could not before
		r, err := w.Pass(ctx)
		next := every
		if err == nil || found != nil { // what was found is still to be looked at again
			retry = verifyAgain
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next, retry = min(retry, every), min(2*retry, verifyRetry)
			w.Logger.ErrorContext(ctx, "the record store cannot be verified", "cause", err, "found_before", found != nil, "again_in", next.String())
		case !r.OK() && found == nil:
			w.Logger.WarnContext(ctx, "the record store seems not to be as its checkpoints say; it is looked at again", "problems", len(r.Problems)+r.More, "first", r.Problems[0].String(), "in", verifyAgain.String())
			found, next = r, verifyAgain
		default:
			w.conclude(ctx, r)
			found = nil
		}
		wait.Reset(next)
	}
}

func (w *Watch) every() time.Duration {
	if w.Every <= 0 {
		return DefaultVerifyEvery
	}
	return w.Every
}

// recall learns when the store was last found whole, by this process or one
// before it. A store that never was begins with now, once: a process that starts
// again and again is told of as late.
func (w *Watch) recall(ctx context.Context) {
	if w.at.Load() != 0 {
		return
	}
	now := time.Now().Unix()
	if w.Kept == nil {
		w.at.Store(now)
		return
	}
	text, err := w.Kept.State(ctx, keptName)
	if err != nil {
		w.Logger.WarnContext(ctx, "cannot read when the record store was last found whole", "cause", err)
		return
	}
	if at, err := strconv.ParseInt(string(text), 10, 64); err == nil && at > 0 && at <= now {
		w.at.Store(at)
		return
	}
	w.keep(ctx, now)
}

func (w *Watch) keep(ctx context.Context, at int64) {
	w.at.Store(at)
	if w.Kept == nil {
		return
	}
	if err := w.Kept.PutState(ctx, keptName, strconv.AppendInt(nil, at, 10)); err != nil {
		w.Logger.WarnContext(ctx, "cannot keep when the record store was last found whole", "cause", err)
	}
}

// Pass verifies once and tells nobody.
func (w *Watch) Pass(ctx context.Context) (*Report, error) {
	var outside [][]byte
	newest, err := w.Store.LastCheckpoint(ctx)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("read the newest checkpoint: %w", err)
	}
	bad := &Report{}
	add := func(from string, signed []byte) {
		if _, err := chain.Parse(signed, w.Key); err != nil {
			bad.problem(Problem{Kind: ProblemCheckpoint, Text: fmt.Sprintf("the newest one %s: %v", from, err)})
			return
		}
		outside = append(outside, signed)
	}
	if newest.Number > 0 {
		add("in the store", newest.Note)
	}
	if w.seen != nil {
		outside = append(outside, w.seen)
	}
	for _, f := range w.From {
		signed, err := f.Latest(ctx, w.Origin)
		if err != nil {
			w.Logger.WarnContext(ctx, "a place of checkpoints is not asked what it has", "sink", f.Name(), "cause", err)
			continue
		}
		add("at "+f.Name(), signed)
	}
	r, err := Verify(ctx, &slow{Watched: w.Store, limit: rate.NewLimiter(verifyRate, verifyStep)}, Options{Keys: []note.Verifier{w.Key}, Outside: outside})
	if err != nil {
		return nil, err
	}
	r.Problems = append(bad.Problems, r.Problems...)
	if r.OK() && newest.Number > 0 {
		w.seen = newest.Note
	}
	return r, nil
}

// conclude counts and tells what came of a pass.
func (w *Watch) conclude(ctx context.Context, r *Report) {
	w.passes.Add(1)
	w.lines.Store(int64(r.Lines)) //nolint:gosec // a count
	w.problems.Store(int64(len(r.Problems) + r.More))
	if r.OK() {
		w.keep(ctx, time.Now().Unix())
		w.Logger.InfoContext(ctx, "the record store is as its checkpoints say", "lines", r.Lines, "checkpoints", r.Checkpoints, "not_compared", "what searches find")
		return
	}
	w.failures.Add(1)
	first := r.Problems[0].String()
	w.Logger.ErrorContext(ctx, "the record store is NOT as its checkpoints say", "problems", len(r.Problems)+r.More, "first", first)
	if w.Record == nil {
		return
	}
	e := &audit.Event{Name: audit.EventCheckpointFailed, Fields: map[string]string{
		"sink": "verify", "error": first, "problems": strconv.Itoa(len(r.Problems) + r.More),
	}}
	if err := w.Record(ctx, &audit.Record{Type: audit.TypeEvent, Event: e}); err != nil {
		w.Logger.ErrorContext(ctx, "event cannot be recorded", "event", e.Name, "error", err)
	}
}

// verifyStep is how many lines are read between two looks at the limit.
const verifyStep = 1000

// slow leaves the store's processors to those who ask it.
type slow struct {
	Watched
	limit *rate.Limiter
	read  int // lines of all epochs: a store may have many small ones
}

// Lines implements Source.
func (s *slow) Lines(ctx context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error] {
	return func(yield func(audit.Line, error) bool) {
		for l, err := range s.Watched.Lines(ctx, epoch, from) {
			if s.read++; s.read%verifyStep == 0 {
				if err := s.limit.WaitN(ctx, verifyStep); err != nil {
					yield(audit.Line{}, err)
					return
				}
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// WatchMetrics returns what a Watch finds, for a registry. The time of the last
// good pass is of the replica that runs it.
func WatchMetrics(w *Watch) prometheus.Collector {
	one := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("attache_audit_verify_"+name, help, nil, nil)
	}
	return &watchMetrics{
		w:        w,
		failures: one("failures_total", "Verifications of the record store that found it changed."),
		problems: one("problems", "What the last verification found to be changed."),
		passes:   one("passes_total", "Verifications that were completed."),
		lines:    one("lines", "Lines that the last one read."),
		at:       one("success_timestamp_seconds", "When the store was last found whole, or first to be verified, in Unix seconds."),
		every:    one("interval_seconds", "How long after a verification the next one begins."),
	}
}

type watchMetrics struct {
	w                                     *Watch
	failures, problems, passes, lines, at *prometheus.Desc
	every                                 *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (m *watchMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.failures, m.problems, m.passes, m.lines, m.at, m.every} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *watchMetrics) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, n *atomic.Int64) {
		out <- prometheus.MustNewConstMetric(d, kind, float64(n.Load()))
	}
	send(m.failures, prometheus.CounterValue, &m.w.failures)
	send(m.passes, prometheus.CounterValue, &m.w.passes)
	send(m.problems, prometheus.GaugeValue, &m.w.problems)
	send(m.lines, prometheus.GaugeValue, &m.w.lines)
	if m.w.at.Load() != 0 {
		send(m.at, prometheus.GaugeValue, &m.w.at)
	}
	out <- prometheus.MustNewConstMetric(m.every, prometheus.GaugeValue, m.w.every().Seconds())
}
