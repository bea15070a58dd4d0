package pipeline

import (
	"context"
	"errors"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// errRevoked is the cause of a stream that was cut.
var errRevoked = errors.New("credential or task revoked")

// errMaxStream is the cause of a stream that outlived its rule's maxStream.
var errMaxStream = errors.New("rule's maxStream reached")

// live is the set of exchanges under way, so that the end of a task, of a run
// or of a credential cuts what still uses it (invariant 6).
type live struct {
	mu  sync.Mutex // guards set
	set map[*exchange]context.CancelCauseFunc
	// ended are handles of credentials that ended lately: an exchange may have
	// got one right before its end and say so only now.
	ended *lru.Cache[string, struct{}]
}

// endedHandles bounds the memory for ended credentials; an exchange needs it
// for microseconds.
const endedHandles = 4096

func newLive() *live {
	ended, err := lru.New[string, struct{}](endedHandles)
	if err != nil {
		panic("pipeline: " + err.Error()) // only for a size of zero
	}
	return &live{set: make(map[*exchange]context.CancelCauseFunc), ended: ended}
}

func (l *live) add(x *exchange, cancel context.CancelCauseFunc) {
	l.mu.Lock()
	l.set[x] = cancel
	l.mu.Unlock()
}

func (l *live) remove(x *exchange) {
	l.mu.Lock()
	delete(l.set, x)
	l.mu.Unlock()
}

// holds notes that x uses the credential with this handle, and reports
// whether it still may.
func (l *live) holds(x *exchange, handle string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.handle = handle
	return !l.ended.Contains(handle)
}

// end notes that a credential has ended; cut comes after it.
func (l *live) end(handle string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended.Add(handle, struct{}{})
}

// cut cancels the exchanges that match and returns how many there were. match
// sees only fields that are set before add.
func (l *live) cut(match func(*exchange) bool, cause error) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for x, cancel := range l.set {
		if match(x) {
			cancel(cause)
			n++
		}
	}
	return n
}

func (l *live) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.set)
}
