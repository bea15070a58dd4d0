package replace_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/attache-dev/attache/internal/replace"
	"github.com/attache-dev/attache/test/unprivileged"
)

// A folder that may be read only is an error, and nothing changes in it.
func TestReadOnlyFolder(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		dir := filepath.Dir(path)
		t.Chdir(dir)
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		unprivileged.Run(t, dir, func() {
			if err := replace.File("file", []byte(after), how); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("got %v", err)
			}
		})
		holds(t, path, before)
		alone(t, dir, "file")
	})
}

// A folder that cannot be opened cannot be synced: only who asks for less is
// told that the file is replaced. No step is watched here.
func TestFolderIsSynced(t *testing.T) {
	each(t, func(t *testing.T, path string, how replace.How) {
		dir := filepath.Dir(path)
		t.Chdir(dir)
		if err := os.Chmod(dir, 0o300); err != nil {
			t.Fatal(err)
		}
		unprivileged.Run(t, dir, func() {
			err := replace.File("file", []byte(after), how)
			if durable := how.Durability == replace.Durable; durable != errors.Is(err, fs.ErrPermission) || !durable && err != nil {
				t.Errorf("got %v", err)
			}
		})
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		holds(t, "file", after)
		alone(t, dir, "file")
	})
}
