package main

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Bounds of the search.
const (
	maxDepth    = 3       // encodings within encodings
	maxExpanded = 8 << 20 // bytes of one compressed stream
)

// needles are the forms of secrets that a search looks for.
type needles map[string]string // form -> which secret, for the report

// newNeedles makes the plain forms of each secret. Compressed and base64 text
// is unpacked by the search itself.
func newNeedles(secrets ...string) needles {
	n := needles{}
	for _, s := range secrets {
		name := fmt.Sprintf("%.6s… (%d bytes)", s, len(s))
		n[s], n[hex.EncodeToString([]byte(s))], n[url.QueryEscape(s)] = name, name+" as hex", name+" percent-encoded"
		for shift := range 3 { // base64 inside longer text, at each offset, without the digits that neighbours share
			b := base64.StdEncoding.EncodeToString([]byte("\x00\x00"[:shift] + s))
			from, to := []int{0, 2, 3}[shift], len(strings.TrimRight(b, "="))-1
			n[b[from:to]] = name + " in base64"
			n[strings.NewReplacer("+", "-", "/", "_").Replace(b[from:to])] = name + " in base64url"
		}
	}
	return n
}

// find says where in data a secret is, or "".
func (n needles) find(data []byte) string { return n.search(data, maxDepth) }

var base64Run = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}`)

func (n needles) search(data []byte, depth int) string {
	for form, name := range n {
		if bytes.Contains(data, []byte(form)) {
			return name
		}
	}
	if depth == 0 {
		return ""
	}
	for i := range data {
		if at := n.unpack(data[i:], depth); at != "" {
			return at
		}
	}
	for _, run := range base64Run.FindAll(data, -1) {
		text := strings.NewReplacer("-", "+", "_", "/").Replace(string(run))
		b, err := base64.RawStdEncoding.DecodeString(text[:len(text)/4*4])
		if err != nil {
			continue
		}
		if at := n.search(b, depth-1); at != "" {
			return at + " in base64 text"
		}
	}
	return ""
}

// unpack searches a gzip or zlib stream that starts data, if one does.
func (n needles) unpack(data []byte, depth int) string {
	if len(data) < 8 {
		return ""
	}
	var r io.Reader
	var err error
	switch {
	case data[0] == 0x1f && data[1] == 0x8b && data[2] == 8:
		r, err = gzip.NewReader(bytes.NewReader(data))
	case data[0] == 0x78 && (data[1] == 0x01 || data[1] == 0x5e || data[1] == 0x9c || data[1] == 0xda):
		r, err = zlib.NewReader(bytes.NewReader(data))
	default:
		return ""
	}
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(r, maxExpanded)) // what can be read of a damaged stream is searched
	if at := n.search(b, depth-1); at != "" {
		return at + " in compressed data"
	}
	return ""
}

// findBelow searches every file below dir and returns "file: what", or "".
func (n needles) findBelow(dir string) (string, error) {
	found := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || found != "" || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at := n.find(b); at != "" {
			found = path + ": " + at
		} else if at := n.find([]byte(path)); at != "" {
			found = path + ": in its name"
		}
		return nil
	})
	return found, err
}
