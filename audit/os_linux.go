package audit

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync makes f's content durable: fdatasync(2), which includes the length.
func datasync(f *os.File) error {
	return ignoringEINTR(func() error { return unix.Fdatasync(int(f.Fd())) })
}

// allocate keeps blocks for f from off on without changing its length, so that
// a full disk cannot refuse a line that has been promised room. It answers
// errors.ErrUnsupported where the file system cannot.
func allocate(f *os.File, off, n int64) error {
	return ignoringEINTR(func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n) })
}
