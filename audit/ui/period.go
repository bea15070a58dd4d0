package ui

import (
	"net/http"
	"time"
)

// period is the time that a page speaks of.
type period struct {
	Key          string
	Label        string
	Since, Until time.Time // Until zero: now
}

const defaultPeriod = "24h"

// periods are what a person can choose, counted in their time zone.
func periods(now time.Time) []period {
	day := func(back int) time.Time {
		y, m, d := now.Date()
		return time.Date(y, m, d-back, 0, 0, 0, 0, now.Location())
	}
	return []period{
		{"1h", "Last hour", now.Add(-time.Hour), time.Time{}},
		{"24h", "24 hours", now.Add(-24 * time.Hour), time.Time{}},
		{"today", "Today", day(0), time.Time{}},
		{"yesterday", "Yesterday", day(1), day(0)},
		{"7d", "7 days", day(6), time.Time{}},
		{"30d", "30 days", day(29), time.Time{}},
	}
}

// periodOf reads the parameter p; what is unknown is the default.
func (s *Server) periodOf(r *http.Request) (period, []period) {
	all := periods(s.now())
	want := r.URL.Query().Get("p")
	var chosen period
	for _, p := range all {
		if p.Key == want || chosen.Key == "" && p.Key == defaultPeriod {
			chosen = p
		}
	}
	return chosen, all
}

// terms are the period in the query language.
func (p period) terms() string {
	t := term("since", p.Since.Format(time.RFC3339))
	if !p.Until.IsZero() {
		t = query(t, term("until", p.Until.Format(time.RFC3339)))
	}
	return t
}

// short is the period as a person would type it, where the language has a word
// for it.
func (p period) short() string {
	switch p.Key {
	case "today", "yesterday":
		return p.terms()
	}
	return term("since", p.Key)
}

// widthFor is how wide bars are over a span, so that there are at most 96.
func widthFor(span time.Duration) time.Duration {
	for _, w := range []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour} {
		if span/w <= 96 {
			return w
		}
	}
	return 30 * 24 * time.Hour
}

func (s *Server) now() time.Time { return s.c.Now().In(s.c.Location) }
