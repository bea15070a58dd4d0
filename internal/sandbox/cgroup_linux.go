package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// newCgroup makes a cgroup (version 2) below our own one, wherever the
// hierarchy is mounted. An error means that the machine has none or has not
// delegated it to this user.
func newCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	own := ""
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			own = strings.TrimSuffix(p, "\n")
		}
	}
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.kind != "cgroup2" || own == "" {
			continue
		}
		parent, ok := m.inside(own)
		if !ok {
			continue
		}
		dir := filepath.Join(parent, "attache-"+randomHex())
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", fmt.Errorf("make a cgroup for the run: %w", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil { // Linux 5.14
			_ = os.Remove(dir)
			return "", fmt.Errorf("make a cgroup for the run: %w", err)
		}
		return dir, nil
	}
	return "", errors.New("no cgroup2 hierarchy is mounted")
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// killCgroup kills every process in dir and below.
func killCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
}

// populated reports whether a process lives in dir or below.
func populated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(b), "populated 1")
}

// removeCgroup removes dir and the cgroups below it.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
