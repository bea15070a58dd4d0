package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/attache-dev/attache/internal/doctor"
)

// doctorTimeout bounds a run of attache doctor, which compiles a few probes.
const doctorTimeout = 5 * runTimeout

// diagnosis is a runtime as attache doctor names it and the client of the
// matrix that is the same runtime.
type diagnosis struct{ runtime, client string }

var (
	diagnoses = [...]diagnosis{
		{"curl", "curl"}, {"wget", "wget"}, {"git", "git"}, {"python urllib", "python3 urllib"}, {"python requests", "python3 requests"},
		{"python httpx", "python3 httpx"}, {"python aiohttp", "python3 aiohttp"}, {"python grpcio", "python3 grpcio"}, {"node fetch", "node 22 fetch"},
		{"node https.Agent (AWS SDK)", "node 22 http, https"}, {"go", "Go net/http"}, {"java HttpURLConnection", "Java HttpURLConnection"},
		{"java HttpClient", "Java HttpClient"}, {"ruby", "ruby net/http"}, {"deno", "deno fetch"}, {"cargo", "cargo"}, {"npm", "npm"}, {"pip", "pip"},
	}
	oldDiagnoses = [...]diagnosis{{"node fetch", "node (system) fetch"}, {"node https.Agent (AWS SDK)", "node (system) http"}}
)

// consult holds that attache doctor, which users ask first, says of each
// runtime what the matrix found at the connect door.
func (h *harness) consult(ctx context.Context, runs []*run) error {
	return errors.Join(h.agree(ctx, runs, diagnoses[:], h.path), h.agree(ctx, runs, oldDiagnoses[:], h.oldPath, "node"))
}

func (h *harness) agree(ctx context.Context, runs []*run, list []diagnosis, path string, args ...string) error {
	found, err := h.doctor(ctx, path, args)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range list {
		want := doctor.Fails
		if passed(runs, d.client, connect) {
			want = doctor.Works
		}
		if f := found[d.runtime]; f.Status != want {
			errs = append(errs, fmt.Errorf("attache doctor says that %s %q (%s), the matrix that %s %s", d.runtime, f.Status, f.Why, d.client, want))
		}
	}
	return errors.Join(errs...)
}

// doctor runs attache doctor with the clients' own path, and the machine's
// folder for temporary files: a socket's name has to fit into it.
func (h *harness) doctor(ctx context.Context, path string, args []string) (map[string]doctor.Finding, error) {
	home := filepath.Join(h.dir, "doctor")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.attache, append([]string{"doctor", "-o", "json"}, args...)...)
	cmd.Dir, cmd.Env = home, []string{"PATH=" + path, "HOME=" + home, "LC_ALL=C.UTF-8"}
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	var list []doctor.Finding
	if jerr := json.Unmarshal(out, &list); jerr != nil {
		return nil, fmt.Errorf("attache doctor: %w: %s", errors.Join(err, jerr), lastLines(log.String(), 6))
	}
	found := map[string]doctor.Finding{}
	for _, f := range list {
		found[f.Client] = f
	}
	return found, nil
}
