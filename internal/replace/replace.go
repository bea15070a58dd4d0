// Package replace gives a file new content in one step: a temporary file beside
// it is written, perhaps synced, and renamed. Who reads sees the old content or
// the new, never half of one, and a program that is killed leaves the old.
//
// A symbolic link at the temporary name is never followed, and what cannot be
// finished is removed. A link at the file's own name is replaced, not followed.
package replace

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Durability is what a power failure may take.
type Durability int

// What is synced.
const (
	// Durable syncs file and folder: once it is said to be replaced, the old
	// content does not come back.
	Durable Durability = iota
	// Whole syncs the file only: what comes back is the old or the new, whole.
	Whole
	// Volatile syncs nothing: the file may come back empty or cut.
	Volatile
)

// How a file is replaced. The zero value is for a secret: readable by its owner
// only, and durable.
type How struct {
	// Mode holds whatever the umask is, from before the first byte; 0: 0600.
	Mode       fs.FileMode
	Durability Durability
	// Sole says that nobody else replaces the file at the same time. The
	// temporary file is then PATH.new, and the next call removes one that a
	// killed program has left. Otherwise it has a name that nobody can guess, and
	// one that is left stays.
	Sole bool

	steps *steps // nil: the system's
}

// steps are what must happen in this order. Tests watch them, and let them fail.
type steps struct {
	sync   func(*os.File) error
	rename func(from, to string) error
	folder func(dir string) error
}

// File replaces the file called path, or makes it. After an error the old
// content is whole, unless only the folder could not be synced: then the new is,
// and may not last.
func File(path string, content []byte, how How) error {
	return Write(path, how, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// Write is [File] with the content that write writes. Its error is returned, and
// nothing is replaced.
func Write(path string, how How, write func(io.Writer) error) (err error) {
	do := how.steps
	if do == nil {
		do = &steps{(*os.File).Sync, os.Rename, Folder}
	}
	f, err := how.temporary(path)
	if err != nil {
		return err
	}
	renamed := false
	defer func() { // also when write panics
		if renamed {
			return
		}
		_ = f.Close() // mostly closed already
		if e := os.Remove(f.Name()); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	if err = f.Chmod(how.mode()); err == nil {
		err = write(f)
	}
	if err == nil && how.Durability != Volatile {
		err = do.sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = do.rename(f.Name(), path); err != nil {
		return err
	}
	renamed = true
	if how.Durability == Durable {
		return do.folder(filepath.Dir(path))
	}
	return nil
}

// Folder makes the names in a folder durable.
func Folder(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the caller's own folder
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (h How) mode() fs.FileMode {
	if h.Mode == 0 {
		return 0o600
	}
	return h.Mode
}

// temporary makes a file that nobody else has opened. Nobody but the owner can
// open it before its mode is set.
func (h How) temporary(path string) (*os.File, error) {
	if !h.Sole {
		return os.CreateTemp(filepath.Dir(path), ".new-*") // O_EXCL, 0600
	}
	name := path + ".new"
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}
