package relay

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Bounds of what is read of a refusal.
const (
	maxRefusal    = 16 << 10
	maxRetryAfter = 3600 // seconds
)

// Refusal is an answer of the relay's own.
type Refusal struct {
	Status     int           `json:"status"`
	Code       string        `json:"code"`
	Reason     string        `json:"detail"`
	RetryAfter time.Duration `json:"-"` // in whole seconds
}

// Write answers with f, in one form whatever the agent's protocol is: the
// sidecar words it for the agent.
func (f Refusal) Write(w http.ResponseWriter) {
	h := w.Header()
	clear(h)
	h.Set(HeaderError, f.Code)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
	body, err := json.Marshal(f)
	if err != nil {
		panic("relay: marshal refusal: " + err.Error()) // texts and a number only
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Status)
	_, _ = w.Write(body)
}

// ReadRefusal reads the relay's own answer and closes its body; nil is an
// answer of the origin's, which it leaves alone.
func ReadRefusal(resp *http.Response) *Refusal {
	code := resp.Header.Get(HeaderError)
	if code == "" {
		return nil
	}
	defer resp.Body.Close()
	f := &Refusal{}
	if json.NewDecoder(io.LimitReader(resp.Body, maxRefusal)).Decode(f) != nil || f.Reason == "" {
		f.Reason = "the relay gave no reason"
	}
	f.Status, f.Code = resp.StatusCode, code
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 && n <= maxRetryAfter {
		f.RetryAfter = time.Duration(n) * time.Second
	}
	return f
}
