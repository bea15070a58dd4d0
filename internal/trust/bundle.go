// Package trust makes the child's programs trust the interception CA and use
// the proxy, and takes the real credentials out of their environment.
//
// Each runtime reads variables of its own, and almost all of them replace the
// system's roots instead of adding to them. The bundle therefore holds the
// system's roots with our CA appended.
package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/attache-dev/attache/internal/replace"
)

// Password of the Java truststore. It protects nothing, since the store holds
// public certificates only; it is Java's own default, so that tools which
// assume it can open the file.
const Password = "changeit"

const maxRootsBytes = 16 << 20

//go:embed preload.cjs
var preload []byte

// Bundle names the files that [WriteBundle] wrote. The child must be able to
// read them, and must not be able to write them or their folder.
type Bundle struct {
	Dir        string
	PEM        string // roots of the system, then our CA
	CA         string // our CA alone
	TrustStore string // the same as PEM, PKCS#12, for Java
	Preload    string // CommonJS file for node --require
	Wgetrc     string // start file of wget, which reads no variable for roots
	Sources    []string
	Roots      int // certificates of the system in PEM
}

// Files names the files that [WriteBundle] writes into dir.
func Files(dir string) Bundle {
	return Bundle{
		Dir:        dir,
		PEM:        filepath.Join(dir, "bundle.pem"),
		CA:         filepath.Join(dir, "ca.pem"),
		TrustStore: filepath.Join(dir, "truststore.p12"),
		Preload:    filepath.Join(dir, "preload.cjs"),
		Wgetrc:     filepath.Join(dir, "wgetrc"),
	}
}

// WriteBundle writes the trust files for a child into dir, which is made if
// need be. caPEM is the interception CA's certificate. Files are replaced
// atomically, so that programs that are running read the old or the new one.
func WriteBundle(dir string, caPEM []byte) (Bundle, error) {
	ours, err := parse(caPEM)
	if err != nil || len(ours) == 0 {
		return Bundle{}, errors.Join(errors.New("interception CA is not a PEM certificate"), err)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return Bundle{}, fmt.Errorf("write trust bundle: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the child may run as another user and must read it
		return Bundle{}, fmt.Errorf("write trust bundle: %w", err)
	}
	// MkdirAll obeys the umask and leaves an old folder's mode alone.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as above
		return Bundle{}, fmt.Errorf("write trust bundle: %w", err)
	}
	roots, sources := systemRoots(os.Getenv)
	b := Files(dir)
	b.Sources, b.Roots = sources, len(roots)
	all := append(roots, ours...)
	store, err := trustStore(all)
	if err != nil {
		return Bundle{}, fmt.Errorf("make Java truststore: %w", err)
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{b.PEM, encode(all)},
		{b.CA, encode(ours)},
		{b.TrustStore, store},
		{b.Preload, preload},
		{b.Wgetrc, fmt.Appendf(nil, "ca_certificate = %s\n", b.PEM)},
	} {
		if err := replace.File(f.path, f.data, replace.How{Mode: 0o644, Durability: replace.Volatile}); err != nil {
			return Bundle{}, fmt.Errorf("write trust bundle: %w", err)
		}
	}
	return b, nil
}

// Where the distributions keep roots: as crypto/x509 looks for them.
func certFiles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Gentoo
		"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
		"/etc/ssl/ca-bundle.pem",                            // openSUSE
		"/etc/pki/tls/cacert.pem",                           // OpenELEC
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL 7
		"/etc/ssl/cert.pem",                                 // Alpine, macOS
	}
}

func certDirs() []string {
	return []string{"/etc/ssl/certs", "/etc/pki/tls/certs"}
}

// systemRoots finds the roots that programs on this machine trust: SSL_CERT_FILE
// or the first of the known files, and the folders of SSL_CERT_DIR or, without
// any file, the known ones. No root is no error: with everything intercepted
// our own CA is enough.
func systemRoots(getenv func(string) string) (roots []*x509.Certificate, sources []string) {
	seen := map[[sha256.Size]byte]bool{}
	add := func(path string) {
		data, err := readRoots(path)
		if err != nil {
			return
		}
		certs, _ := parse(data) // a damaged block does not spoil the rest
		n := len(roots)
		for _, c := range certs {
			if sum := sha256.Sum256(c.Raw); !seen[sum] {
				seen[sum] = true
				roots = append(roots, c)
			}
		}
		if len(roots) > n {
			sources = append(sources, path)
		}
	}
	files, dirs := certFiles(), certDirs()
	if f := getenv("SSL_CERT_FILE"); f != "" {
		files = append([]string{f}, files...)
	}
	for _, f := range files {
		if add(f); len(roots) > 0 {
			break
		}
	}
	if d := getenv("SSL_CERT_DIR"); d != "" {
		dirs = filepath.SplitList(d)
	} else if len(roots) > 0 {
		dirs = nil
	}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range entries {
			add(filepath.Join(d, e.Name()))
		}
	}
	return roots, sources
}

func readRoots(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRootsBytes {
		return nil, fmt.Errorf("%s is not a file of certificates", path)
	}
	return os.ReadFile(path)
}

// parse reads the certificates of a PEM text and skips everything else, keys
// above all.
func parse(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	var errs []error
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return certs, errors.Join(errs...)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		certs = append(certs, c)
	}
}

func encode(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer takes everything
	}
	return b.Bytes()
}

// trustStore makes a PKCS#12 store of trusted certificates. Aliases are
// numbered: Java keeps one certificate an alias, and several roots share a
// subject.
func trustStore(certs []*x509.Certificate) ([]byte, error) {
	entries := make([]pkcs12.TrustStoreEntry, len(certs))
	for i, c := range certs {
		entries[i] = pkcs12.TrustStoreEntry{Cert: c, FriendlyName: fmt.Sprintf("%d %s", i, c.Subject.CommonName)}
	}
	return pkcs12.Modern2023.EncodeTrustStoreEntries(entries, Password)
}
