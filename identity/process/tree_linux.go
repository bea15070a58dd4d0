package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// tree is the set of processes of a run.
type tree struct {
	cgroup string // folder, or "" to go by parentage
	id     uint64 // of the cgroup
	parent int
}

func newTree(o Options) (tree, error) {
	t := tree{cgroup: o.CgroupDir, parent: o.Parent}
	if t.parent == 0 {
		t.parent = os.Getpid()
	}
	if t.cgroup == "" {
		return t, nil
	}
	id, _, err := cgroupID(t.cgroup)
	if err != nil {
		return t, fmt.Errorf("find the run's cgroup: %w", err)
	}
	t.id = id
	return t, nil
}

// cgroupID is the id of the cgroup at dir, which is its inode number, and
// whether there are cgroups below it.
func cgroupID(dir string) (id uint64, leaf bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, false, err
	}
	return st.Ino, st.Nlink <= 2, nil
}

// ownsCgroup reports whether id is the run's cgroup or one below it.
func (t tree) ownsCgroup(id uint64) bool {
	if id == t.id {
		return true
	}
	found := false
	t.each(t.cgroup, func(_ string, sub uint64) { found = found || sub == id })
	return found
}

// each calls f for dir and all cgroups below it.
func (t tree) each(dir string, f func(dir string, id uint64)) {
	id, leaf, err := cgroupID(dir)
	if err != nil {
		return
	}
	f(dir, id)
	if leaf {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			t.each(filepath.Join(dir, e.Name()), f)
		}
	}
}

// pids lists the run's processes in ascending order.
func (t tree) pids() []int {
	var out []int
	if t.cgroup == "" {
		out = descendants(t.parent, nil)
	} else {
		t.each(t.cgroup, func(dir string, _ uint64) {
			if b, err := readFile(dir + "/cgroup.procs"); err == nil {
				out = appendInts(out, b)
			}
		})
	}
	slices.Sort(out)
	return out
}

// has reports whether pid is one of the run's processes now.
func (t tree) has(pid int) bool {
	if t.cgroup != "" {
		return slices.Contains(t.pids(), pid)
	}
	for range maxDepth {
		b, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		// The name, in parentheses, may hold anything; see proc_pid_stat(5).
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(string(f[1])); err != nil || pid <= 1 && pid != t.parent {
			return false
		}
		if pid == t.parent {
			return true
		}
	}
	return false
}

// maxDepth bounds the walk from a process up to the one that started the run.
const maxDepth = 1000

func descendants(pid int, out []int) []int {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return out
	}
	for _, t := range tasks {
		b, err := readFile(dir + "/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, c := range appendInts(nil, b) {
			out = descendants(c, append(out, c))
		}
	}
	return out
}

func appendInts(out []int, b []byte) []int {
	for _, f := range bytes.Fields(b) {
		if n, err := strconv.Atoi(string(f)); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// maxProcFile bounds what is read of one file under /proc or a cgroup.
const maxProcFile = 1 << 20

// readFile reads a small kernel file without the poller, stat and growth of
// os.ReadFile.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 0, 512)
	for len(buf) < maxProcFile {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
	return nil, fmt.Errorf("%s is longer than %d bytes", path, maxProcFile)
}
