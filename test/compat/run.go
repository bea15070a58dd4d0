package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/test/compat/upstream"
	"github.com/attache-dev/attache/test/leak"
)

// Cells of the matrix, in the order of its columns.
const (
	works = iota
	denied
	noSecret
	recorded
	cells
)

var cellNames = [cells]string{"works", "denied usefully", "no secret seen", "record complete"}

const runTimeout = 3 * time.Minute

// run is one client behind one door: one attache run with a spool of its own,
// so that each record belongs to it.
type run struct {
	h      *harness
	client client
	door   door

	dir     string // of this run; state and out are below it; short, for a socket has to fit
	canary  string // planted in environment and files; answers hold the upstream's
	records []audit.Record
	version string
	denial  string // what the user sees
	took    time.Duration
	errs    [cells]error
}

func (r *run) name() string { return r.client.name + ", " + r.door.name }

func (r *run) out(name string) string { return filepath.Join(r.dir, "out", name) }

// script is what runs inside attache run. Everything that the client prints or
// stores stays below the working folder, where the search looks.
func (r *run) script() string {
	return `cd "$OUT"
env >environ.txt
tr '\0' '\n' </proc/self/environ >environ.proc.txt
for form in raw base64 gzip; do curl -sS https://` + upstream.CanaryHost + `/$form -o answer.$form; done
(` + r.client.version + `) >version.txt 2>version.err
mkdir works denied
(cd works; ` + r.door.works + `
) >works.out 2>works.err; echo $? >works.rc
(cd denied; ` + r.door.denied + `
) >denied.out 2>denied.err; echo $? >denied.rc
env >environ.after.txt
`
}

// do runs the client and judges it.
func (r *run) do(ctx context.Context) {
	start := time.Now()
	r.canary = "planted-" + rand.Text()
	err := r.start(ctx)
	if err == nil {
		err = r.read()
	}
	r.took = time.Since(start)
	if err != nil {
		for i := range r.errs {
			r.errs[i] = err
		}
		return
	}
	r.errs[works] = r.checkWorks()
	r.errs[denied] = r.checkDenied()
	r.errs[noSecret] = r.checkSecrets()
	r.errs[recorded] = r.checkRecords()
}

