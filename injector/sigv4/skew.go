package sigv4

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	maxDestinations = 1024
	// minSkew is below what AWS minds (5 minutes) and above what the second's
	// resolution of Date and a slow answer make up.
	minSkew = 30 * time.Second
	// maxSkew bounds what a destination may tell: more than a wrong time zone is
	// not a clock that is a little off.
	maxSkew = 15 * time.Hour
)

// Skew remembers by how much the clocks of destinations differ from ours. The
// zero value is ready; it is safe for concurrent use. What it learns shifts
// only what is signed for that destination.
type Skew struct {
	mu     sync.Mutex // guards the rest
	offset map[string]time.Duration
	order  []string // by age
}

// Learn takes the Date field of an answer that came over a verified connection
// to a request sent and answered at these times of our clock. It ignores what
// it cannot read, what is over 15 hours, and answers that took too long to tell.
func (s *Skew) Learn(destination, date string, sent, received time.Time) {
	theirs, err := http.ParseTime(date)
	trip := received.Sub(sent)
	if err != nil || trip < 0 || trip > minSkew {
		return
	}
	offset := theirs.Sub(sent.Add(trip / 2)).Round(time.Second)
	if offset.Abs() > maxSkew {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.offset[destination]; known {
		s.order = slices.DeleteFunc(s.order, func(d string) bool { return d == destination })
		delete(s.offset, destination)
	}
	if offset.Abs() < minSkew {
		return
	}
	if len(s.order) >= maxDestinations {
		delete(s.offset, s.order[0])
		s.order = slices.Delete(s.order, 0, 1)
	}
	if s.offset == nil {
		s.offset = make(map[string]time.Duration)
	}
	s.offset[destination] = offset
	s.order = append(s.order, destination)
}

// Time is now by the clock of the destination, as far as it is known.
func (s *Skew) Time(destination string, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Add(s.offset[destination])
}
