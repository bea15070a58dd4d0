package checkpoint

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// NewKey makes a signing key: its private form, which is a secret, and its
// public one. Both are text of the note package (Ed25519).
func NewKey(name string) (private, public string, err error) {
	private, public, err = note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", "", fmt.Errorf("make a checkpoint key: %w", err)
	}
	return private, public, nil
}

// KeyFile reads the signing key at path, or makes it, with its public form in
// path.pub. The file is its owner's alone.
func KeyFile(path, name string) (note.Signer, string, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator's file
	if errors.Is(err, os.ErrNotExist) {
		return makeKeyFile(path, name)
	}
	if err != nil {
		return nil, "", fmt.Errorf("checkpoint key: %w", err)
	}
	fi, err := os.Stat(path)
	if err == nil && fi.Mode().Perm()&0o077 != 0 {
		return nil, "", fmt.Errorf("checkpoint key: %s can be read by others; chmod 600 it, or make a new one if they may have", path)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, "", fmt.Errorf("checkpoint key: %s holds none", path) // the cause may quote it
	}
	public, err := os.ReadFile(path + ".pub") //nolint:gosec // beside it
	if err != nil {
		return nil, "", fmt.Errorf("checkpoint key: its public form: %w", err)
	}
	return signer, strings.TrimSpace(string(public)), nil
}

func makeKeyFile(path, name string) (note.Signer, string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, "", fmt.Errorf("checkpoint key: %w", err)
	}
	private, public, err := NewKey(name)
	if err != nil {
		return nil, "", err
	}
	// The public form first: a crash between leaves no key without it.
	if err := os.WriteFile(path+".pub", []byte(public+"\n"), 0o644); err != nil { //nolint:gosec // public
		return nil, "", fmt.Errorf("checkpoint key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator's file
	if err != nil {
		return nil, "", fmt.Errorf("checkpoint key: %w", err)
	}
	_, err = f.WriteString(private + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, "", fmt.Errorf("checkpoint key: %w", err)
	}
	signer, err := note.NewSigner(private)
	return signer, public, err
}

// ReadFiles reads a signed note, or all of a folder of [Directory].
func ReadFiles(path string) ([][]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if !fi.IsDir() {
		b, err := os.ReadFile(path) //nolint:gosec // the caller's own file
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		return [][]byte{b}, nil
	}
	names, err := filepath.Glob(filepath.Join(path, "*.checkpoint"))
	if err != nil || len(names) == 0 {
		return nil, fmt.Errorf("%s has no *.checkpoint files", path)
	}
	sort.Strings(names)
	var l [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name) //nolint:gosec // the caller's own folder
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		l = append(l, b)
	}
	return l, nil
}
