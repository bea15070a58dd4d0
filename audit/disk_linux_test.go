package audit

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tmpfs mounts a file system of the given size, or skips.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting needs root; the injected errors of TestDiskFailures run everywhere: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestFullDisk fails when a begin does not reserve its end's blocks: somebody
// else takes the last ones.
func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "1m")
	spool := filepath.Join(dir, "audit")
	s := mustOpen(t, Options{Dir: spool})
	var open []Ticket
	for range 60 {
		tk, _ := mustBegin(t, s)
		open = append(open, tk)
	}
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Close() //nolint:errcheck // goes with the mount
	for err == nil {
		_, err = hog.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	var refused error
	for range 5000 {
		tk, err := s.Begin(t.Context(), sample())
		if refused = err; err != nil {
			break
		}
		open = append(open, tk)
	}
	if !errors.Is(refused, ErrFull) || !errors.Is(s.Healthy(), ErrFull) {
		t.Fatalf("full disk: begin %v, Healthy %v; want ErrFull", refused, s.Healthy())
	}
	for i, tk := range open {
		if err := tk.End(ok200(), &Use{Handle: "cred_x", Provider: "p", Kind: "bearer"}, nil, nil); err != nil {
			t.Fatalf("end %d of %d on a full disk: %v", i, len(open), err)
		}
	}
	if err := os.Remove(hog.Name()); err != nil {
		t.Fatal(err)
	}
	_ = hog.Truncate(0)
	if err := s.Healthy(); err != nil {
		t.Errorf("Healthy with space again: %v", err)
	}
	tk, _ := mustBegin(t, s)
	mustEnd(t, tk)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := wantWhole(t, spool); rep.Requests != len(open)+1 || rep.Open != 0 || rep.Unknown != 0 {
		t.Errorf("%s", rep.String())
	}
}

func TestOverwriteOnFullDisk(t *testing.T) {
	spool := filepath.Join(tmpfs(t, "256k"), "audit")
	s := mustOpen(t, Options{Dir: spool, SegmentBytes: 16 << 10, OnFull: OnFullOverwrite})
	for range 1000 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := wantWhole(t, spool); rep.Dropped == "" {
		t.Errorf("nothing dropped: %s", rep.String())
	}
}

func TestReadOnlyDisk(t *testing.T) {
	dir := tmpfs(t, "1m")
	s := mustOpen(t, Options{Dir: filepath.Join(dir, "audit")})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skip(err)
	}
	if _, err := Open(Options{Dir: filepath.Join(dir, "audit")}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("open on a read-only disk: %v, want EROFS", err)
	}
	if err := Read(filepath.Join(dir, "audit"), Filter{}, func(Record) bool { return true }); err != nil {
		t.Errorf("reading from a read-only disk: %v", err)
	}
}

// TestReservedBlocksAreGivenBack looks at the blocks of closed segments.
func TestReservedBlocksAreGivenBack(t *testing.T) {
	s := mustOpen(t, Options{})
	tk, _ := mustBegin(t, s)
	mustEnd(t, tk)
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(s.path(1), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if s.noAlloc {
		t.Skip("this file system does not reserve")
	}
	if got := blocks(); got < endReserve*2 {
		t.Errorf("%d bytes reserved while open", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := blocks(); got > 8<<10 {
		t.Errorf("%d bytes kept after close for %d", got, s.Stats().Size)
	}
}
