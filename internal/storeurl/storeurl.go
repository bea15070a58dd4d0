// Package storeurl reads where a record store is. A URL with a password is kept
// in a file, not in the list of processes.
package storeurl

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Forms is what a flag takes, for its help.
const Forms = "sqlite:PATH, postgres://USER@HOST/DATABASE, or @FILE that holds one of these"

// maxFile bounds a file with a URL.
const maxFile = 8 << 10

// Read returns the URL that a file holds.
func Read(file string) (string, error) {
	f, err := os.Open(file) //nolint:gosec // the caller's own file
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s has more than the %d bytes that a URL of a store may have", file, maxFile)
	}
	url := strings.TrimSpace(string(b))
	if url == "" || strings.ContainsAny(url, "\n\r\x00") {
		return "", fmt.Errorf("%s holds no URL of a store", file)
	}
	return url, nil
}

// Flag is a value of a flag that takes one of [Forms]: the URL itself, also
// where a file was named.
type Flag string

// Set implements pflag.Value.
func (s *Flag) Set(text string) error {
	file, ok := strings.CutPrefix(text, "@")
	if !ok {
		*s = Flag(text)
		return nil
	}
	url, err := Read(file)
	if err == nil {
		*s = Flag(url)
	}
	return err
}

// String implements pflag.Value.
func (s *Flag) String() string { return string(*s) }

// Type implements pflag.Value.
func (*Flag) Type() string { return "URL" }
