package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is a line of /proc/self/mountinfo.
type mountPoint struct {
	dev  string // major:minor
	root string // what of the file system is mounted
	path string // where
	kind string // file system type
}

// readMounts parses mountinfo, see proc_pid_mountinfo(5).
func readMounts() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	var list []mountPoint
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if m, ok := parseMount(sc.Text()); ok {
			list = append(list, m)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return list, nil
}

func parseMount(line string) (mountPoint, bool) {
	before, after, ok := strings.Cut(line, " - ")
	f := strings.Fields(before)
	kind, _, _ := strings.Cut(after, " ")
	if !ok || len(f) < 6 || kind == "" {
		return mountPoint{}, false
	}
	return mountPoint{dev: f[2], root: unescape(f[3]), path: unescape(f[4]), kind: kind}, true
}

// unescape undoes the octal escapes of mountinfo (\040 is a space).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// inside maps a path of a file system to where m shows it.
func (m mountPoint) inside(rel string) (string, bool) {
	if rel == m.root {
		return m.path, true
	}
	if !below(rel, m.root) {
		return "", false
	}
	return filepath.Join(m.path, strings.TrimPrefix(rel, m.root)), true
}

// aliases lists the other paths at which the same file or folder, or a part of
// it, is mounted: covering one spelling would leave the others.
func aliases(mounts []mountPoint, path string) []string {
	var home *mountPoint
	for i := range mounts {
		m := &mounts[i]
		if (m.path == path || below(path, m.path)) && (home == nil || len(m.path) >= len(home.path)) {
			home = m
		}
	}
	if home == nil {
		return nil
	}
	rel := filepath.Join(home.root, strings.TrimPrefix(path, home.path))
	var out []string
	for _, m := range mounts {
		if m.dev != home.dev {
			continue
		}
		alias, ok := m.inside(rel)
		if !ok && below(m.root, rel) {
			alias, ok = m.path, true
		}
		if ok && alias != path && !below(alias, path) {
			if _, err := os.Lstat(alias); err == nil {
				out = append(out, alias)
			}
		}
	}
	return out
}

// System paths that hold no business of an agent's and lead out of the
// sandbox: through them root writes core_pattern or uevent_helper, freezes or
// joins cgroups, reads traces of other processes.
var (
	systemReadOnly = [...]string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/scsi", "/proc/acpi"}
	systemCovered  = [...]string{
		"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug", "/proc/vmcore",
		"/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/firmware",
	}
)

// mountAll builds the child's view of the file system in the mount namespace
// that the stage was cloned into.
func mountAll(sp *spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	// First: the mounts made below inherit it.
	if err := forbidDevices(mounts); err != nil {
		return err
	}
	// A folder above policy or state cannot be renamed away, and another put
	// in its place, while it is a mount point.
	for _, p := range sp.Pin {
		if err := bind(p, p); err != nil {
			return fmt.Errorf("pin %s: %w", p, err)
		}
	}
	for _, p := range sp.ReadOnly {
		if err := readOnly(p); err != nil {
			return err
		}
	}
	if err := guardSystem(); err != nil {
		return err
	}
	if err := guardDevices(mounts); err != nil {
		return err
	}
	for _, p := range sp.Private {
		opts := fmt.Sprintf("mode=0700,size=10%%,uid=%d,gid=%d", sp.uid(), sp.gid())
		if err := unix.Mount("attache", p, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil && !gone(err) {
			return fmt.Errorf("cover %s: %w", p, err)
		}
	}
	for _, p := range sp.Cover {
		if err := cover(p); err != nil {
			return err
		}
	}
	return mountResolv(sp)
}

// gone reports that a path is not there, or not for the child either.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTDIR)
}

// bind mounts from, with all that is mounted below, at to.
func bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "") }

func setAttr(path string, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_SYMLINK_NOFOLLOW)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(unix.AT_FDCWD, path, flags, &attr)
}

// readOnly makes path, and what is mounted below it, read-only.
func readOnly(path string) error {
	if err := bind(path, path); err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("make %s a mount: %w", path, err)
	}
	if err := setAttr(path, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// cover puts an empty read-only folder, or /dev/null, over path.
func cover(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("cover: %w", err)
	}
	if st.IsDir() {
		err = unix.Mount("attache", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k")
	} else {
		err = bind("/dev/null", path)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	return nil
}

// forbidDevices takes device nodes outside /dev from root. Mounts that are
// made later from these inherit it.
func forbidDevices(mounts []mountPoint) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, m := range mounts {
		if m.path == "/dev" || below(m.path, "/dev") {
			continue
		}
		err := setAttr(m.path, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV})
		if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) { // EINVAL: covered by another mount
			return fmt.Errorf("forbid devices on %s: %w", m.path, err)
		}
	}
	return nil
}

// guardSystem makes /sys and the dangerous parts of /proc read-only or
// invisible.
func guardSystem() error {
	for _, p := range systemReadOnly {
		if err := readOnly(p); err != nil {
			return err
		}
	}
	if err := readOnly("/sys"); err != nil {
		return err
	}
	for _, p := range systemCovered {
		if err := cover(p); err != nil {
			return err
		}
	}
	return nil
}

// harmlessDevice reports whether a node under /dev is one that agents use and
// that shows nothing of other processes or disks. The rest is hidden.
func harmlessDevice(path string) bool {
	switch name := strings.TrimPrefix(path, "/dev/"); name {
	case "null", "zero", "full", "random", "urandom", "tty", "ptmx", "fuse", "kvm", "kfd",
		"pts", "shm", "mqueue", "dri", "accel", "snd", "fd", "stdin", "stdout", "stderr":
		return true
	default:
		first, _, _ := strings.Cut(name, "/")
		return strings.HasPrefix(first, "nvidia") || first != name && first != "net" && harmlessDevice("/dev/"+first)
	}
}

// guardDevices covers every device the child could open, but the harmless
// ones: whoever reads the disk needs no files.
func guardDevices(mounts []mountPoint) error {
	var nodes []string
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // what cannot be listed cannot be covered one by one; below it is unreadable for the child too
		case d.IsDir():
			if path != "/dev" && (harmlessDevice(path) || foreignMount(mounts, path)) {
				return fs.SkipDir
			}
		case d.Type()&fs.ModeDevice != 0 && !harmlessDevice(path):
			if unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS) == nil ||
				unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) == nil {
				nodes = append(nodes, path)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, p := range nodes {
		if err := bind("/dev/null", p); err != nil && !gone(err) {
			return fmt.Errorf("cover device %s: %w", p, err)
		}
	}
	return nil
}

// foreignMount reports whether a file system that holds no devices of the
// machine's (hugetlbfs, mqueue, tmpfs) is mounted at path.
func foreignMount(mounts []mountPoint, path string) bool {
	for _, m := range mounts {
		if m.path == path {
			return m.kind != "devtmpfs"
		}
	}
	return false
}
