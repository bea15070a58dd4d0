package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity/process"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/isolate"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/proxy/front"
)

// Values of [Options.Isolate] beside none.
const (
	// IsolateAlways gives the agent a network of its own or does not start it.
	IsolateAlways = "always"
	// IsolateAuto goes on without where that is impossible, and says so.
	IsolateAuto = "auto"
)

// isolation is the agent's own network, seen from outside.
type isolation struct {
	spec  isolate.Spec
	doors []*isolate.Late // in the order of spec.Ports
	names *isolate.Names

	plane    *plane            // set before the agent starts
	attestor *process.Attestor // as well
	sockets  *isolate.Sockets
	resolver sync.WaitGroup
}

// Isolation says why [IsolateAlways] would not start an agent here; nil: it
// would.
func Isolation(ctx context.Context) error {
	box, err := sandbox.New(ctx, sandbox.Options{Dir: "/", Isolate: &isolate.Spec{}})
	if err != nil {
		return err
	}
	return box.Close()
}

// isolatedDoors is openDoors where the ports are the namespace's: it is empty,
// so that they are free, and comes with the agent, so that they are late.
func isolatedDoors(o *Options, b *api.Bundle) (*doors, *isolation, error) {
	i := &isolation{names: isolate.NewNames(time.Now)}
	next := uint16(isolate.FirstDoorPort)
	door := func(where string) (net.Listener, error) {
		at, err := netip.ParseAddrPort(where)
		if where == "" {
			at, err = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), nil
		}
		if err != nil || at.Addr() != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
			return nil, fmt.Errorf("%w: %s is not 127.0.0.1:PORT", ErrUsage, where)
		}
		if at.Port() == 0 {
			at = netip.AddrPortFrom(at.Addr(), next)
			next++
		}
		l := isolate.NewLate(net.TCPAddrFromAddrPort(at))
		i.spec.Ports, i.doors = append(i.spec.Ports, at.Port()), append(i.doors, l)
		return l, nil
	}
	d := &doors{}
	var err error
	if d.proxy, err = door(o.Listen); err != nil {
		return nil, nil, fmt.Errorf("open the proxy's port: %w; choose another with --listen", err)
	}
	if dataplane.NeedsAWSPort(b) {
		if d.aws, err = door(""); err != nil {
			return nil, nil, fmt.Errorf("open the AWS door's port: %w", err)
		}
	}
	for k := range b.Providers {
		for _, u := range b.Providers[k].Spec.BaseURLs {
			ln, err := door(u.Listen)
			if err != nil {
				return nil, nil, fmt.Errorf("base URL %s: %w; choose another listen address", u.Env, err)
			}
			d.bases = append(d.bases, baseDoor{u, ln})
		}
	}
	return d, i, nil
}

// isolated makes a sandbox with a network of its own. The error matches
// [isolate.ErrForbidden] where that is impossible. The options are those for
// others that shall be in a sandbox just like it.
func (o *Options) isolated(ctx context.Context, b *api.Bundle, so sandbox.Options, trustDir string) (*sandbox.Sandbox, *isolation, sandbox.Options, *doors, error) {
	d, i, err := isolatedDoors(o, b)
	if err != nil {
		return nil, nil, so, nil, err
	}
	if d.extra, err = openExtra(ctx, b.Config.Spec.Admin.Listen); err != nil {
		return nil, nil, so, nil, err
	}
	if so.ResolvConf, err = writeResolvConf(trustDir); err != nil {
		d.close()
		return nil, nil, so, nil, err
	}
	so.Isolate = &i.spec
	own := so
	own.Isolated = i.join
	box, err := sandbox.New(ctx, own)
	if err != nil {
		d.close()
		if o.Isolate == IsolateAlways && errors.Is(err, isolate.ErrForbidden) {
			err = fmt.Errorf("%w; --isolate=%s goes on without where it is impossible, and says so", err, IsolateAuto)
		}
		return nil, nil, so, nil, err
	}
	return box, i, so, d, nil
}

// join serves the agent's network. The agent does not run before it returns.
func (i *isolation) join(s *isolate.Sockets) error {
	i.sockets = s
	if len(s.Doors) != len(i.doors) || s.Diag == nil || len(s.Transparent) == 0 {
		return errors.New("the agent's network is not complete")
	}
	if err := i.attestor.Enter(s.Diag); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "" // it is asked for by its name then as any other
	}
	r := &isolate.Resolver{Names: i.names, IPv6: s.IPv6, Host: strings.ToLower(host)}
	i.resolver.Go(func() { r.Serve(s) })
	for k, ln := range s.Doors {
		i.doors[k].Give(ln)
	}
	for _, ln := range s.Transparent {
		i.plane.ServeTransparent(ln, front.Transparent{Original: isolate.Original, Names: i.names.Name})
	}
	return nil
}

// close comes behind the data path, which has closed what it served.
func (i *isolation) close() error {
	if i == nil || i.sockets == nil {
		return nil
	}
	err := i.sockets.Close()
	i.resolver.Wait()
	return err
}

// writeResolvConf puts the agent's resolv.conf where only we write.
func writeResolvConf(trustDir string) (string, error) {
	file := filepath.Join(trustDir, "resolv.conf")
	if err := os.WriteFile(file, []byte(isolate.ResolvConf), 0o644); err != nil { //nolint:gosec // public; the child may run as another user
		return "", fmt.Errorf("write the agent's resolv.conf: %w", err)
	}
	return file, nil
}
