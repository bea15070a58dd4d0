package intercept

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/replace"
)

// rootFile holds a pod's root: certificate and key in PEM.
const (
	rootFile     = "interception-root.pem"
	rootFileMode = 0o600
	maxRootFile  = 64 << 10
)

// ErrState is matched when the state folder holds a root that cannot be used.
// A new one in its place would leave programs that trust the old one without
// any way out, and hide that somebody has changed the file.
var ErrState = errors.New("the pod's interception root cannot be used; delete the pod, so that its successor gets a new one")

// Open returns the CA whose root is kept in dir, which must be a folder in
// memory that nobody else has: programs that trust the root go on trusting the
// program that is started in this one's place. The first call makes the root.
// It is the one secret of Attaché that outlives a process. now and cacheSize
// are as in [New].
func Open(dir string, now func() time.Time, cacheSize int) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	path := filepath.Join(dir, rootFile)
	cert, key, err := readRoot(path, now())
	if errors.Is(err, os.ErrNotExist) {
		if err := writeRoot(path, now()); err != nil {
			return nil, fmt.Errorf("keep the interception root: %w", err)
		}
		cert, key, err = readRoot(path, now())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrState, err)
	}
	return newCA(now, cacheSize, cert, key)
}

func writeRoot(path string, now time.Time) error {
	cert, key, err := newRoot(now)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	// Whole or not at all: a start that is killed half-way leaves no damaged
	// root.
	return replace.File(path, b, replace.How{Mode: rootFileMode, Durability: replace.Volatile, Sole: true})
}

// readRoot reads a root that nobody but us can have written or read.
func readRoot(path string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	if err := checkOwn(f); err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRootFile+1))
	if err != nil {
		return nil, nil, err
	}
	certBlock, rest := pem.Decode(b)
	keyBlock, rest := pem.Decode(rest)
	if certBlock == nil || keyBlock == nil || certBlock.Type != "CERTIFICATE" || keyBlock.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, nil, errors.New("is not a certificate and its key")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, errors.New("the certificate cannot be read")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	switch {
	case err != nil || !ok: // the error could quote the file
		return nil, nil, errors.New("the key cannot be read")
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, nil, errors.New("certificate and key do not belong together")
	case !cert.IsCA || !cert.BasicConstraintsValid || cert.CheckSignatureFrom(cert) != nil:
		return nil, nil, errors.New("the certificate is no root")
	case now.Add(leafLife).After(cert.NotAfter):
		return nil, nil, fmt.Errorf("it ends at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return nil, nil, fmt.Errorf("it begins at %s only; is the clock right?", cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return cert, key, nil
}

// checkOwn refuses what others could have read or written.
func checkOwn(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("is no regular file")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to user %d; must be ours, %d", st.Uid, os.Geteuid())
	case st.Mode&0o7777 != rootFileMode:
		return fmt.Errorf("has mode %#o; must be %#o", st.Mode&0o7777, rootFileMode)
	case st.Nlink != 1:
		return errors.New("has other names")
	case st.Size > maxRootFile:
		return fmt.Errorf("is larger than %d bytes", maxRootFile)
	}
	return nil
}
