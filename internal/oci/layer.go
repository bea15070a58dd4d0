package oci

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File of an image. Exactly one of Source, Data, Link and Dir is set.
type File struct {
	// Path in the image, absolute and clean.
	Path string
	// Source is a file of this machine; Data the content itself; Link the
	// target of a symbolic link; Dir makes an empty folder.
	Source string
	Data   []byte
	Link   string
	Dir    bool
	// Mode of a file or folder: permission bits, fs.ModeSetuid and
	// fs.ModeSticky. Default 0755 for folders and executables of Source,
	// else 0644.
	Mode fs.FileMode
	// UID and GID own it; default root, so that no program can change itself.
	UID, GID int
	// Capabilities that the kernel gives whoever executes the file, whatever
	// their user (capabilities(7), "File capabilities"). They are permitted, not
	// effective, so that the program starts where its bounding set lacks them,
	// too, and raises them by itself where it needs them.
	Capabilities []Capability
}

// Capability is the number of a Linux capability.
type Capability uint

// NetAdmin changes a network namespace's rules (CAP_NET_ADMIN).
const NetAdmin Capability = 12

func writeLayer(w io.Writer, files []File) error {
	l := layer{tar.NewWriter(w), map[string]bool{}, map[string]bool{"/": true}}
	for _, f := range sorted(files) {
		if err := f.check(); err != nil {
			return err
		}
		if l.written[f.Path] {
			return fmt.Errorf("%s: is in the image twice", f.Path)
		}
		if err := l.addFolders(path.Dir(f.Path)); err != nil {
			return err
		}
		if err := l.add(f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return l.tar.Close()
}

type layer struct {
	tar     *tar.Writer
	written map[string]bool // paths
	folders map[string]bool // those of them that are folders, and the root
}

// addFolders adds dir and those above it, unless they are in the image
// already. Sorting put those that are declared before what they hold.
func (l layer) addFolders(dir string) error {
	if l.folders[dir] {
		return nil
	}
	if l.written[dir] {
		return fmt.Errorf("%s: is a file and a folder", dir)
	}
	if err := l.addFolders(path.Dir(dir)); err != nil {
		return err
	}
	return l.add(File{Path: dir, Dir: true})
}

func (f File) check() error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return fmt.Errorf("path %q: must be absolute and clean", f.Path)
	}
	kinds := 0
	for _, set := range []bool{f.Source != "", f.Data != nil, f.Link != "", f.Dir} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("%s: must be exactly one of a source, data, a link and a folder", f.Path)
	}
	if len(f.Capabilities) > 0 && f.Source == "" && f.Data == nil {
		return fmt.Errorf("%s: only a file has capabilities", f.Path)
	}
	return nil
}

func (l layer) add(f File) error {
	l.written[f.Path], l.folders[f.Path] = true, f.Dir
	h := &tar.Header{
		Name: strings.TrimPrefix(f.Path, "/"), Uid: f.UID, Gid: f.GID,
		ModTime: stamp(), Format: tar.FormatPAX,
	}
	mode := f.Mode
	content, err := f.content(h, &mode)
	if err != nil {
		return err
	}
	if content != nil {
		defer content.Close()
	}
	h.Mode = tarMode(mode)
	if len(f.Capabilities) > 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": CapabilityData(f.Capabilities)}
	}
	if err := l.tar.WriteHeader(h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	n, err := io.Copy(l.tar, content)
	if err == nil && n != h.Size {
		err = errors.New("changed while it was packed")
	}
	return err
}

// content completes the header with type, size and default mode, and opens
// what follows it.
func (f File) content(h *tar.Header, mode *fs.FileMode) (io.ReadCloser, error) {
	def := func(m fs.FileMode) {
		if *mode == 0 {
			*mode = m
		}
	}
	switch {
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		def(0o755)
		return nil, nil
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		def(0o777)
		return nil, nil
	case f.Source == "":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Data))
		def(0o644)
		return io.NopCloser(bytes.NewReader(f.Data)), nil
	}
	src, err := os.Open(f.Source)
	if err != nil {
		return nil, err
	}
	info, err := src.Stat()
	if err != nil || !info.Mode().IsRegular() {
		src.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: is not a regular file", f.Source))
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if info.Mode()&0o111 != 0 {
		def(0o755)
	}
	def(0o644)
	return src, nil
}

func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}

// CapabilityData is the extended attribute security.capability: struct
// vfs_cap_data of linux/capability.h, revision 2, without the effective flag.
func CapabilityData(caps []Capability) string {
	const revision2 = 0x02000000
	var permitted uint64
	for _, c := range caps {
		permitted |= 1 << c
	}
	b := binary.LittleEndian.AppendUint32(nil, revision2)
	b = binary.LittleEndian.AppendUint32(b, uint32(permitted))
	b = binary.LittleEndian.AppendUint32(b, 0) // inheritable
	b = binary.LittleEndian.AppendUint32(b, uint32(permitted>>32))
	return string(binary.LittleEndian.AppendUint32(b, 0))
}
