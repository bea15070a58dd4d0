package server

import (
	"context"
	"net"
	"sync"
)

// readers bounds how many requests of one address are being read. API servers
// present no certificate unless they are told to, so that anybody in the
// cluster may send; an address that sends slowly waits for itself.
type readers struct {
	each int
	mu   sync.Mutex // guards from
	from map[string]*reader
}

type reader struct {
	slots chan struct{}
	users int // of the slots, those that wait too
}

func newReaders(each int) *readers { return &readers{each: each, from: map[string]*reader{}} }

// enter waits for room for a request of addr, until ctx ends. done gives it
// back.
func (r *readers) enter(ctx context.Context, addr string) (done func(), ok bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	r.mu.Lock()
	x := r.from[host]
	if x == nil {
		x = &reader{slots: make(chan struct{}, r.each)}
		r.from[host] = x
	}
	x.users++
	r.mu.Unlock()
	leave := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(r.from, host)
		}
	}
	select {
	case x.slots <- struct{}{}:
		return func() { <-x.slots; leave() }, true
	case <-ctx.Done():
		leave()
		return nil, false
	}
}
