package process

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// digestCacheSize is the number of executables remembered.
const digestCacheSize = 256

// exeKey identifies the content of a file: ctime cannot be set back.
type exeKey struct {
	dev, ino     uint64
	ctimeS, ctNs int64
	size         int64
}

// digests computes and remembers the SHA-256 of executables.
type digests struct {
	cache *lru.Cache[exeKey, string]
	group singleflight.Group
}

func newDigests() (*digests, error) {
	c, err := lru.New[exeKey, string](digestCacheSize)
	if err != nil {
		return nil, fmt.Errorf("make digest cache: %w", err)
	}
	return &digests{cache: c}, nil
}

func keyOf(st *unix.Stat_t) exeKey {
	return exeKey{dev: st.Dev, ino: st.Ino, ctimeS: int64(st.Ctim.Sec), ctNs: int64(st.Ctim.Nsec), size: st.Size}
}

// of returns "sha256:…" of the file at path, which may be /proc/PID/exe.
func (d *digests) of(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("stat executable: %w", err)
	}
	key := keyOf(&st)
	if v, ok := d.cache.Get(key); ok {
		return v, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open executable: %w", err)
	}
	defer func() { _ = f.Close() }()
	v, err, _ := d.group.Do(fmt.Sprint(key), func() (any, error) { return d.hash(f) })
	if err != nil {
		return "", fmt.Errorf("hash executable: %w", err)
	}
	return v.(string), nil
}

// hash reads f and files the result under what f is then: if the file changed
// between stat and the end of reading, it is not remembered.
func (d *digests) hash(f *os.File) (string, error) {
	var before, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	v := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return "", err
	}
	if keyOf(&before) == keyOf(&after) {
		d.cache.Add(keyOf(&after), v)
	}
	return v, nil
}
