package http1

import (
	"context"
	"sync"
	"time"
)

// requestContext is the context of one request. It exists because a
// context.WithCancel for each request costs four allocations and an entry in
// the parent's map; this one is part of the exchange. It ends when the handler
// returns, when the client goes away, or with the connection.
type requestContext struct {
	parent context.Context //nolint:containedctx // it is a context

	mu    sync.Mutex // guards what follows
	done  chan struct{}
	err   error
	first *func() // the only one, as a rule; more of them are in after
	after map[*func()]struct{}
}

func (c *requestContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }

func (c *requestContext) Value(key any) any {
	if key == (requestContextKey{}) {
		return c
	}
	return c.parent.Value(key)
}

type requestContextKey struct{}

// afterFunc is context.AfterFunc, which starts a goroutine where ctx is a
// requestContext with values around it: for each connection inside CONNECT.
func afterFunc(ctx context.Context, f func()) (stop func() bool) {
	if c, ok := ctx.Value(requestContextKey{}).(*requestContext); ok && c.Done() == ctx.Done() {
		return c.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *requestContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// AfterFunc lets package context derive from c without a goroutine.
func (c *requestContext) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	key := &f
	if c.first == nil {
		c.first = key
		return func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			ok := c.first == key
			if ok {
				c.first = nil
			}
			return ok
		}
	}
	if c.after == nil {
		c.after = make(map[*func()]struct{})
	}
	c.after[key] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, ok := c.after[key]
		delete(c.after, key)
		return ok
	}
}

func (c *requestContext) cancel() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
	first, after := c.first, c.after
	c.first, c.after = nil, nil
	c.mu.Unlock()
	if first != nil {
		go (*first)()
	}
	for f := range after {
		go (*f)()
	}
}
