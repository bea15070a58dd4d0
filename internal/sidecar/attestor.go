package sidecar

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/process"
	"github.com/attache-dev/attache/proxy/redirect"
)

// attestor sees clients' sockets until the process ends, as connections outlive
// the doors.
func (s *sidecar) attestor() identity.Attestor {
	sockets, err := process.OpenSockets()
	if err != nil {
		s.o.Log.Warn("the kernel tells nothing of clients' sockets: records name no user, and a client that half-closes counts as gone", "cause", err)
		return local{s.control}
	}
	return seeing{local{s.control}, sockets, s.o.Mode == Transparent}
}

// local attests every connection as the pod's: the doors are on loopback, and
// whoever is in the pod's network namespace is the pod.
type local struct{ control Control }

// Attest implements [identity.Attestor].
func (a local) Attest(context.Context, net.Conn) (identity.Caller, error) {
	w := a.control.Workload()
	if w == nil {
		return identity.Caller{}, identity.ErrUnattested
	}
	return identity.Caller{Workload: w}, nil
}

// seeing is local where the kernel tells of the clients' sockets. Processes of
// other containers are out of sight, so it knows the user only: for the records
// and for rules, never as a condition of being the pod's.
type seeing struct {
	local
	sockets    *process.Sockets
	redirected bool // clients may believe in another address than the door's
}

// Attest implements [identity.Attestor].
func (a seeing) Attest(ctx context.Context, c net.Conn) (identity.Caller, error) {
	caller, err := a.local.Attest(ctx, c)
	if err != nil {
		return caller, err
	}
	if src, dst, ok := a.clientsEnd(c); ok {
		if uid, cgroup, ok := a.sockets.Owner(src, dst); ok {
			caller.Process = identity.Process{UID: uid, CgroupID: cgroup}
		}
	}
	return caller, nil
}

// Held implements [identity.Holder].
func (a seeing) Held(c net.Conn) bool {
	src, dst, ok := a.clientsEnd(c)
	if !ok {
		return false
	}
	_, _, ok = a.sockets.Owner(src, dst)
	return ok
}

// clientsEnd are the addresses of c's other end as its owner sees them: a
// redirected client believes in the address that it connected to.
func (a seeing) clientsEnd(c net.Conn) (src, dst netip.AddrPort, ok bool) {
	for {
		if _, ok := c.(syscall.Conn); ok {
			break
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return src, dst, false
		}
		c = w.NetConn()
	}
	local, lok := c.LocalAddr().(*net.TCPAddr)
	remote, rok := c.RemoteAddr().(*net.TCPAddr)
	if !lok || !rok {
		return src, dst, false
	}
	src, dst = remote.AddrPort(), local.AddrPort()
	if !a.redirected {
		return src, dst, true
	}
	original, err := redirect.OriginalDst(c)
	switch {
	case err == nil:
		dst = original
	case !errors.Is(err, redirect.ErrNotRedirected): // closed, most likely
		return src, dst, false
	}
	return src, dst, true
}
