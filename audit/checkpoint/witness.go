package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/internal/replace"
)

// maxNote bounds a signed note on the wire and on disk, in bytes.
const maxNote = 16 << 10

// Witness is a second signer, kept by somebody other than the store's owner. It
// signs a checkpoint only if it follows the last one that it signed, so that a
// store that was rolled back or rewritten gets no further signature.
type Witness struct {
	// Dir keeps what was signed, a folder an origin.
	Dir    string
	Signer note.Signer
	// Known are the keys of the stores whose checkpoints it signs.
	Known note.Verifiers

	mu sync.Mutex
}

// Handler serves
//
//	POST /v1/checkpoint            a signed note; answers it with the second signature,
//	                               or 409 with the reason why it gets none
//	GET  /v1/checkpoint?origin=…   the newest that was signed, with both signatures
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/checkpoint", func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxNote))
		if err != nil {
			http.Error(rw, "the checkpoint is too long, or did not come whole", http.StatusBadRequest)
			return
		}
		signed, err := w.Sign(b)
		answer(rw, signed, err)
	})
	mux.HandleFunc("GET /v1/checkpoint", func(rw http.ResponseWriter, r *http.Request) {
		b, err := w.latest(r.URL.Query().Get("origin"))
		answer(rw, b, err)
	})
	return mux
}

// Errors of a witness.
var (
	errConflict = errors.New("does not follow the last checkpoint that was signed")
	errNone     = errors.New("no checkpoint of this origin was signed yet")
	errUnknown  = errors.New("is not signed by a store that this witness knows")
)

func answer(rw http.ResponseWriter, b []byte, err error) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	status := http.StatusInternalServerError
	switch {
	case err == nil:
		_, _ = rw.Write(b) // the client sees a short answer
		return
	case errors.Is(err, errConflict):
		status = http.StatusConflict
	case errors.Is(err, errNone):
		status = http.StatusNotFound
	case errors.Is(err, errUnknown):
		status = http.StatusForbidden
	}
	http.Error(rw, err.Error(), status)
}

// Sign signs a checkpoint if it follows the last one of its origin, or is it.
// The first of an origin is taken as it comes.
func (w *Witness) Sign(signed []byte) ([]byte, error) {
	n, err := note.Open(signed, w.Known)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %w: %w", errUnknown, err)
	}
	c, err := chain.ParseUnverified(signed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnknown, err)
	}
	if n.Text != c.Text() {
		return nil, fmt.Errorf("checkpoint %w", errUnknown)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	dir := w.dir(c.Origin)
	last, err := w.last(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case last == nil:
	case c.Number == last.Number && c.Digest() == last.Digest():
	case c.Number <= last.Number:
		return nil, fmt.Errorf("checkpoint %d %w, which is %d: the store was rolled back, or has two makers", c.Number, errConflict, last.Number)
	case c.Number != last.Number+1:
		return nil, fmt.Errorf("checkpoint %d %w, which is %d: send those between", c.Number, errConflict, last.Number)
	case c.Previous != last.Digest():
		return nil, fmt.Errorf("checkpoint %d %w: the one before it was changed", c.Number, errConflict)
	}
	both, err := chain.Cosign(signed, w.Known, w.Signer)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep checkpoint: %w", err)
	}
	if last == nil { // or a power failure takes the origin's folder, and any checkpoint is its first again
		if err := replace.Folder(w.Dir); err != nil {
			return nil, fmt.Errorf("keep checkpoint: %w", err)
		}
	}
	if err := keep(filepath.Join(dir, "latest"), both); err != nil { // before it is given away
		return nil, err
	}
	return both, nil
}

// dir is the folder of an origin, whose name may hold slashes.
func (w *Witness) dir(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(w.Dir, hex.EncodeToString(sum[:8]))
}

func (w *Witness) last(dir string) (*chain.Checkpoint, error) {
	b, err := os.ReadFile(filepath.Join(dir, "latest")) //nolint:gosec // our own folder
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // none yet
	}
	if err != nil {
		return nil, fmt.Errorf("read the last checkpoint: %w", err)
	}
	c, err := chain.ParseUnverified(b)
	if err != nil {
		return nil, fmt.Errorf("the last checkpoint that was signed cannot be read; see %s: %w", dir, err)
	}
	return c, nil
}

func (w *Witness) latest(origin string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := os.ReadFile(filepath.Join(w.dir(origin), "latest"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNone
	}
	if err != nil {
		return nil, fmt.Errorf("read the last checkpoint: %w", err)
	}
	return b, nil
}

// Witnessed is the Sink that asks a [Witness] at URL for its signature.
type Witnessed struct {
	URL    string
	Key    note.Verifier // of the witness
	Client *http.Client
}

// Name implements Sink.
func (w Witnessed) Name() string { return "witness:" + w.Key.Name() }

// Put implements Sink.
func (w Witnessed) Put(ctx context.Context, p Published) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.URL, "/")+"/v1/checkpoint", bytes.NewReader(p.Note))
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	b, err := w.do(req)
	if err != nil {
		return err
	}
	got, err := chain.Parse(b, w.Key)
	if err != nil {
		return fmt.Errorf("answer of the witness: %w", err)
	}
	if want, err := chain.ParseUnverified(p.Note); err != nil || got.Digest() != want.Digest() {
		return fmt.Errorf("witness signed another checkpoint than number %d", p.Number)
	}
	return nil
}

// Latest returns the newest checkpoint of origin that the witness signed.
func (w Witnessed) Latest(ctx context.Context, origin string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(w.URL, "/")+"/v1/checkpoint?origin="+url.QueryEscape(origin), nil)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	return w.do(req)
}

func (w Witnessed) do(req *http.Request) ([]byte, error) {
	resp, err := w.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxNote))
	if err != nil {
		return nil, fmt.Errorf("answer of the witness: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("witness refuses with status %d: %s", resp.StatusCode, strings.TrimSpace(string(b[:min(len(b), 512)])))
	}
	return b, nil
}
