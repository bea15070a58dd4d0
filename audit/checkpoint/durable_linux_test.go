package checkpoint_test

import (
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/test/unprivileged"
)

// unsyncable makes a folder, in which names can be made but which cannot be
// opened to make them durable, and runs check as one whom that binds. Paths must
// be relative: the way to a test's folder is closed to others.
func unsyncable(t *testing.T, dir string, check func()) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o300)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Chmod(dir, 0o700); err != nil { // to be removed
			t.Error(err)
		}
	}()
	unprivileged.Run(t, dir, check)
}

// A witness gives no signature away that a power failure could make it forget:
// it would sign another checkpoint in that one's place.
func TestWitnessSignsWhatItCannotForget(t *testing.T) {
	t.Chdir(t.TempDir())
	signer, key := newKey(t, "attache/test")
	second, _ := newKey(t, "witness.example.com")
	w := &checkpoint.Witness{Dir: "witness", Signer: second, Known: note.VerifierList(key)}
	one := statement(t, signer, 1, chain.Hash{}, 10)
	two := statement(t, signer, 2, digest(t, one), 20)
	refuses := func(p checkpoint.Published) func() {
		return func() {
			if b, err := w.Sign(p.Note); !errors.Is(err, fs.ErrPermission) || b != nil {
				t.Errorf("signed %q: %v", b, err)
			}
		}
	}
	unsyncable(t, "witness", refuses(one)) // the origin's folder is a new name
	if _, err := w.Sign(one.Note); err != nil {
		t.Fatal(err)
	}
	origins, err := filepath.Glob("witness/*")
	if err != nil || len(origins) != 1 {
		t.Fatalf("folders %q, %v", origins, err)
	}
	unsyncable(t, origins[0], refuses(two))
	if _, err := w.Sign(two.Note); err != nil {
		t.Error(err)
	}
}

// A checkpoint counts as delivered when its names last, too.
func TestDirectorySyncsItsNames(t *testing.T) {
	t.Chdir(t.TempDir())
	signer, _ := newKey(t, "attache/test")
	d, p := checkpoint.Directory{Path: "outside"}, statement(t, signer, 1, chain.Hash{}, 1)
	unsyncable(t, "outside", func() {
		if err := d.Put(t.Context(), p); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
	if err := d.Put(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// What is there already, as a program that was killed before it was done has left
// it, is synced before it counts: the file, and its name.
func TestDirectorySyncsWhatIsThere(t *testing.T) {
	t.Chdir(t.TempDir())
	signer, _ := newKey(t, "attache/test")
	d, p := checkpoint.Directory{Path: "outside"}, statement(t, signer, 1, chain.Hash{}, 1)
	unsyncable(t, "outside", func() {
		if err := d.Put(t.Context(), p); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
	if err := os.Remove("outside/latest"); err != nil {
		t.Fatal(err)
	}
	unsyncable(t, "outside", func() {
		if err := d.Put(t.Context(), p); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
	if _, err := os.Lstat("outside/latest"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the newest was written before the names of its parts last: %v", err)
	}
	const cannot = "/proc/sys/kernel/ostype" // be synced
	var err error
	if p.Note, err = os.ReadFile(cannot); err != nil {
		t.Fatal(err)
	}
	p.Number++
	if err := os.Symlink(cannot, "outside/000000000002.checkpoint"); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), p); !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
}

// What could not be written whole is not left behind, where it would count as
// written when it is looked at again.
func TestDirectoryLeavesNothingHalf(t *testing.T) {
	signer, _ := newKey(t, "attache/test")
	dir := t.TempDir()
	d, p := checkpoint.Directory{Path: dir}, statement(t, signer, 1, chain.Hash{}, 1)
	var had unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &had); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	little := had
	little.Cur = 8
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &little); err != nil {
		t.Fatal(err)
	}
	err := d.Put(t.Context(), p)
	if e := unix.Setrlimit(unix.RLIMIT_FSIZE, &had); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, unix.EFBIG) {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "000000000001.checkpoint")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %q, %v", b, err)
	}
	if err := d.Put(t.Context(), p); err != nil {
		t.Error(err)
	}
}
