//go:build linux

package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inheritedFiles looks for descriptors beyond the standard three, before this
// program has opened any.
func inheritedFiles() error {
	for fd := 3; fd < 1024; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			continue
		}
		link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		// The Go runtime's own: the poller, and its cgroup's cpu.max.
		if !strings.HasPrefix(link, "anon_inode:") && !strings.Contains(link, "/cpu.") {
			return nil
		}
	}
	return errNothing
}

func fileAttempts(t *targets) []attempt {
	list := []attempt{
		{"read the issuer's key", func(t *targets) error { return readCanary(t.Key) }},
		{"list the state folder", func(t *targets) error { return listed(t.State) }},
		{"read the key through /proc/self/root", func(t *targets) error { return readCanary("/proc/self/root" + t.Key) }},
		{"read the key through /proc/self/cwd/..", func(t *targets) error {
			wd, err := os.Getwd()
			if err != nil {
				return err
			}
			return readCanary("/proc/self/cwd" + strings.Repeat("/..", strings.Count(wd, "/")) + t.Key)
		}},
		{"read the key through a symbolic link", func(t *targets) error {
			link := filepath.Join(t.Scratch, "symlink")
			defer func() { _ = os.Remove(link) }()
			return errors.Join(os.Symlink(t.Key, link), readCanary(link))
		}},
		{"read the key through a hard link", func(t *targets) error {
			link := filepath.Join(t.Scratch, "hardlink")
			defer func() { _ = os.Remove(link) }()
			return errors.Join(os.Link(t.Key, link), readCanary(link))
		}},
		{"delete the spool", deleteSpool},
		{"write to the state folder", func(t *targets) error { return create(filepath.Join(t.State, "planted")) }},
		{"edit the policy", func(t *targets) error { return openWrite(t.Policy) }},
		{"add a policy", func(t *targets) error { return create(filepath.Join(filepath.Dir(t.Policy), "allow-all.yaml")) }},
		{"replace the policy", func(t *targets) error { return replace(t.Policy, t.Scratch) }},
		{"delete the policy", func(t *targets) error { return replaceBack(t.Policy, t.Policy+".old") }},
		{"chmod the policy", func(t *targets) error { return os.Chmod(t.Policy, 0o666) }},
		{"replace attache's binary", func(t *targets) error { return replaceBack(t.Binary, t.Binary+".old") }},
		{"edit a start-up file of the shell", func(t *targets) error { return openWrite(t.Startup) }},
	}
	for _, dir := range t.Renames {
		list = append(list, attempt{"put another folder in the place of " + filepath.Base(dir), func(*targets) error { return replaceBack(dir, dir+".old") }})
	}
	for _, f := range t.Secrets {
		list = append(list, attempt{"read " + tail(f), func(*targets) error { return readCanary(f) }})
	}
	list = append(list, attempt{"read " + t.Near + " from the working folder", func(t *targets) error { return readCanary(t.Near) }})
	for _, n := range t.Nodes {
		list = append(list, attempt{"read a device in " + filepath.Dir(n), func(*targets) error { _, err := readSome(n); return err }})
	}
	for _, s := range t.Sockets {
		list = append(list, attempt{"connect to " + filepath.Base(s), func(*targets) error { return connect(s) }},
			attempt{"connect to " + filepath.Base(s) + " through /proc/PID/root", func(t *targets) error {
				// A socket address holds 108 bytes.
				dir, err := os.Open("/proc/" + strconv.Itoa(t.Parent) + "/root" + filepath.Dir(s))
				if err != nil {
					return err
				}
				defer func() { _ = dir.Close() }()
				return connect("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(s))
			}})
	}
	return append(list, attempt{"connect to an abstract socket", func(t *targets) error { return connect("@" + t.Abstract) }})
}

func tail(path string) string {
	return filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))
}

func listed(dir string) error {
	e, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(e) == 0 {
		return errNothing
	}
	return nil
}

func openWrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errNothing // covered by /dev/null
	}
	return nil
}

func create(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	return os.Remove(path)
}

// replace renames a new file over path; its content stays the same.
func replace(path, scratch string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	tmp := filepath.Join(scratch, "new")
	defer func() { _ = os.Remove(tmp) }()
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// replaceBack renames path away and back again.
func replaceBack(path, old string) error {
	if err := os.Rename(path, old); err != nil {
		return err
	}
	return os.Rename(old, path)
}

func deleteSpool(t *targets) error {
	b, err := os.ReadFile(t.Spool)
	if err != nil {
		return err
	}
	if err := os.Remove(t.Spool); err != nil {
		return err
	}
	return os.WriteFile(t.Spool, b, 0o600)
}

func connect(path string) error {
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	var b [256]byte
	n, _ := c.Read(b[:])
	return findCanary(b[:n])
}

// isBlock reports a block device, as the kernel and not a mount shows it.
func isBlock(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0 && st.Sys().(*syscall.Stat_t).Rdev != 0
}
