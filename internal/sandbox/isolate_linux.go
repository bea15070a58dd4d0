package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/isolate"
)

// joint makes the socket by which the stage passes what it opened in its
// network namespace; without one both ends are nil.
func (s *Sandbox) joint() (ours *net.UnixConn, theirs *os.File, err error) {
	if s.spec.Net == nil {
		return nil, nil, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket for the stage: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "joint") //nolint:gosec // a descriptor
	f := os.NewFile(uintptr(fds[0]), "joint")     //nolint:gosec // a descriptor
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("%T is no Unix socket", c), c.Close(), theirs.Close())
	}
	return u, theirs, nil
}

// join takes the sockets over and lets the stage go on. An error ends the
// stage, which waits for a byte and gets none.
func (s *Sandbox) join(c *net.UnixConn) error {
	if c == nil {
		return nil
	}
	defer func() { _ = c.Close() }()
	sockets, err := isolate.Receive(c)
	if err != nil {
		return err
	}
	if s.opts.Isolated == nil {
		err = sockets.Close()
	} else {
		err = s.opts.Isolated(sockets)
	}
	if err == nil {
		_, err = c.Write([]byte{1})
	}
	return err
}

// network is the stage's end of join, in its new network namespace and with
// capabilities over it, which confine takes.
func network(sp *spec) error {
	files, kinds, err := isolate.Build(*sp.Net)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil || sp.Probe {
		return err
	}
	defer func() { _ = unix.Close(joinFD) }()
	if err := isolate.Pass(joinFD, files, kinds); err != nil {
		return err
	}
	var b [1]byte
	for {
		n, err := unix.Read(joinFD, b[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			return errors.New("the launcher did not serve the network of the child")
		}
		return nil
	}
}

const resolvPath = "/etc/resolv.conf"

// resolvConf plans to put file in the place of resolv.conf. Where that is
// missing or leads nowhere, nothing has to be done: resolvers then ask the
// server on loopback, which is ours.
func (sp *spec) resolvConf(file string) {
	real, err := filepath.EvalSymlinks(resolvPath)
	if err == nil {
		sp.Resolv, sp.ResolvAt = file, real
	}
}

// mountResolv comes after what is covered.
func mountResolv(sp *spec) error {
	if sp.Resolv == "" {
		return nil
	}
	if _, err := os.Lstat(sp.ResolvAt); err != nil {
		return nil //nolint:nilerr // it is in a folder that is covered: leads nowhere, see resolvConf
	}
	if err := bind(sp.Resolv, sp.ResolvAt); err != nil {
		return fmt.Errorf("put the child's resolv.conf in its place: %w", err)
	}
	if err := setAttr(sp.ResolvAt, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the child's resolv.conf read-only: %w", err)
	}
	return nil
}

// socketEntries bounds how much of a folder is looked at for sockets.
const socketEntries = 20000

// outsideSockets lists Unix sockets that have a path: they belong to no
// network namespace, and whoever listens there, a resolver, a log daemon, a
// database, is a way out. Abstract ones are in a network namespace each.
func outsideSockets() []string {
	var out []string
	add := func(path string) {
		if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket != 0 {
			out = append(out, path)
		}
	}
	seen := map[string]bool{}
	for _, proc := range processes() {
		// The list of sockets is that of a network namespace. Containers have
		// others, which may have sockets in folders of this machine.
		ns, err := os.Readlink(proc + "/ns/net")
		if err != nil || seen[ns] { // not ours to look at: see below
			continue
		}
		seen[ns] = true
		b, err := os.ReadFile(proc + "/net/unix")
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			// Num RefCount Protocol Flags Type St Inode Path, which may hold spaces
			if i := strings.Index(l, " /"); i >= 0 {
				add(strings.TrimSuffix(l[i+1:], "\n"))
			}
		}
	}
	// What other users' containers have is found as files.
	for _, f := range []struct {
		root  string
		depth int // of folders below it that are looked into
	}{{"/run", 4}, {"/var/run", 4}, {"/tmp", 1}, {"/var/tmp", 1}, {"/dev/shm", 1}} {
		real, err := filepath.EvalSymlinks(f.root)
		if err != nil || f.root != "/run" && real == "/run" {
			continue
		}
		left := socketEntries
		_ = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
			left--
			switch {
			case left < 0:
				return fs.SkipAll
			case err != nil:
				return nil //nolint:nilerr // what we cannot list the child cannot, either
			case d.IsDir() && strings.Count(strings.TrimPrefix(path, real), "/") > f.depth:
				return fs.SkipDir
			case d.Type()&fs.ModeSocket != 0:
				out = append(out, path)
			}
			return nil
		})
	}
	return out
}

// processes lists folders of /proc, our own first.
func processes() []string {
	all, _ := filepath.Glob("/proc/[0-9]*") // only a bad pattern errs
	return append([]string{"/proc/self"}, all...)
}

// hideSockets covers each socket alone: the folder may hold the child's work.
func (v *view) hideSockets() {
	for _, p := range outsideSockets() {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			v.cover = append(v.cover, real)
		}
	}
	v.limits = append(v.limits, "a daemon's Unix socket that appears after the start, where the child may see it, is not covered: it can be talked to past the proxy")
}
