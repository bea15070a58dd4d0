// Package file writes records to a file, one JSON text a line, for collectors
// that follow files.
package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/form"
	"github.com/attache-dev/attache/internal/replace"
)

// Producer in a path stands for who wrote the lines, so that several processes
// can have the same configuration.
const Producer = "{producer}"

// Defaults of [Options].
const (
	DefaultMaxBytes = 100 << 20
	DefaultMaxAge   = 24 * time.Hour
)

// Options of a [Sink]. Path is required.
type Options struct {
	Name   string // default file
	Path   string // may hold Producer
	Format string // default form.OCSF
	// MaxBytes and MaxAge bound a file; then it is renamed to PATH.TIME and a
	// new one begun. Defaults DefaultMaxBytes and DefaultMaxAge.
	MaxBytes int64
	MaxAge   time.Duration
	// Keep is how many renamed files stay; 0: all.
	Keep int
	// State is the folder for the begins that wait for their ends; default that
	// of Path.
	State string

	now func() time.Time
}

// Sink is a file. What Send has answered for is on the disk.
type Sink struct {
	o    Options
	path string // of f, or of the file to open
	f    *os.File
	size int64
	born time.Time
	form *form.Former
}

// New returns a sink. It opens the file when the first lines come.
func New(o Options) (*Sink, error) {
	o.Name, o.Format = cmp.Or(o.Name, "file"), cmp.Or(o.Format, form.OCSF)
	o.MaxBytes, o.MaxAge = cmp.Or(o.MaxBytes, DefaultMaxBytes), cmp.Or(o.MaxAge, DefaultMaxAge)
	if o.now == nil {
		o.now = time.Now
	}
	if !filepath.IsAbs(o.Path) {
		return nil, fmt.Errorf("path is %q; must be absolute", o.Path)
	}
	if _, err := form.Open(o.Format, ""); err != nil {
		return nil, err
	}
	return &Sink{o: o}, nil
}

// Name labels the sink.
func (s *Sink) Name() string { return s.o.Name }

// Send appends the batch and syncs the file.
func (s *Sink) Send(_ context.Context, b ship.Batch) error {
	if err := s.open(b.Producer); err != nil {
		return err
	}
	x, err := s.form.Form(b.Lines)
	if err != nil {
		return err
	}
	var text []byte
	for _, e := range x.Events {
		text = append(append(text, e.JSON...), '\n')
	}
	if err := s.rotate(int64(len(text))); err != nil {
		return err
	}
	if err := s.append(text); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	if err := x.Commit(); err != nil {
		return err
	}
	if n := len(x.Damaged); n > 0 {
		return &ship.RejectedError{Lines: x.Damaged, Count: n, Reason: "the line is no record"}
	}
	return nil
}

// append writes text whole or not at all: a part of it is cut off again.
func (s *Sink) append(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	n, err := s.f.Write(text)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, s.f.Truncate(s.size))
		}
		return errors.Join(err, s.Close())
	}
	s.size += int64(n)
	return nil
}

// open opens the producer's file, unless it is open, and again if somebody moved
// it away.
func (s *Sink) open(producer string) error {
	path := strings.ReplaceAll(s.o.Path, Producer, clean(producer))
	if s.f != nil && path == s.path {
		have, err1 := s.f.Stat()
		want, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(have, want) {
			return nil
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	if err := s.adopt(f, path); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return nil
}

// adopt takes f over: alone, without a torn last line, with the begins that wait.
func (s *Sink) adopt(f *os.File, path string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("another process writes it; put %s into the path: %w", Producer, err)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is no file")
	}
	size, err := lastLine(f, st.Size())
	if err != nil {
		return err
	}
	if size != st.Size() {
		if err := f.Truncate(size); err != nil {
			return err
		}
	}
	state := filepath.Join(cmp.Or(s.o.State, filepath.Dir(path)), "."+filepath.Base(path)+".begun")
	if s.form == nil || path != s.path {
		if s.form, err = form.Open(s.o.Format, state); err != nil {
			return err
		}
	}
	s.f, s.path, s.size, s.born = f, path, size, s.o.now()
	if size > 0 {
		s.born = st.ModTime()
	}
	return replace.Folder(filepath.Dir(path))
}

// lastLine is where the last whole line of f ends: a process that was killed may
// have left a torn one, which nobody has answered for.
func lastLine(f *os.File, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		part := buf[:end-from]
		if _, err := f.ReadAt(part, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] == '\n' {
				return from + int64(i) + 1, nil
			}
		}
		end = from
	}
	return 0, nil
}

// rotate begins a new file where n more bytes exceed the bound, or the file is
// old.
func (s *Sink) rotate(n int64) error {
	now := s.o.now()
	if s.size == 0 || n == 0 || s.size+n <= s.o.MaxBytes && now.Sub(s.born) < s.o.MaxAge {
		return nil
	}
	to := s.path + "." + now.UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(s.path, to); err != nil {
		return fmt.Errorf("rotate %s: %w", s.path, err)
	}
	path := s.path
	if err := s.Close(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600) //nolint:gosec // the operator names it
	if err != nil {
		return fmt.Errorf("rotate %s: %w", path, err)
	}
	if err := s.adopt(f, path); err != nil {
		return errors.Join(fmt.Errorf("rotate %s: %w", path, err), f.Close())
	}
	return s.prune()
}

// prune deletes the oldest renamed files beyond Keep.
func (s *Sink) prune() error {
	if s.o.Keep <= 0 {
		return nil
	}
	old, err := filepath.Glob(escape(s.path) + ".[0-9]*Z")
	if err != nil {
		return err
	}
	slices.Sort(old)
	for len(old) > s.o.Keep {
		if err := os.Remove(old[0]); err != nil {
			return fmt.Errorf("remove an old file of records: %w", err)
		}
		old = old[1:]
	}
	return nil
}

// escape takes the meaning from the characters that patterns give one.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// clean makes a producer's name a part of a file's name.
func clean(producer string) string {
	s := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, producer)
	return cmp.Or(s, "unknown")
}

// Close closes the file.
func (s *Sink) Close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}
