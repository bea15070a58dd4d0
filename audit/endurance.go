package audit

import (
	"fmt"
	"strings"
	"time"
)

// typicalRequest is what begin and end of a request take in the spool, in
// bytes: measured over the demonstration's requests, with credential and task.
const typicalRequest = 2000

// Rates are those for which [Endurance] is told, in requests a second.
func Rates() []int { return []int{10, 100, 1000} }

// Endurance is how long a spool of maxBytes takes records at a rate of requests
// a second while no sink takes any: how long an outage it lasts before calls
// are refused. perRequest is in bytes; 0: what is typical.
func Endurance(maxBytes, perRequest int64, rate int) time.Duration {
	if perRequest <= 0 {
		perRequest = typicalRequest
	}
	seconds := float64(max(maxBytes-systemReserve, 0)) / float64(perRequest) / float64(rate)
	return time.Duration(seconds * float64(time.Second)).Round(time.Second)
}

// PerRequest is what a request takes in this spool, in bytes; 0 while too few
// came to say.
func (s *Spool) PerRequest() int64 {
	const enough = 100
	n := s.stats.begun.Load() + s.stats.whole.Load()
	if n < enough {
		return 0
	}
	return int64(s.stats.bytes.Load() / n) //nolint:gosec // below maxLine
}

// Lasts tells the endurance of the spool at all [Rates], for people.
func (s *Spool) Lasts() string {
	var parts []string
	for _, rate := range Rates() {
		parts = append(parts, fmt.Sprintf("%s at %d/s", Endurance(s.opts.MaxBytes, s.PerRequest(), rate), rate))
	}
	return strings.Join(parts, ", ")
}
