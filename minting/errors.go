package minting

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what an issuer can make us wait: a Retry-After of a day
// must not switch a provider off for a day.
const maxRetryAfter = 5 * time.Minute

// waitError is an error that is known to last.
type waitError struct {
	err  error
	wait time.Duration
}

func (e *waitError) Error() string { return e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

// WithRetryAfter notes on err how long to wait before asking again, at most
// five minutes. A wait of zero or less leaves err as it is.
func WithRetryAfter(err error, wait time.Duration) error {
	if err == nil || wait <= 0 {
		return err
	}
	return &waitError{err: err, wait: min(wait, maxRetryAfter)}
}

// RetryAfter returns how long to wait before asking again, if err says so.
func RetryAfter(err error) (time.Duration, bool) {
	var w *waitError
	if errors.As(err, &w) {
		return w.wait, true
	}
	return 0, false
}

// ParseRetryAfter reads a Retry-After field (RFC 9110 section 10.2.3): seconds
// or a date. The result is between zero and five minutes.
func ParseRetryAfter(field string, now time.Time) (time.Duration, bool) {
	field = strings.TrimSpace(field)
	if field == "" {
		return 0, false
	}
	if strings.Trim(field, "0123456789") == "" {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n > int64(maxRetryAfter/time.Second) { // out of range is long
			return maxRetryAfter, true
		}
		return time.Duration(n) * time.Second, true
	}
	at, err := http.ParseTime(field)
	if err != nil {
		return 0, false
	}
	return min(max(at.Sub(now), 0), maxRetryAfter), true
}

// maxSecret is the longest credential that is put on a request. Servers limit
// a header to 8 to 64 KiB.
const maxSecret = 32 << 10

// CheckSecret refuses a credential that cannot stand in a header: empty, too
// long, or with a byte outside of visible ASCII. RFC 6750 section 2.1 allows
// less; CR, LF and NUL would let an issuer write headers. The error never
// holds the text.
func CheckSecret(s string) error {
	if s == "" {
		return fmt.Errorf("%w: the credential is empty", ErrUnavailable)
	}
	if len(s) > maxSecret {
		return fmt.Errorf("%w: the credential is longer than %d bytes", ErrUnavailable, maxSecret)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return fmt.Errorf("%w: the credential has a byte at offset %d that is not visible ASCII", ErrUnavailable, i)
		}
	}
	return nil
}
