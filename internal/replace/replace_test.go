package replace_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/attache-dev/attache/internal/replace"
)

const before, after = "what was there", "what is to be there"

// hows are all ways, with the names that tests have.
func hows() map[string]replace.How {
	all := map[string]replace.How{}
	for d, name := range map[replace.Durability]string{replace.Durable: "durable", replace.Whole: "whole", replace.Volatile: "volatile"} {
		all[name] = replace.How{Durability: d}
		all[name+", sole"] = replace.How{Durability: d, Sole: true}
	}
	return all
}

// each runs check on a file that is there already, in a folder of its own.
func each(t *testing.T, check func(t *testing.T, path string, how replace.How)) {
	t.Helper()
	for name, how := range hows() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			put(t, path, before)
			check(t, path, how)
		})
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

// holds checks a file's content.
func holds(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s holds %q (%v), want %q", filepath.Base(path), b, err, want)
	}
}

// alone checks that a folder holds these names and nothing else.
func alone(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the folder holds %q, want %q", got, want)
	}
}

func TestFile(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		for _, content := range []string{after, "", before} {
			if err := replace.File(path, []byte(content), how); err != nil {
				t.Fatal(err)
			}
			holds(t, path, content)
		}
		if err := replace.File(path+"2", []byte(after), how); err != nil { // there is none
			t.Fatal(err)
		}
		holds(t, path+"2", after)
		alone(t, filepath.Dir(path), "file", "file2")
	})
}

// A path without a folder is one in the working directory.
func TestFileBesideNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, how := range hows() {
		if err := replace.File("file", []byte(name), how); err != nil {
			t.Fatal(err)
		}
		holds(t, "file", name)
	}
	alone(t, ".", "file")
}

// The mode holds whatever the umask and the old file's mode are, and holds
// before there is anything to read.
func TestMode(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o377} {
		for _, mode := range []fs.FileMode{0, 0o600, 0o644, 0o444} {
			for _, sole := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v umask %#o sole %t", mode, umask, sole), func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "file")
					put(t, path, before)
					defer syscall.Umask(syscall.Umask(umask))
					want := mode
					if mode == 0 {
						want = 0o600
					}
					err := replace.Write(path, replace.How{Mode: mode, Sole: sole}, func(w io.Writer) error {
						st, err := w.(*os.File).Stat()
						if err != nil || st.Mode() != want {
							t.Errorf("%v (%v) when the content is written, want %v", st.Mode(), err, want)
						}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					if st, err := os.Lstat(path); err != nil || st.Mode() != want {
						t.Errorf("%v (%v), want %v", st.Mode(), err, want)
					}
				})
			}
		}
	}
}

// The file is synced before it has its name, and the folder after: the other
// way round a power failure leaves an empty file, or the old one.
func TestOrder(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		var got []string
		err := replace.File(path, []byte(after), how.Watched(func(step, name string) error {
			got = append(got, step)
			switch step {
			case "sync":
				holds(t, name, after) // all of it, under another name
				holds(t, path, before)
			case "rename":
				holds(t, path, before)
			case "folder":
				holds(t, path, after)
				if name != filepath.Dir(path) {
					t.Errorf("%s is synced, want the file's folder", name)
				}
			}
			return nil
		}))
		want := map[replace.Durability][]string{
			replace.Durable: {"sync", "rename", "folder"}, replace.Whole: {"sync", "rename"}, replace.Volatile: {"rename"},
		}[how.Durability]
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("steps %q (%v), want %q", got, err, want)
		}
		holds(t, path, after)
	})
}

// A step that fails is told of, and leaves the old file alone in its folder. The
// folder's own is the last: the new file is there, and nobody is told that it
// lasts.
func TestStepFails(t *testing.T) {
	lost := errors.New("input/output error")
	for _, failing := range []string{"sync", "rename", "folder"} {
		each(t, func(t *testing.T, path string, how replace.How) {
			reached := false
			err := replace.File(path, []byte(after), how.Watched(func(step, _ string) error {
				if reached = step == failing; reached {
					return lost
				}
				return nil
			}))
			want := before
			if !reached || failing == "folder" {
				want = after
			}
			if errors.Is(err, lost) != reached {
				t.Errorf("%s failed: got %v", failing, err)
			}
			holds(t, path, want)
			alone(t, filepath.Dir(path), "file")
		})
	}
}

