package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/test/leak"
)

const purpose = "answer ticket 7"

// path returns a file or folder of the demo.
func (d *demo) path(names ...string) string {
	return filepath.Join(append([]string{d.dir}, names...)...)
}

// start brings up the servers, and copies examples/quickstart to ports and
// files of this demo.
func (d *demo) start(ctx context.Context) error {
	d.heading(1, "Real servers over TLS on loopback")
	at, err := freeAddresses()
	if err != nil {
		return err
	}
	if d.w, err = startWorld(ctx, d.path("world"), at); err != nil {
		return err
	}
	for _, dir := range []string{"config", "work", "home"} {
		if err := os.Mkdir(d.path(dir), 0o755); err != nil {
			return err
		}
	}
	ports := strings.NewReplacer("127.0.0.1:28441", at.login, "127.0.0.1:28443", at.apis, "127.0.0.1:28445", at.issuer, "../../.cache/quickstart", d.w.dir)
	for _, name := range []string{"config.yaml", "providers.yaml", "policy.yaml"} {
		b, err := os.ReadFile(filepath.Join(d.root, "examples", "quickstart", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(d.path("config", name), []byte(ports.Replace(string(b))), 0o644); err != nil {
			return err
		}
	}
	d.line("   authorization server  %s", d.paint(cyan, loginURL))
	d.line("   tickets API           %s   OAuth token with human and agent, checked by JWKS and introspection", d.paint(cyan, "https://"+ticketsHost))
	d.line("   reports API           %s   OAuth token of the agent, checked by introspection", d.paint(cyan, "https://"+reportsHost))
	d.line("   notes API             %s     API key of the vendor", d.paint(cyan, "https://"+notesHost))
	d.say("the documents are those of examples/quickstart")
	// A careless rule: the address of the cloud's metadata service is allowed.
	const careless = "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: careless}\nspec:\n  rules:\n  - {name: metadata, hosts: [169.254.169.254], action: allow}\n"
	return errors.Join(os.WriteFile(d.path("config", "careless.yaml"), []byte(careless), 0o644), d.w.canary.writeFiles(d.path("home")),
		os.WriteFile(d.path("work", "ca.pem"), d.w.ca.PEM(), 0o644))
}

// humanToken signs the human in and remembers what must not leak.
func (d *demo) humanToken(ctx context.Context) (string, error) {
	t, err := d.w.humanToken(ctx)
	if err == nil {
		d.w.secrets.add("human's token", t)
	}
	return t, err
}

// directly makes the agents' calls without Attaché.
func (d *demo) directly(ctx context.Context) error {
	token, err := d.humanToken(ctx)
	if err != nil {
		return err
	}
	for _, c := range []struct{ what, url, header, value string }{
		{"no credential", "https://" + ticketsHost + "/v1/tickets/7", "", ""},
		{"no credential", "https://" + reportsHost + "/v1/summary", "", ""},
		{"no credential", "https://" + notesHost + "/v1/notes", "", ""},
		{"a token made up", "https://" + reportsHost + "/v1/summary", "Authorization", "Bearer " + random()},
		{"the human's own token", "https://" + ticketsHost + "/v1/tickets/7", "Authorization", "Bearer " + token},
		{"a key made up", "https://" + notesHost + "/v1/notes", "X-Api-Key", "note_" + random()},
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
		if err != nil {
			return err
		}
		if c.header != "" {
			req.Header.Set(c.header, c.value)
		}
		res, err := d.w.client.Do(req)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		d.check(res.StatusCode == http.StatusUnauthorized, fmt.Sprintf("GET %s with %s", c.url, c.what), "%d", res.StatusCode)
	}
	return nil
}

// child is one attache run.
type child struct {
	human bool     // open a task for the human
	env   []string // more variables
	args  []string // the agent
	line  func(string, io.Writer)
}

// environ is that of a user's shell, and nothing of this machine's.
func (d *demo) environ() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.path("home"), "ATTACHE_STATE=" + d.path("state"), "LANG=C.UTF-8", "AGENT_TRANSCRIPT=" + d.path("work", "transcript.jsonl")}
	return append(env, d.w.canary.environ()...)
}

// run starts attache run and follows its output and its records.
func (d *demo) run(ctx context.Context, c child) error {
	args := []string{"run", "--config", d.path("config")}
	shown := "attache run --config examples/quickstart"
	if c.human {
		token, err := d.humanToken(ctx)
		if err != nil {
			return err
		}
		if err := os.WriteFile(d.w.file("human.jwt"), []byte(token+"\n"), 0o600); err != nil {
			return err
		}
		args = append(args, "--task", purpose, "--human-token-file", d.w.file("human.jwt"))
		shown += fmt.Sprintf(" --task %q --human-token-file human.jwt", purpose)
	}
	args = append(append(args, "--"), c.args...)
	words := append([]string{shown, "--"}, c.args...)
	d.line("\n   %s", d.paint(bold, "$ "+strings.ReplaceAll(strings.Join(words, " "), d.root+"/", "")))
	stopTail := d.follow(ctx)
	err := d.wait(ctx, args, c)
	stopTail()
	return err
}

