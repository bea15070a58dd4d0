package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/attache-dev/attache/internal/oci"
)

// rootfs gathers files of this machine for an image: programs with the
// libraries that they load, and folders.
type rootfs struct {
	files map[string]oci.File // by path in the image
	elves []string            // programs and libraries whose own libraries are still to be found
}

func newRootfs() *rootfs {
	r := &rootfs{files: map[string]oci.File{}}
	for _, f := range []oci.File{
		{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/tmp:/bin/sh\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nagent:x:1000:\n")},
	} {
		r.files[f.Path] = f
	}
	for _, link := range []string{"/bin", "/sbin", "/lib", "/lib64"} { // merged /usr, as in today's distributions
		if to, err := os.Readlink(link); err == nil {
			r.files[link] = oci.File{Path: link, Link: to}
		}
	}
	return r
}

// put adds one file of this machine under a path in the image.
func (r *rootfs) put(path, source string) error {
	r.files[path] = oci.File{Path: path, Source: source}
	head := make([]byte, 4)
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, _ := f.Read(head); n == 4 && bytes.Equal(head, []byte("\x7fELF")) {
		r.elves = append(r.elves, source)
	}
	return nil
}

// add takes a file or folder at its own path; what a link points at comes too.
func (r *rootfs) add(path string, skip *regexp.Regexp) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	path = filepath.Join(dir, filepath.Base(path))
	if _, done := r.files[path]; done {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case skip != nil && skip.MatchString(path):
		return nil
	case info.Mode()&fs.ModeSymlink != 0:
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil // dangling, as packages leave them
		}
		r.files[path] = oci.File{Path: path, Link: real}
		return r.add(real, skip)
	case info.IsDir():
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.add(filepath.Join(path, e.Name()), skip); err != nil {
				return err
			}
		}
		return nil
	case info.Mode().IsRegular():
		return r.put(path, path)
	}
	return nil
}

// addTree copies the folder from as the folder to.
func (r *rootfs) addTree(from, to string, skip *regexp.Regexp) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skip != nil && skip.MatchString(p) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		at := to + strings.TrimPrefix(p, from)
		switch {
		case e.Type().IsRegular():
			return r.put(at, p)
		case e.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			r.files[at] = oci.File{Path: at, Link: link}
			return err
		}
		return nil
	})
}

// programs adds programs by name, as the PATH of this machine finds them.
func (r *rootfs) programs(names ...string) error {
	for _, name := range names {
		at, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("%w: run `test/deps.sh cluster`", err)
		}
		if err := r.add(at, nil); err != nil {
			return err
		}
	}
	return nil
}

// list adds the libraries and returns all files.
func (r *rootfs) list(ctx context.Context) ([]oci.File, error) {
	for len(r.elves) > 0 {
		elves := r.elves
		r.elves = nil
		// ldd fails when one of many is static; what it printed is right.
		out, err := exec.CommandContext(ctx, "ldd", elves...).Output()
		if err != nil && len(out) == 0 && len(elves) > 1 {
			return nil, fmt.Errorf("ldd: %w", err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
			if err := r.add(m[1], nil); err != nil {
				return nil, err
			}
		}
		// The loader is named by the programs with a path that is a link.
		if _, err := os.Lstat("/lib64/ld-linux-x86-64.so.2"); err == nil {
			if err := r.add("/lib64/ld-linux-x86-64.so.2", nil); err != nil {
				return nil, err
			}
		}
	}
	return slices.Collect(maps.Values(r.files)), nil
}
