package run

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// doors are the open ports of a run. They are opened before the sandbox, which
// may limit the child to exactly these.
type doors struct {
	proxy net.Listener
	bases []baseDoor
}

type baseDoor struct {
	v1alpha1.BaseURL
	ln net.Listener
}

func openDoors(ctx context.Context, o *Options, b *api.Bundle) (*doors, error) {
	d := &doors{}
	var err error
	if d.proxy, err = listenLoopback(ctx, o.Listen); err != nil {
		return nil, fmt.Errorf("open the proxy's port: %w; choose another with --listen", err)
	}
	for i := range b.Providers {
		for _, u := range b.Providers[i].Spec.BaseURLs {
			where := u.Listen
			if where == "" {
				where = "127.0.0.1:0"
			}
			ln, err := listenLoopback(ctx, where)
			if err != nil {
				d.close()
				return nil, fmt.Errorf("base URL %s: %w; choose another listen address", u.Env, err)
			}
			d.bases = append(d.bases, baseDoor{u, ln})
		}
	}
	return d, nil
}

// listenLoopback refuses every address that others than this machine reach.
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
	out := []net.Listener{d.proxy}
	for _, b := range d.bases {
		out = append(out, b.ln)
	}
	return out
}

func (d *doors) addrs() []net.Addr {
	var out []net.Addr
	for _, ln := range d.all() {
		out = append(out, ln.Addr())
	}
	return out
}

func (d *doors) ports() []uint16 {
	var out []uint16
	for _, a := range d.addrs() {
		if t, ok := a.(*net.TCPAddr); ok {
			out = append(out, t.AddrPort().Port())
		}
	}
	return out
}

func (d *doors) close() {
	for _, ln := range d.all() {
		_ = ln.Close() // serving may have closed it
	}
}