func (d *demo) wait(ctx context.Context, args []string, c child) error {
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Dir, cmd.Env = d.path("work"), append(d.environ(), c.env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	before := len(d.w.apis.since(0))
	if err := cmd.Start(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var errText bytes.Buffer
	wg.Go(func() {
		each(errs, func(l string) {
			errText.WriteString(l + "\n")
			d.from(yellow, "attache", l)
		})
	})
	each(out, func(l string) {
		d.stdout = append(d.stdout, l+"\n"...)
		c.line(l, in)
	})
	wg.Wait()
	err = cmd.Wait()
	d.stdout = append(d.stdout, errText.Bytes()...)
	d.runs++
	for _, a := range d.w.apis.since(before) {
		d.from(cyan, "API", fmt.Sprintf("%d  %s  %s", a.Status, a.Call, a.Who))
	}
	return err
}

// follow prints records while they are written: attache audit tail.
func (d *demo) follow(ctx context.Context) (stop func()) {
	if _, err := os.Stat(d.path("state", "audit")); err != nil { // before the first run
		_ = os.MkdirAll(d.path("state", "audit", "0"), 0o700)
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, d.bin, "audit", "tail", "-n", "0", "-o", "json", "type:request")
	cmd.Env = d.environ()
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		cancel()
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		each(out, func(l string) {
			var r audit.Record
			if json.Unmarshal([]byte(l), &r) == nil && r.Request != nil {
				d.from(green, "record", story(&r))
			}
		})
	}()
	return func() {
		time.Sleep(300 * time.Millisecond) // the tail looks ten times a second
		cancel()
		<-done
		_ = cmd.Wait() // it was killed
	}
}

// story is a record in words.
func story(r *audit.Record) string {
	s := r.Request.Method + " " + r.Request.Host + r.Request.Path
	if r.Decision != nil {
		s += ": " + r.Decision.Verdict
		if r.Decision.Code != "" {
			s += " (" + r.Decision.Code + ")"
		}
	}
	if c := r.Credential; c != nil && c.Handle != "" {
		scope := strings.Join(c.ScopeGranted, " ")
		if scope == "" {
			scope = "-"
		}
		life := fmt.Sprintf("TTL %ds", c.TTLSeconds)
		if c.Static {
			life = "static"
		}
		s += fmt.Sprintf("\n  credential %s  kind %s  scope %s  %s", c.Handle, c.Kind, scope, life)
	}
	return s
}

// agents runs three programs that know nothing of Attaché.
func (d *demo) agents(ctx context.Context) error {
	example := func(name string) string { return filepath.Join(d.root, "examples", "quickstart", name) }
	for _, c := range []child{
		{args: []string{"curl", "-sSi", "https://" + reportsHost + "/v1/summary"}},
		{args: []string{"python3", example("agent.py")}, human: true},
		{args: []string{"node", example("agent.mjs")}, human: true},
	} {
		c.line = func(l string, _ io.Writer) { d.from(bold, "agent", l) }
		before := len(d.w.apis.since(0))
		err := d.run(ctx, c)
		want := 3
		if c.args[0] == "curl" {
			want = 1
		}
		good := 0
		for _, a := range d.w.apis.since(before) {
			if a.Status == http.StatusOK {
				good++
			}
		}
		d.check(err == nil && good == want, fmt.Sprintf("%s: the APIs verified each of %d calls", c.args[0], want), "%s", errorText(err))
	}
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// curious runs probe.py and judges what it got.
func (d *demo) curious(ctx context.Context) error {
	hidden := []string{d.w.file("notes.key"), d.w.file("human.jwt"), d.w.file("issuer.key"), d.w.file("agent.sock"), d.path("state")}
	err := d.run(ctx, child{
		human: true, args: []string{"python3", filepath.Join(d.root, "test", "demo", "probe.py")},
		env: []string{
			"DEMO_EXAMPLE=" + filepath.Join(d.root, "examples", "quickstart"), "DEMO_APIS=" + d.w.at.apis, "DEMO_CA=" + d.path("work", "ca.pem"),
			"DEMO_HIDDEN=" + strings.Join(hidden, ":"), "DEMO_ROOTS=" + strings.Join([]string{d.dir, "/dev/shm", "/run/user", "/var/tmp"}, ":"),
			"DEMO_SWEEP=" + d.path("work", "sweep.jsonl"), "PYTHONDONTWRITEBYTECODE=1",
		},
		line: func(l string, in io.Writer) { d.hear(ctx, l, in) },
	})
	d.check(err == nil, "the curious agent did its own work and came to its end", "%s", errorText(err))
	d.judge()
	for i, path := range hidden {
		r, ok := d.results[fmt.Sprintf("file-%d", i)]
		d.check(ok && r.Status == 0, "reading "+filepath.Base(path)+" by its name gives nothing", "%s", r.Text)
	}
	return nil
}

// hear takes a line of probe.py.
func (d *demo) hear(ctx context.Context, l string, in io.Writer) {
	text, ok := strings.CutPrefix(l, "RESULT ")
	var r result
	if !ok || json.Unmarshal([]byte(text), &r) != nil {
		d.from(bold, "agent", l)
		return
	}
	d.results[r.Name] = r
	if r.Name == "ready" {
		d.results["outside"] = d.outside(ctx)
		_, _ = io.WriteString(in, "\n")
	}
}

// outside calls the proxy from this process, which is none of the agent's.
func (d *demo) outside(ctx context.Context) result {
	cmd := exec.CommandContext(ctx, d.bin, "status", "-o", "json")
	cmd.Env = d.environ()
	out, err := cmd.Output()
	var runs []struct{ Proxy string }
	if err != nil || json.Unmarshal(out, &runs) != nil || len(runs) != 1 {
		return result{Text: "attache status: " + string(out)}
	}
	proxy, err := url.Parse(runs[0].Proxy)
	if err != nil {
		return result{Text: err.Error()}
	}
	// The refusal comes inside the tunnel; who signs it is not the question.
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer c.CloseIdleConnections()
	res, err := c.Get("https://" + reportsHost + "/v1/summary")
	if err != nil {
		return result{Text: err.Error()}
	}
	defer res.Body.Close()
	r := result{Status: res.StatusCode}
	var problem struct{ Code, Detail string }
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&problem); err == nil {
		r.Code, r.Text = problem.Code, problem.Detail
	}
	return r
}

// judge compares what the curious agent got with what it should.
func (d *demo) judge() {
	d.line("")
	for _, c := range []struct {
		name, claim string
		status      int
		code        string
	}{
		{"method", "DELETE on the tickets API", 403, "denied"},
		{"path", "a path outside the rule", 403, "denied"},
		{"trick", "a path that hides .. behind %2f", 400, "bad_path"},
		{"reason", "a denied path, with the rule's reason", 403, "denied"},
		{"host", "a host without a rule", 403, "denied"},
		{"elsewhere", "the placeholder sent to another host", 403, "denied"},
		{"ambient", "the notes API without the placeholder", 403, "ambient_use"},
		{"site", "the notes API on behalf of another web site", 403, "ambient_use"},
		{"metadata", "the cloud's metadata address, which a careless rule allows", 403, "address_refused"},
		{"direct", "past Attaché, straight to the tickets API", 401, ""},
		{"direct-key", "past Attaché to the notes API with the placeholder", 401, ""},
		{"outside", "the proxy, called by a process that is none of the agent's", 403, "unattested"},
	} {
		r, ok := d.results[c.name]
		d.check(ok && r.Status == c.status && r.Code == c.code, c.claim, "%d %s %s", r.Status, r.Code, r.Text)
	}
	r := d.results["echo"]
	d.check(r.Status == 200 && strings.Contains(r.Text, "Bearer **") && !strings.Contains(r.Text, "made-up") && !strings.Contains(r.Text, "Api-Key"),
		"an origin that echoes its request: our token masked, the agent's own token and placeholder gone", "%s", r.Text)
}

// records prints what attache audit search finds and compares it with the
// APIs' own logs.
func (d *demo) records(ctx context.Context) error {
	search := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, d.bin, append([]string{"audit", "search"}, args...)...)
		cmd.Env = d.environ()
		return cmd.Output()
	}
	tell := func(args ...string) error {
		out, err := search(args...)
		if err != nil {
			return fmt.Errorf("attache audit search: %w", err)
		}
		d.line("   %s\n%s", d.paint(bold, "$ attache audit search "+strings.Join(args, " ")), out)
		return nil
	}
	if err := errors.Join(tell("type:request"), tell("event:task.*,credential.*", "-n", "8")); err != nil {
		return err
	}
	out, err := search("-o", "json", "type:request")
	if err != nil {
		return fmt.Errorf("attache audit search: %w", err)
	}
	byID := map[string]audit.Record{}
	each(bytes.NewReader(out), func(l string) {
		var r audit.Record
		if json.Unmarshal([]byte(l), &r) == nil {
			byID[r.ID] = r
		}
	})
	through, joined := 0, 0
	for _, a := range d.w.apis.since(0) {
		if a.Status != http.StatusOK {
			continue
		}
		through++
		if r, ok := byID[a.Record]; ok && r.Result != nil && r.Credential != nil && r.Credential.Handle != "" {
			joined++
		}
	}
	if err := d.showOne(ctx, byID); err != nil {
		return err
	}
	d.check(through > 0 && through == joined, "each line of the APIs' own logs has its record, found by id", "%d of %d", joined, through)
	cmd := exec.CommandContext(ctx, d.bin, "audit", "verify")
	cmd.Env = d.environ()
	verdict, err := cmd.CombinedOutput()
	d.check(err == nil, "attache audit verify finds no gap", "%s", strings.ReplaceAll(strings.TrimSpace(string(verdict)), d.dir, ""))
	return nil
}

