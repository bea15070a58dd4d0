// Package leak searches what an agent could read for secrets, in the forms in
// which they hide: as they are, in base64 at any offset, in hex,
// percent-encoded, and inside gzip, zlib and base64, also of one another.
//
// A search that finds nothing proves something only if it would have found
// something: plant canaries in each place and form, and demand them.
package leak

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Place is something that was read: a file, a variable, an answer.
type Place struct {
	Name string
	Data []byte
}

// Finding says that a secret stands in a place.
type Finding struct {
	Secret string // its name, never its value
	Place  string
	Form   string // raw, base64, hex, percent; "gzip:", "zlib:", "base64:" before it if inside
}

const (
	maxDepth   = 3
	maxUnpack  = 8 << 20 // of one compressed stream
	shortest   = 8       // shorter secrets would be found by accident
	gzipBase64 = "H4sI"  // how gzip begins in base64
)

// Search returns every finding, at most one a secret, place and form. Secrets
// maps names to values; values shorter than 8 bytes panic, since finding them
// would mean nothing.
func Search(places []Place, secrets map[string]string) []Finding {
	needles := make(map[string][]needle, len(secrets))
	for name, value := range secrets {
		if len(value) < shortest {
			panic("leak: secret " + name + " is too short to search for")
		}
		needles[name] = forms(value)
	}
	var found []Finding
	seen := map[Finding]bool{}
	for _, p := range places {
		walk(p.Data, "", 0, func(data []byte, prefix string) {
			for name, ns := range needles {
				for _, n := range ns {
					f := Finding{Secret: name, Place: p.Name, Form: prefix + n.form}
					if !seen[f] && bytes.Contains(data, n.text) {
						seen[f] = true
						found = append(found, f)
					}
				}
			}
		})
	}
	return found
}

type needle struct {
	form string
	text []byte
}

// forms lists the ways a value may be written.
func forms(v string) []needle {
	out := []needle{{"raw", []byte(v)}, {"hex", []byte(hex.EncodeToString([]byte(v)))}, {"hex", []byte(strings.ToUpper(hex.EncodeToString([]byte(v))))}}
	if q := url.QueryEscape(v); q != v {
		out = append(out, needle{"percent", []byte(q)})
	}
	// At each of three offsets only the digits that do not depend on the
	// neighbours are looked for.
	for offset := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			e := enc.EncodeToString(append(make([]byte, offset), v...))
			from := []int{0, 2, 3}[offset]
			to := len(e)
			if (offset+len(v))%3 != 0 {
				to--
			}
			out = append(out, needle{"base64", []byte(e[from:to])})
		}
	}
	return out
}

// Base64 that holds something packed may stand inside of a longer run; other
// base64 is read from the run's beginning.
var (
	gzipRun   = regexp.MustCompile(gzipBase64 + `[A-Za-z0-9+/_-]{20,}`)
	base64Run = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}`)
)

// walk visits data and everything that is packed inside.
func walk(data []byte, prefix string, depth int, visit func([]byte, string)) {
	visit(data, prefix)
	if depth == maxDepth {
		return
	}
	for i := range data {
		if inner, form := unpack(data[i:]); len(inner) > 0 {
			walk(inner, prefix+form, depth+1, visit)
		}
	}
	for _, in := range []*regexp.Regexp{gzipRun, base64Run} {
		for _, run := range in.FindAll(data, -1) {
			s := strings.NewReplacer("-", "+", "_", "/").Replace(string(run))
			if b, err := base64.RawStdEncoding.DecodeString(s[:len(s)/4*4]); err == nil {
				walk(b, prefix+"base64:", depth+1, visit)
			}
			// The last digits, which may be part of the trailer only, are left out.
		}
	}
}

// unpack returns what the gzip or zlib stream at the start of b gives, as far
// as it goes: what is damaged or cut is searched too.
func unpack(b []byte) (inner []byte, form string) {
	if len(b) < 3 {
		return nil, ""
	}
	var r io.Reader
	switch {
	case b[0] == 0x1f && b[1] == 0x8b && b[2] == 8:
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, ""
		}
		z.Multistream(false)
		r, form = z, "gzip:"
	case b[0] == 0x78 && (b[1] == 0x01 || b[1] == 0x5e || b[1] == 0x9c || b[1] == 0xda):
		z, err := zlib.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, ""
		}
		r, form = z, "zlib:"
	default:
		return nil, ""
	}
	inner, _ = io.ReadAll(io.LimitReader(r, maxUnpack))
	return inner, form
}

// Files are the regular files below dir and their names, as places named by
// their path below root. Files of more than most bytes are left out; most 0
// leaves out none.
func Files(root, dir string, most int64) ([]Place, error) {
	var out []Place
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err != nil || most > 0 && info.Size() > most {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		out = append(out, Place{Name: name, Data: b}, Place{Name: "name of " + name, Data: []byte(name)})
		return err
	})
	return out, err
}
