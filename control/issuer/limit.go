package issuer

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// limiter keeps a token bucket for each of the last callers.
type limiter struct {
	rate  rate.Limit
	burst int
	now   func() time.Time
	all   *lru.Cache[string, *rate.Limiter]
}

func newLimiter(perSecond float64, burst int, now func() time.Time) *limiter {
	all, err := lru.New[string, *rate.Limiter](remembered)
	if err != nil {
		panic("issuer: " + err.Error()) // the size is positive
	}
	return &limiter{rate: rate.Limit(perSecond), burst: burst, now: now, all: all}
}

// allow takes one token of who.
func (l *limiter) allow(who string) bool {
	b, ok := l.all.Get(who)
	if !ok {
		b = rate.NewLimiter(l.rate, l.burst)
		if old, ok, _ := l.all.PeekOrAdd(who, b); ok {
			b = old
		}
	}
	return b.AllowN(l.now(), 1)
}
