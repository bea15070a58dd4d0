package upstream

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
)

// Package is the one package that each index has, besides one that policy
// keeps from the agent.
const Package = "compat-pkg"

// packages are the files of three package indexes.
type packages struct {
	wheel, tarball, crate []byte
}

func newPackages() (*packages, error) {
	p := &packages{}
	var err error
	if p.wheel, err = wheel(); err != nil {
		return nil, err
	}
	if p.tarball, err = tarGzip("package/", map[string]string{
		"package.json": `{"name":"` + Package + `","version":"1.0.0","main":"index.js","license":"Apache-2.0"}`,
		"index.js":     "module.exports = 'from the index';\n",
	}); err != nil {
		return nil, err
	}
	p.crate, err = tarGzip(Package+"-1.0.0/", map[string]string{
		"Cargo.toml": "[package]\nname = \"" + Package + "\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
		"src/lib.rs": "pub const FROM: &str = \"the index\";\n",
	})
	return p, err
}

func wheel() ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	const info = "compat_pkg-1.0.0.dist-info/"
	for name, text := range map[string]string{
		"compat_pkg.py":   "FROM = 'the index'\n",
		info + "METADATA": "Metadata-Version: 2.1\nName: " + Package + "\nVersion: 1.0.0\n",
		info + "WHEEL":    "Wheel-Version: 1.0\nGenerator: compat\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		info + "RECORD":   "compat_pkg.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n",
	} {
		w, err := z.Create(name)
		if err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return nil, err
		}
	}
	err := z.Close()
	return b.Bytes(), err
}

func tarGzip(prefix string, files map[string]string) ([]byte, error) {
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	t := tar.NewWriter(g)
	for name, text := range files {
		if err := t.WriteHeader(&tar.Header{Name: prefix + name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(t, text); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	err := g.Close()
	return b.Bytes(), err
}

func bytesOf(kind string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(b)
	}
}

// pypi is a simple repository (PEP 503).
func (p *packages) pypi() http.Handler {
	sum := sha256.Sum256(p.wheel)
	const file = "compat_pkg-1.0.0-py3-none-any.whl"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /simple/"+Package+"/", bytesOf("text/html", fmt.Appendf(nil,
		`<!DOCTYPE html><html><body><a href="../../files/%s#sha256=%x">%s</a></body></html>`, file, sum, file)))
	mux.HandleFunc("GET /files/"+file, bytesOf("application/octet-stream", p.wheel))
	return mux
}

// npm is a registry with one package, which it names below base.
func (p *packages) npm(base string) http.Handler {
	sum := sha512.Sum512(p.tarball)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /"+Package, bytesOf("application/json", fmt.Appendf(nil,
		`{"name":%q,"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":%q,"version":"1.0.0","dist":{"tarball":"%s/%s/-/%s-1.0.0.tgz","integrity":"sha512-%s"}}}}`,
		Package, Package, base, Package, Package, base64.StdEncoding.EncodeToString(sum[:]))))
	mux.HandleFunc("GET /"+Package+"/-/"+Package+"-1.0.0.tgz", bytesOf("application/octet-stream", p.tarball))
	return mux
}

// crates is a sparse cargo registry, which names crates below base.
func (p *packages) crates(base string) http.Handler {
	sum := sha256.Sum256(p.crate)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /index/config.json", bytesOf("application/json", []byte(`{"dl":"`+base+`/dl/{crate}/{version}"}`)))
	mux.HandleFunc("GET /index/co/mp/"+Package, bytesOf("text/plain", fmt.Appendf(nil,
		`{"name":%q,"vers":"1.0.0","deps":[],"cksum":"%s","features":{},"yanked":false}`+"\n", Package, hex.EncodeToString(sum[:]))))
	mux.HandleFunc("GET /dl/"+Package+"/1.0.0", bytesOf("application/gzip", p.crate))
	return mux
}

// Base64 encodes s, shifted by one byte as text around it would.
func Base64(s string) string { return base64.StdEncoding.EncodeToString([]byte("x" + s)) }

// Gzip compresses s.
func Gzip(s string) []byte {
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	_, _ = io.WriteString(g, s) // to memory
	_ = g.Close()
	return b.Bytes()
}
