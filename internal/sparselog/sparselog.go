// Package sparselog keeps a log short however often the same thing happens.
package sparselog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Bounds of what an agent's own failures may write into the log, which it
// shares a terminal with.
const (
	pause       = 10 * time.Second // between two lines that say the same
	maxSubjects = 256              // told apart at once
)

// sparse is a slog.Handler that lets a warning or an error about one subject
// (message, code, host, pod, reason) pass once in pause, with the number of those that
// did not pass before it. An agent that repeats a failing call does not fill
// the log.
type sparse struct {
	slog.Handler
	seen *subjects
}

type subjects struct {
	mu   sync.Mutex // guards last
	last map[string]*subject
}

type subject struct {
	at         time.Time
	suppressed int
}

// New returns a handler before h that lets a warning or an error about one
// subject (message, code, host, pod, reason) pass once in ten seconds, with the number
// of those that did not pass before it.
func New(h slog.Handler) slog.Handler {
	return &sparse{h, &subjects{last: map[string]*subject{}}}
}

// Handle implements slog.Handler.
func (s *sparse) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return s.Handler.Handle(ctx, r)
	}
	pass, suppressed := s.seen.pass(r)
	if !pass {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (s *sparse) WithAttrs(a []slog.Attr) slog.Handler {
	return &sparse{s.Handler.WithAttrs(a), s.seen}
}

// WithGroup implements slog.Handler.
func (s *sparse) WithGroup(name string) slog.Handler {
	return &sparse{s.Handler.WithGroup(name), s.seen}
}

func (s *subjects) pass(r slog.Record) (pass bool, suppressed int) {
	key := subjectOf(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.last[key]; !known && len(s.last) >= maxSubjects {
		for k, l := range s.last {
			if r.Time.Sub(l.at) >= pause {
				delete(s.last, k)
			}
		}
		if len(s.last) >= maxSubjects {
			key = r.Message // hosts can be made up without end
		}
	}
	l := s.last[key]
	if l == nil {
		s.last[key] = &subject{at: r.Time}
		return true, 0
	}
	if r.Time.Sub(l.at) < pause {
		l.suppressed++
		return false, 0
	}
	suppressed = l.suppressed
	l.at, l.suppressed = r.Time, 0
	return true, suppressed
}

// subjectOf is what a line is about.
func subjectOf(r slog.Record) string {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "code", "host", "dest", "event", "pod_uid", "reason":
			b.WriteString("\x00" + a.Key + "=" + a.Value.String())
		}
		return true
	})
	return b.String()
}
