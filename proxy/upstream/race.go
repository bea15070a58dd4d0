package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// attemptDelay is the Connection Attempt Delay of RFC 8305 section 5.
const attemptDelay = 250 * time.Millisecond

// interleave orders the addresses of a name: families take turns, beginning
// with the first address's, each in the resolver's order (RFC 8305 section 4).
func interleave(addrs []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr
	for _, a := range addrs {
		a = a.Unmap() // the resolver's form of an IPv4 address may be either
		f := 0
		if a.Is4() != addrs[0].Unmap().Is4() {
			f = 1
		}
		families[f] = append(families[f], a)
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range addrs {
		for _, f := range families {
			if i < len(f) {
				out = append(out, f[i])
			}
		}
	}
	return out
}

// attempt is how one connection attempt ended.
type attempt struct {
	c   net.Conn
	err error
}

// race connects to the first address that answers. The next attempt begins
// attemptDelay after the one before it, or when that one fails; losers are
// closed (RFC 8305 section 5). If all fail, the error is all of theirs.
func race(ctx context.Context, addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	switch len(addrs) {
	case 0:
		return nil, errors.New("the name has no address")
	case 1:
		return dial(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the attempts that lost
	ended, over := make(chan attempt), make(chan struct{})
	defer close(over)
	begin := func(to netip.AddrPort) {
		c, err := dial(ctx, to)
		select {
		case ended <- attempt{c, err}:
		case <-over:
			if c != nil {
				_ = c.Close()
			}
		}
	}
	delay := time.NewTimer(attemptDelay)
	defer delay.Stop()
	var errs []error
	for next := 0; ; { // once for each address, each time one is due or one has failed
		var due <-chan time.Time
		if next < len(addrs) {
			go begin(addrs[next])
			next++
			delay.Reset(attemptDelay)
			due = delay.C
		}
		select {
		case <-due:
		case a := <-ended:
			if a.err == nil {
				return a.c, nil
			}
			if errs = append(errs, a.err); len(errs) == len(addrs) {
				return nil, errors.Join(errs...)
			}
		}
	}
}
