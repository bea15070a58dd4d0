package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/test/leak"
)

// outcome is what a client says of one step.
type outcome struct {
	Step   string `json:"step"`
	Key    string `json:"key"`    // of what the step stored in bucket alpha
	SHA256 string `json:"sha256"` // of its content
	Error  string `json:"error"`
}

// denied: by Attaché, with its reason. refused: by Attaché or the server.
func (o outcome) denied() bool  { return strings.HasPrefix(o.Step, "denied ") }
func (o outcome) refused() bool { return o.denied() || strings.HasPrefix(o.Step, "refused ") }

// run is one attache run around one client.
type run struct {
	s       *suite
	client  client
	dir     string
	config  string
	canary  string
	steps   []outcome
	records []audit.Record
	took    time.Duration
	version string
}

func (r *run) out(name string) string { return filepath.Join(r.dir, "out", name) }

// prefix is where this client's objects are.
func (r *run) prefix() string { return "desk/" + filepath.Base(r.dir) + "/" }

// script is what runs inside attache run. All that the client prints or stores
// stays below the working folder, where the search looks; what is large stays
// in $HOME, and is made by the client itself.
func (r *run) script() string {
	return `cd "$OUT"
env >environ.txt
tr '\0' '\n' </proc/self/environ >environ.proc.txt
[ -n "$PLAIN" ] || for form in raw base64 gzip; do
	curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -o answer.$form https://` + storeHost + `/alpha/readonly/canary.$form
done
(` + r.client.version + `) >version.txt 2>version.err
(` + strings.Join(r.exports(), "; ") + r.client.command + `
) >steps.out 2>steps.err; echo $? >steps.rc
env >environ.after.txt
`
}

func (r *run) exports() []string {
	var out []string
	for _, kv := range r.client.env {
		out = append(out, "export "+kv)
	}
	return append(out, "")
}

// do runs the client and reads what it left.
func (r *run) do(ctx context.Context) error {
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	for _, d := range []string{"out", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o700); err != nil {
			return err
		}
	}
	r.canary = "canary" + rand.Text()
	for form, b := range forms(r.canary) {
		if err := os.WriteFile(r.out("planted."+form), b, 0o600); err != nil {
			return err
		}
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.read()
}

const runTimeout = 5 * time.Minute

func (r *run) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.s.w.attache, "run", "--config", r.config, "--state", filepath.Join(r.dir, "state"), "--", "/bin/sh", "-c", r.script())
	cmd.Dir = r.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	planted := forms(r.canary)
	cmd.Env = []string{
		"PATH=" + r.s.path, "HOME=" + filepath.Join(r.dir, "home"), "TMPDIR=" + filepath.Join(r.dir, "tmp"), "LC_ALL=C.UTF-8", "OUT=" + filepath.Join(r.dir, "out"),
		"S=" + r.s.scripts, "PROGRAMS=" + r.s.programs, "PREFIX=" + r.prefix(), "SIZES=" + r.s.sizes, "BIG=" + r.s.big, "PYTHONWARNINGS=ignore", "PLAIN=" + map[bool]string{true: "yes"}[r.client.plain],
		"MARK_RAW=" + string(planted["raw"]), "MARK_BASE64=" + string(planted["base64"]), "MARK_GZIP=" + base64Of(planted["gzip"]),
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

// read collects steps and records.
func (r *run) read() error {
	b, err := os.ReadFile(r.out("steps.out"))
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var o outcome
		if json.Unmarshal(s.Bytes(), &o) == nil && o.Step != "" {
			r.steps = append(r.steps, o)
		}
	}
	v, err := os.ReadFile(r.out("version.txt"))
	r.version = strings.TrimSpace(string(v))
	return errors.Join(err, audit.Read(filepath.Join(r.dir, "state", "audit", "0"), audit.Filter{}, func(rec audit.Record) bool {
		if rec.Request != nil {
			r.records = append(r.records, rec)
		}
		return true
	}))
}

// checkSteps holds that every step did what its name says.
func (r *run) checkSteps() []error {
	var errs []error
	rc, _ := os.ReadFile(r.out("steps.rc"))
	if got := strings.TrimSpace(string(rc)); got != "0" || len(r.steps) < r.client.least {
		said, _ := os.ReadFile(r.out("steps.err"))
		errs = append(errs, fmt.Errorf("exit status %s after %d steps of at least %d: %s", got, len(r.steps), r.client.least, lastLines(string(said), 8)))
	}
	for _, o := range r.steps {
		switch {
		case !o.refused() && o.Error != "":
			errs = append(errs, fmt.Errorf("%s: %s", o.Step, brief(o.Error)))
		case o.refused() && o.Error == "":
			errs = append(errs, fmt.Errorf("%s: it was not", o.Step))
		case o.denied() && !reason.MatchString(o.Error) && !slices.Contains(r.client.mute, o.Step):
			errs = append(errs, fmt.Errorf("%s: the user does not see why: %s", o.Step, brief(o.Error)))
		}
	}
	return errs
}

// checkObjects looks at MinIO itself for what the steps say they stored.
func (r *run) checkObjects(ctx context.Context) []error {
	var errs []error
	n := 0
	for _, o := range r.steps {
		if o.Key == "" || o.Error != "" {
			continue
		}
		n++
		sum, err := r.s.w.sum(ctx, "alpha", o.Key)
		if err == nil && sum != o.SHA256 {
			err = fmt.Errorf("its content is %.8s…, the client sent %.8s…", sum, o.SHA256)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: object %s: %w", o.Step, o.Key, err))
		}
	}
	if n == 0 {
		errs = append(errs, errors.New("no step stored anything"))
	}
	return errs
}

// checkSecrets searches all that the client could read for every secret that
// passed the tap, the planted ones first.
func (r *run) checkSecrets() []error {
	places, err := r.places()
	if err != nil {
		return []error{err}
	}
	var errs []error
	found := map[string]bool{}
	for _, f := range leak.Search(places, map[string]string{"planted": r.canary, "stored": r.s.canary}) {
		found[f.Secret+" in "+f.Place] = true
	}
	for _, form := range []string{"raw", "base64", "gzip"} {
		for _, want := range []string{"planted in out/planted." + form, "stored in out/answer." + form, "planted in out/environ.txt MARK_" + strings.ToUpper(form)} {
			if !found[want] {
				errs = append(errs, fmt.Errorf("the search is blind: it does not find what was %s", want))
			}
		}
	}
	secrets := r.s.w.tap.secrets()
	if len(secrets) == 0 {
		errs = append(errs, errors.New("the tap learned no secret: nothing to search for"))
	}
	for _, f := range leak.Search(places, secrets) {
		errs = append(errs, fmt.Errorf("%s is in %s (%s)", f.Secret, f.Place, f.Form))
	}
	return errs
}

// maxSearched bounds a file: what is larger the clients made themselves.
const maxSearched = 4 << 20

// places are the files below the client's folders, and the lines of its
// environment one by one, so that each is found by itself.
func (r *run) places() ([]leak.Place, error) {
	var out []leak.Place
	for _, top := range []string{"out", "home", "tmp"} {
		files, err := leak.Files(r.dir, filepath.Join(r.dir, top), maxSearched)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	environ, err := os.ReadFile(r.out("environ.txt"))
	for line := range bytes.Lines(environ) {
		variable, _, _ := bytes.Cut(line, []byte("="))
		out = append(out, leak.Place{Name: filepath.Join("out", "environ.txt") + " " + string(variable), Data: line})
	}
	return out, err
}

func brief(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return s
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return "\n      " + strings.Join(lines[max(0, len(lines)-n):], "\n      ")
}