func (r *run) start(ctx context.Context) error {
	for _, d := range []string{"out", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := r.plant(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.h.attache, "run", "--config", r.h.config, "--state", filepath.Join(r.dir, "state"), "--", "/bin/sh", "-c", r.script())
	cmd.Dir = r.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	path := r.h.path
	if r.client.oldNode {
		path = r.h.oldPath
	}
	cmd.Env = []string{
		"PATH=" + path, "HOME=" + filepath.Join(r.dir, "home"), "TMPDIR=" + filepath.Join(r.dir, "tmp"), "LC_ALL=C.UTF-8", "OUT=" + filepath.Join(r.dir, "out"),
		"S=" + r.h.scripts, "CACHE=" + r.h.cache, "GIT_TERMINAL_PROMPT=0",
		"CANARY_RAW=" + r.canary, "CANARY_BASE64=" + upstream.Base64(r.canary), "CANARY_GZIP=" + upstream.Base64(string(upstream.Gzip(r.canary))),
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	err := cmd.Run()
	if werr := os.WriteFile(r.out("attache.log"), log.Bytes(), 0o600); werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("attache run: %w: %s", err, lastLines(log.String(), 6))
	}
	return nil
}

// plant writes the canary into files in three forms.
func (r *run) plant() error {
	return errors.Join(
		os.WriteFile(r.out("planted.raw"), []byte("x "+r.canary), 0o600),
		os.WriteFile(r.out("planted.base64"), []byte(upstream.Base64(r.canary)), 0o600),
		os.WriteFile(r.out("planted.gzip"), upstream.Gzip(r.canary), 0o600))
}

func (r *run) read() error {
	b, err := os.ReadFile(r.out("version.txt"))
	r.version = strings.TrimSpace(string(b))
	return errors.Join(err, audit.Read(filepath.Join(r.dir, "state", "audit", "0"), audit.Filter{}, func(rec audit.Record) bool {
		if rec.Request != nil && rec.Request.Host != upstream.CanaryHost {
			r.records = append(r.records, rec)
		}
		return true
	}))
}

func (r *run) output(step string) (string, string) {
	var all []byte
	for _, f := range []string{".out", ".err"} {
		b, _ := os.ReadFile(r.out(step + f)) // a missing file is empty output, which matches nothing
		all = append(all, b...)
	}
	rc, _ := os.ReadFile(r.out(step + ".rc"))
	return string(all), strings.TrimSpace(string(rc))
}

func (r *run) checkWorks() error {
	text, rc := r.output("works")
	if rc != "0" {
		return fmt.Errorf("exit status %q: %s", rc, lastLines(text, 12))
	}
	for _, w := range r.door.wants {
		if !regexp.MustCompile(w).MatchString(text) {
			return fmt.Errorf("output does not match %q: %s", w, lastLines(text, 12))
		}
	}
	if i := slices.IndexFunc(r.records, func(rec audit.Record) bool { return !isDenied(rec) && rec.Request.Door == r.door.kind() }); i < 0 {
		return errors.New("no record of a call through this door")
	}
	return nil
}

func isDenied(rec audit.Record) bool {
	return rec.Result != nil && rec.Result.Outcome == audit.OutcomeDenied
}

// checkDenied holds that the user sees what happened and that the record has
// rule and reason.
func (r *run) checkDenied() error {
	text, _ := r.output("denied")
	m := regexp.MustCompile(`.*(?:` + r.door.sees + `).*`).FindString(text)
	if m == "" {
		return fmt.Errorf("output does not match %q: %s", r.door.sees, lastLines(text, 12))
	}
	r.denial = strings.TrimSpace(m)
	n := 0
	for _, rec := range r.records {
		if !isDenied(rec) {
			continue
		}
		n++
		d := rec.Decision
		if d == nil || d.Verdict != "deny" || !strings.HasPrefix(d.Rule, "denied-") || !strings.HasSuffix(d.Reason, reason) || d.Code != "denied" || rec.Result.Status != 403 {
			return fmt.Errorf("record %s of the denial: decision %+v, result %+v", rec.ID, d, rec.Result)
		}
		if rec.Request.Door != r.door.kind() {
			return fmt.Errorf("record %s of the denial: door %s", rec.ID, rec.Request.Door)
		}
		if strings.Contains(text, "record") && !strings.Contains(text, rec.ID) && n == 1 {
			return fmt.Errorf("the answer names another record than %s: %s", rec.ID, lastLines(text, 12))
		}
	}
	if n == 0 {
		return errors.New("no record of the denial")
	}
	return nil
}

// checkSecrets searches everything that the client got for every credential
// that an upstream issued or was shown; but first for the planted ones, in
// each place and form.
func (r *run) checkSecrets() error {
	for _, kind := range []struct{ file, secret string }{
		{"environ.txt", r.canary}, {"environ.proc.txt", r.canary},
		{"planted.raw", r.canary}, {"planted.base64", r.canary}, {"planted.gzip", r.canary},
		{"answer.raw", r.h.set.Canary}, {"answer.base64", r.h.set.Canary}, {"answer.gzip", r.h.set.Canary},
	} {
		b, err := os.ReadFile(r.out(kind.file))
		if err != nil {
			return err
		}
		if !holds(b, kind.secret) {
			return fmt.Errorf("the search is blind: it does not find the canary in %s", kind.file)
		}
	}
	if err := r.checkEnvironment(); err != nil {
		return err
	}
	secrets := r.h.set.Log.Secrets()
	if len(secrets) == 0 {
		return errors.New("the upstreams learned no credential: nothing to search for")
	}
	named := make(map[string]string, len(secrets))
	for i, s := range secrets {
		named[fmt.Sprintf("credential %d, %.6s… (%d bytes)", i, s, len(s))] = s
	}
	for _, d := range []string{"out", "home", "tmp"} {
		places, err := leak.Files(r.dir, filepath.Join(r.dir, d), 0)
		if err != nil {
			return err
		}
		for _, f := range leak.Search(places, named) {
			return fmt.Errorf("a credential was seen: %s is in %s (%s)", f.Secret, f.Place, f.Form)
		}
	}
	return nil
}

// holds reports whether the search finds secret in b.
func holds(b []byte, secret string) bool {
	return len(leak.Search([]leak.Place{{Data: b}}, map[string]string{"it": secret})) > 0
}

// checkEnvironment holds that the search finds each form in the environment
// by itself, not only one of them.
func (r *run) checkEnvironment() error {
	b, err := os.ReadFile(r.out("environ.txt"))
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "CANARY_") && holds([]byte(line), r.canary) {
			found++
		}
	}
	if found != 3 {
		return fmt.Errorf("the search is blind: it finds the canary in %d variables of 3", found)
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return "\n      " + strings.Join(lines[max(0, len(lines)-n):], "\n      ")
}