// showOne tells the story of the first call for a human.
func (d *demo) showOne(ctx context.Context, byID map[string]audit.Record) error {
	for _, a := range d.w.apis.since(0) {
		r, ok := byID[a.Record]
		if !ok || r.Human == nil {
			continue
		}
		cmd := exec.CommandContext(ctx, d.bin, "audit", "show", r.ID)
		cmd.Env = d.environ()
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("attache audit show: %w", err)
		}
		story, _, _ := strings.Cut(string(out), "\n\n")
		d.line("   %s\n%s\n", d.paint(bold, "$ attache audit show "+r.ID), story)
		break
	}
	return nil
}

// search looks for every secret in everything that the agents could read.
func (d *demo) search(context.Context) error {
	places := []leak.Place{{Name: "output of the agents", Data: d.stdout}}
	f, err := os.Open(d.path("work", "sweep.jsonl"))
	if err != nil {
		return fmt.Errorf("the curious agent left nothing: %w", err)
	}
	defer f.Close()
	size := len(d.stdout)
	dec := json.NewDecoder(f)
	for dec.More() {
		var p struct{ Name, Data string }
		if err := dec.Decode(&p); err != nil {
			return err
		}
		b, err := base64.StdEncoding.DecodeString(p.Data)
		if err != nil {
			return err
		}
		size += len(b)
		places = append(places, leak.Place{Name: p.Name, Data: b})
	}
	d.say("searched: environment and files of the agents, output, every answer with its headers, /proc (%d places, %.1f MiB)", len(places), float64(size)/(1<<20))
	canaries := d.w.canary.named()
	found := map[string]string{}
	for _, x := range leak.Search(places, canaries) {
		found[x.Secret] = x.Form + " in " + x.Place
	}
	names := make([]string, 0, len(canaries))
	for name := range canaries {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		where, ok := found[name]
		d.check(ok, "the search finds the canary planted in "+name, "%s", strings.ReplaceAll(where, d.dir, ""))
	}
	hunted := d.w.secrets.named()
	hunted["the vendor's API key"] = d.w.apiKey
	leaks := leak.Search(places, hunted)
	for _, l := range leaks {
		d.check(false, l.Secret+" leaked", "%s in %s", l.Form, l.Place)
	}
	d.check(len(leaks) == 0 && len(hunted) > 10, fmt.Sprintf("none of %d secrets (tokens, assertions, human's tokens, the API key) is there", len(hunted)), "")
	return nil
}

// after asks the authorization server about every token it issued, and uses
// them again.
func (d *demo) after(ctx context.Context) error {
	tokens := d.w.secrets.issued()
	dead, refused := 0, 0
	for _, t := range tokens {
		in, err := d.w.apis.introspect(ctx, t)
		if err != nil {
			return err
		}
		if !in.Active {
			dead++
		}
		again := 0
		for _, u := range []string{"https://" + ticketsHost + "/v1/tickets/7", "https://" + reportsHost + "/v1/summary"} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+t)
			res, err := d.w.client.Do(req)
			if err != nil {
				return err
			}
			_ = res.Body.Close()
			if res.StatusCode == http.StatusUnauthorized {
				again++
			}
		}
		if again == 2 {
			refused++
		}
	}
	d.check(len(tokens) > 0 && dead == len(tokens), "the authorization server calls every token inactive", "%d of %d", dead, len(tokens))
	d.check(len(tokens) > 0 && refused == len(tokens), "the APIs refuse every token when it is used again", "%d of %d", refused, len(tokens))
	d.say("the vendor's API key is its own root: Attaché cannot revoke it, and says so (static) in each record")
	return nil
}
