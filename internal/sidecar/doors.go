package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// doors are the pod's ways in, all on loopback: at any other address they
// would serve the cluster.
type doors struct {
	proxy    net.Listener   // explicit mode
	redirect []net.Listener // transparent mode
	bases    []baseDoor
}

type baseDoor struct {
	BaseURL
	ln net.Listener
}

func openDoors(ctx context.Context, o *Options) (_ *doors, err error) {
	d := &doors{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if o.Mode == Explicit {
		if d.proxy, err = listenLoopback(ctx, o.Listen); err != nil {
			return nil, fmt.Errorf("open the proxy's port: %w", err)
		}
	} else if d.redirect, err = listenRedirect(ctx, o.RedirectPort); err != nil {
		return nil, fmt.Errorf("open the redirect's port: %w", err)
	}
	for _, b := range o.BaseURLs {
		ln, err := listenLoopback(ctx, b.Listen)
		if err != nil {
			return nil, fmt.Errorf("base URL %s: %w", b.Env, err)
		}
		d.bases = append(d.bases, baseDoor{b, ln})
	}
	return d, nil
}

// listenRedirect listens at both loopback addresses: the kernel redirects to
// that of the connection's family. A host without IPv6 has no [::1], and no
// connection of that family.
func listenRedirect(ctx context.Context, port uint16) ([]net.Listener, error) {
	p := strconv.Itoa(int(port))
	v4, err := listenLoopback(ctx, net.JoinHostPort("127.0.0.1", p))
	if err != nil {
		return nil, err
	}
	v6, err := listenLoopback(ctx, net.JoinHostPort("::1", p))
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		return []net.Listener{v4}, nil
	}
	if err != nil {
		_ = v4.Close()
		return nil, err
	}
	return []net.Listener{v4, v6}, nil
}

func listenLoopback(ctx context.Context, where string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", where)
	if err != nil {
		return nil, err
	}
	if a, ok := ln.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%w: %s is no loopback address", ErrUsage, where), ln.Close())
	}
	return ln, nil
}

func (d *doors) all() []net.Listener {
	out := append([]net.Listener{}, d.redirect...)
	if d.proxy != nil {
		out = append(out, d.proxy)
	}
	for _, b := range d.bases {
		out = append(out, b.ln)
	}
	return out
}

func (d *doors) close() {
	for _, ln := range d.all() {
		_ = ln.Close() // serving may have closed it
	}
}
