package audit

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	segmentSuffix = ".jsonl"
	segmentDigits = 10
	lockName      = "lock"
)

// segment is one file of the spool. Its fields are guarded by Spool.mu.
type segment struct {
	number   int64
	size     int64 // bytes of whole lines
	lines    int64
	open     int // begins in it without an end
	last     mark
	closedAt time.Time // when the next one was begun
}

func segmentName(n int64) string {
	return fmt.Sprintf("%0*d%s", segmentDigits, n, segmentSuffix)
}

// listSegments returns the numbers of the segments in dir, ascending.
func listSegments(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read audit directory: %w", err)
	}
	var l []int64
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok || len(digits) < segmentDigits || !e.Type().IsRegular() {
			continue
		}
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n > 0 {
			l = append(l, n)
		}
	}
	slices.SortFunc(l, cmp.Compare[int64])
	return l, nil
}

// openSegment opens a segment for writing; it never follows a link.
func openSegment(dir string, n int64, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, segmentName(n)), os.O_RDWR|unix.O_NOFOLLOW|flag, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return nil, fmt.Errorf("open audit segment: %w", err)
	}
	return f, nil
}

// makeDir creates the spool's directory for its owner alone, and closes one
// that stands open to others.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make audit directory: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at audit directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("audit.dir: %s is not a directory", dir)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs x
			return fmt.Errorf("close audit directory to other users: %w", err)
		}
	}
	return nil
}

// tryLock takes the single-writer lock and says whether it got it. The lock
// goes with the process, however that ends.
func tryLock(f *os.File, shared bool) (bool, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// writerAlive reports whether a producer holds the spool in dir. A reader holds
// the lock for a moment when there is none; Open waits longer than that.
func writerAlive(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName)) //nolint:gosec // our own directory
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	got, err := tryLock(f, true)
	return err == nil && !got
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // a bare errno
			return err
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}