// The system's own sync is what decides: of a file that is closed it fails.
func TestSyncIsTheSystems(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		err := replace.Write(path, how, func(w io.Writer) error { return w.(*os.File).Close() })
		var of *fs.PathError
		if !errors.As(err, &of) || (of.Op == "sync") != (how.Durability != replace.Volatile) {
			t.Errorf("got %v", err)
		}
		holds(t, path, before)
		alone(t, filepath.Dir(path), "file")
	})
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	if err := replace.Folder(dir); err != nil {
		t.Error(err)
	}
	if err := replace.Folder(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Content that breaks off half-way leaves the old file whole, and no litter.
func TestWriteFails(t *testing.T) {
	full := errors.New("no space left on device")
	each(t, func(t *testing.T, path string, how replace.How) {
		err := replace.Write(path, how, func(w io.Writer) error {
			if _, err := io.WriteString(w, after[:7]); err != nil {
				t.Error(err)
			}
			return full
		})
		if !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
		holds(t, path, before)
		alone(t, filepath.Dir(path), "file")
	})
}

func TestWritePanics(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		defer func() {
			if recover() == nil {
				t.Error("the panic is gone")
			}
			holds(t, path, before)
			alone(t, filepath.Dir(path), "file")
		}()
		_ = replace.Write(path, how, func(io.Writer) error { panic("a bug") })
	})
}

// What stands at the temporary name is neither followed nor written to.
func TestPlanted(t *testing.T) {
	const precious = "another's"
	for name, plant := range map[string]func(target, at string) error{
		"symbolic link": os.Symlink,
		"hard link":     os.Link,
		"dangling link": func(target, at string) error { return os.Symlink(target+"-none", at) },
		"left by a killed program": func(_, at string) error {
			return os.WriteFile(at, []byte("longer than what is to be there"), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, other := t.TempDir(), t.TempDir()
			path, target := filepath.Join(dir, "file"), filepath.Join(other, "target")
			put(t, path, before)
			put(t, target, precious)
			if err := plant(target, path+".new"); err != nil {
				t.Fatal(err)
			}
			if err := replace.File(path, []byte(after), replace.How{Sole: true}); err != nil {
				t.Fatal(err)
			}
			holds(t, path, after)
			holds(t, target, precious)
			alone(t, dir, "file")
			alone(t, other, "target")
			if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 {
				t.Errorf("%v, %v", st.Mode(), err)
			}
			if st, err := os.Stat(target); err != nil || st.Mode() != 0o640 {
				t.Errorf("the target has mode %v, %v", st.Mode(), err)
			}
		})
	}
}

// Who plants links while the file is replaced, again and again, has nothing
// written through one: the call fails, or makes its own file.
func TestPlantedMeanwhile(t *testing.T) {
	const precious = "another's"
	dir, other := t.TempDir(), t.TempDir()
	path, target := filepath.Join(dir, "file"), filepath.Join(other, "target")
	put(t, target, precious)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Symlink(target, path+".new")
				_ = os.Link(target, path+".new")
			}
		}
	}()
	for range 500 {
		_ = replace.File(path, []byte(after), replace.How{Durability: replace.Volatile, Sole: true})
	}
	close(stop)
	<-stopped
	holds(t, target, precious)
	if st, err := os.Stat(target); err != nil || st.Mode() != 0o640 {
		t.Errorf("the target has mode %v, %v", st.Mode(), err)
	}
}

// A folder with files at the temporary name is not ours to remove.
func TestPlantedFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	put(t, path, before)
	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(path+".new", "kept"), before)
	if err := replace.File(path, []byte(after), replace.How{Sole: true}); err == nil {
		t.Error("no error")
	}
	holds(t, path, before)
	holds(t, filepath.Join(path+".new", "kept"), before)
}

// Names that nobody can guess differ from call to call, and a file that an
// earlier call has left is not touched: it may be another's, who is at work.
func TestTemporaryIsAnothersEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	put(t, path+".new", before)
	seen := map[string]bool{}
	for range 100 {
		err := replace.Write(path, replace.How{Durability: replace.Volatile}, func(w io.Writer) error {
			name := w.(*os.File).Name()
			if seen[name] || filepath.Dir(name) != filepath.Dir(path) || !strings.HasPrefix(filepath.Base(name), ".") {
				t.Errorf("temporary file %s", name)
			}
			seen[name] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	holds(t, path+".new", before)
}

// A link at the file's own name is replaced; what it leads to stays.
func TestLinkAtTheName(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		link := path + "-link"
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if err := replace.File(link, []byte(after), how); err != nil {
			t.Fatal(err)
		}
		holds(t, path, before)
		holds(t, link, after)
		if st, err := os.Lstat(link); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	})
}

// A folder at the file's name is refused, and nothing is left.
func TestFolderAtTheName(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		dir := filepath.Join(filepath.Dir(path), "folder")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := replace.File(dir, []byte(after), how); err == nil {
			t.Error("no error")
		}
		alone(t, filepath.Dir(path), "file", "folder")
	})
}

func TestNoFolder(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		err := replace.Write(filepath.Join(path+"-none", "file"), how, func(io.Writer) error {
			t.Error("there is no folder to write in")
			return nil
		})
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}
