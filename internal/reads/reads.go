// Package reads is how a command that reads a record store says so, to the
// control plane whose store it is. The review page writes down who looked, in
// the same chain as everything else; a command in the control plane's own pod
// opens the store by itself, and tells here, before it answers.
//
// Whoever can run such a command can copy the store's file, too, and read the
// copy elsewhere: this records the way that is provided, and is no barrier.
package reads

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Env names the environment variable with the path of the socket. Where it is
// set, commands that read records tell there, and show nothing if they cannot.
const Env = "ATTACHE_READS"

// Path is where a reading is told.
const Path = "/v1/read"

const (
	maxBody  = 16 << 10
	maxField = 2 << 10 // as that of an event
	timeout  = 10 * time.Second
)

// Read says what is read.
type Read struct {
	Event   string `json:"event"`             // audit.EventAuditQuery or audit.EventAuditExport
	Page    string `json:"page"`              // the command, such as attache audit search
	Query   string `json:"query,omitempty"`   // its terms
	Format  string `json:"format,omitempty"`  // of an export
	Records string `json:"records,omitempty"` // how many it had, at its end
	State   string `json:"state,omitempty"`   // whole, or broken off
}

// Fields are those of the event.
func (r *Read) Fields(by string) map[string]string {
	m := map[string]string{"by": by, "page": r.Page, "query": r.Query, "format": r.Format, "records": r.Records, "state": r.State, "namespaces": "all namespaces"}
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	return m
}

// check refuses what no command of ours says.
func (r *Read) check() error {
	if r.Event != audit.EventAuditQuery && r.Event != audit.EventAuditExport {
		return fmt.Errorf("event is %q; must be %s or %s", audit.Safe(r.Event), audit.EventAuditQuery, audit.EventAuditExport)
	}
	if r.Page == "" {
		return errors.New("page is missing")
	}
	return nil
}

// Tell says at the socket that something is about to be read, and waits until
// that is recorded.
func Tell(ctx context.Context, socket string, r Read) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(r.Query) > maxField {
		r.Query = strings.ToValidUTF8(r.Query[:maxField], "") + "…"
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://attache"+Path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode == http.StatusNoContent {
		return nil
	}
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what came of it will do
	return fmt.Errorf("%s: %s", resp.Status, audit.Safe(strings.TrimSpace(string(why))))
}

// Handler records what it is told by write, as somebody's doing.
func Handler(by string, write func(context.Context, *audit.Record) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		var in Read
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := errors.Join(d.Decode(&in), in.check()); err != nil {
			http.Error(w, "is no reading of records: "+audit.Safe(err.Error()), http.StatusBadRequest)
			return
		}
		rec := &audit.Record{Type: audit.TypeEvent, ID: audit.NewID(), Event: &audit.Event{Name: in.Event, Fields: in.Fields(by)}}
		if err := write(context.WithoutCancel(r.Context()), rec); err != nil {
			http.Error(w, "it cannot be recorded; the log says why", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// Listen makes the socket, for this user alone, in place of one that a process
// before left.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listen for readings at %s: is a file", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for readings: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for readings: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for readings: %w", err), ln.Close())
	}
	return ln, nil
}
