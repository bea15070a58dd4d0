package task

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/replace"
)

// Errors of a [Replays].
var (
	// ErrReplayed is matched when a token was used before.
	ErrReplayed = errors.New("the token was used before")
	// ErrReplaysFull is matched when everything remembered still matters:
	// forgetting one would allow a replay.
	ErrReplaysFull = errors.New("too many tokens were used within their lifetime")
)

// TokenKey stands for one token: the hash of its issuer and id.
type TokenKey [sha256.Size]byte

// Replays remembers used tokens until they would be refused anyway.
// Implementations are safe for concurrent use.
type Replays interface {
	// Use remembers key until the given time. Its error matches [ErrReplayed]
	// if key is remembered already at now, and [ErrReplaysFull] if there is no
	// room; after any error the token must not be used.
	Use(ctx context.Context, key TokenKey, now, until time.Time) error
}

// memory is a [Replays] for one process.
type memory struct {
	limit int
	mu    sync.Mutex // guards seen
	seen  map[TokenKey]time.Time
}

func newMemory(limit int) *memory {
	return &memory{limit: limit, seen: map[TokenKey]time.Time{}}
}

// Use implements [Replays].
func (m *memory) Use(_ context.Context, key TokenKey, now, until time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return remember(m.seen, m.limit, key, now, until)
}

// remember adds key to seen, which it frees of what has expired.
func remember(seen map[TokenKey]time.Time, limit int, key TokenKey, now, until time.Time) error {
	if t, ok := seen[key]; ok && now.Before(t) {
		return ErrReplayed
	}
	if len(seen) >= limit {
		for k, t := range seen {
			if !now.Before(t) {
				delete(seen, k)
			}
		}
		if len(seen) >= limit {
			return ErrReplaysFull
		}
	}
	seen[key] = until
	return nil
}

const (
	// entrySize is a key and the time until which it counts, in seconds.
	entrySize = sha256.Size + 8
	// lockPatience bounds the wait for another process, which holds the lock
	// for one small file.
	lockPatience = 5 * time.Second
	lockPause    = 5 * time.Millisecond
)

// FileReplays is a [Replays] that every process of a user shares through a
// file, so that a token which opened a task in one run opens none in another.
// The file holds hashes only.
type FileReplays struct {
	path    string
	limit   int
	syncDir func(string) error
}

// NewFileReplays keeps up to limit tokens (0: 65536) in the file called path,
// beside which it keeps a lock. Nothing is opened before the first token. The
// folder must be out of reach of the agents.
func NewFileReplays(path string, limit int) *FileReplays {
	if limit <= 0 {
		limit = defaultReplays
	}
	return &FileReplays{path: path, limit: limit, syncDir: replace.Folder}
}

// Use implements [Replays]. The token is on disk when it returns.
func (f *FileReplays) Use(ctx context.Context, key TokenKey, now, until time.Time) error {
	unlock, err := f.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	seen, err := f.read(now)
	if err != nil {
		return fmt.Errorf("read the used tokens: %w", err)
	}
	if err := remember(seen, f.limit, key, now, until); err != nil {
		return err
	}
	if err := f.write(seen); err != nil {
		return fmt.Errorf("write the used tokens: %w", err)
	}
	return nil
}

// lock waits for the file's turn. The lock is a file of its own because the
// other one is replaced; it goes with the process, however that ends.
func (f *FileReplays) lock(ctx context.Context) (unlock func(), err error) {
	l, err := os.OpenFile(f.path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the used tokens: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = l.Close()
			return nil, fmt.Errorf("lock %s: %w", l.Name(), err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			_ = l.Close()
			return nil, fmt.Errorf("lock %s, which another process holds: %w", l.Name(), ctx.Err())
		}
	}
}

// read returns what still counts at now. A file that is not whole is refused:
// what it has lost could be replayed.
func (f *FileReplays) read(now time.Time) (map[TokenKey]time.Time, error) {
	seen := map[TokenKey]time.Time{}
	r, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return seen, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // read only
	most := int64(max(f.limit, defaultReplays)) * entrySize
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most || len(b)%entrySize != 0 {
		return nil, fmt.Errorf("%s is damaged; when no human's token of the last maxAge may still be about, remove it", f.path)
	}
	for ; len(b) > 0; b = b[entrySize:] {
		until := time.Unix(int64(binary.BigEndian.Uint64(b[sha256.Size:])), 0) //nolint:gosec // written below
		if now.Before(until) {
			seen[TokenKey(b[:sha256.Size])] = until
		}
	}
	return seen, nil
}

// write replaces the file, or leaves the old one whole.
func (f *FileReplays) write(seen map[TokenKey]time.Time) error {
	b := make([]byte, 0, len(seen)*entrySize)
	for k, until := range seen {
		b = append(b, k[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(until.Unix()+1)) //nolint:gosec // after 1970; rounded up: never forgotten early
	}
	if err := replace.File(f.path, b, replace.How{Durability: replace.Whole}); err != nil {
		return err
	}
	return f.syncDir(filepath.Dir(f.path)) // or a power failure brings the old file back
}
