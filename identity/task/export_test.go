package task

import "testing"

// Hold runs while with the file's lock held.
func (f *FileReplays) Hold(t *testing.T, while func()) {
	t.Helper()
	unlock, err := f.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	while()
}

// SyncWith replaces how the folder is made durable.
func (f *FileReplays) SyncWith(sync func(dir string) error) { f.syncDir = sync }
