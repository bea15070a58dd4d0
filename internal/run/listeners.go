package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/isolate"
)

// doors are the open ports of a run. They are opened before the sandbox, which
// may limit the child to exactly these.
type doors struct {
	proxy net.Listener
	bases []baseDoor
	aws   net.Listener // where SDKs fetch placeholder keys; may be nil
	extra net.Listener // of the operator, see openExtra; may be nil
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
	if d.extra, err = openExtra(ctx, b.Config.Spec.Admin.Listen); err != nil {
		d.close()
		return nil, err
	}
	if dataplane.NeedsAWSPort(b) {
		if d.aws, err = listenLoopback(ctx, "127.0.0.1:0"); err != nil {
			d.close()
			return nil, fmt.Errorf("open the AWS door's port: %w", err)
		}
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

// openExtra opens spec.admin.listen: another Unix socket for the operator, or a
// TCP port for probes and Prometheus, where peers cannot be told apart and
// nothing can be changed. It is there before the sandbox, which hides it.
func openExtra(ctx context.Context, where string) (net.Listener, error) {
	if where == "" {
		return nil, nil
	}
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		ln, err := listenUnix(ctx, "/"+strings.TrimLeft(path, "/"))
		if err != nil {
			return nil, fmt.Errorf("spec.admin.listen: %w", err)
		}
		return ln, nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", where)
	if err != nil {
		return nil, fmt.Errorf("spec.admin.listen: %w; choose another", err)
	}
	return ln, nil
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
	if d.aws != nil {
		out = append(out, d.aws)
	}
	for _, b := range d.bases {
		out = append(out, b.ln)
	}
	return out
}

// addrs are our own addresses, which no request may reach.
func (d *doors) addrs() []net.Addr {
	var out []net.Addr
	for _, ln := range d.all() {
		if _, ok := ln.(*isolate.Late); !ok { // the address of another network
			out = append(out, ln.Addr())
		}
	}
	if d.extra != nil {
		out = append(out, d.extra.Addr())
	}
	return out
}

// ports are those that the agent may connect to.
func (d *doors) ports() []uint16 {
	var out []uint16
	for _, ln := range d.all() {
		if t, ok := ln.Addr().(*net.TCPAddr); ok {
			out = append(out, t.AddrPort().Port())
		}
	}
	return out
}

func (d *doors) close() {
	for _, ln := range d.all() {
		_ = ln.Close() // serving may have closed it
	}
	if d.extra != nil {
		_ = d.extra.Close()
	}
}
