package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/identity/identitytest"
)

// humans is an AttacheConfig that trusts one OpenID provider.
func humans(p *identitytest.Provider) string {
	return `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: attache}
spec:
  workload: {name: triage}
  humans:
  - issuer: ` + p.URL + `
    audiences: [attache]
    addresses: ["` + strings.TrimPrefix(p.URL, "https://") + `"]
    caBundle: ` + yamlBlock(p.CAPEM(), 6) + "\n"
}

const triage = "spiffe://attache.local/agent/triage"

// claims of a good token of ana's for the workload triage, with changes.
func claims(p *identitytest.Provider, change map[string]any) map[string]any {
	now := time.Now()
	c := map[string]any{"iss": p.URL, "sub": "ana", "aud": "attache", "azp": triage, "jti": fmt.Sprint(now.UnixNano()),
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "email": "ana@example.com", "email_verified": true}
	for k, v := range change {
		c[k] = v
	}
	return c
}

func TestHumanTask(t *testing.T) {
	t.Parallel()
	w, o, i, p := newWorld(t), newOrigin(t), newIssuer(t), identitytest.NewProvider(t)
	w.write("attache.yaml", humans(p))
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(`, when: "human.subject == 'ana' && task.purpose == 'triage issue 7'", credential: {provider: tokens}`))
	text := p.Sign(t, "", claims(p, nil))
	file := w.file("token.jwt", text)
	r := w.run("--task", "triage issue 7", "--human-token-file", file, "--", "sh", "-c",
		"cat "+file+"; ls -l "+file+"; env; curl -sS https://"+apiHost+"/v1/x").must(t)
	if !strings.Contains(r.stdout, `{"path":"/v1/x"}`) {
		t.Fatalf("the call failed: %s%s", r.stdout, r.stderr)
	}
	if strings.Contains(r.all(), text) || strings.Contains(r.all(), strings.Split(text, ".")[2]) {
		t.Error("the agent reads the human's token")
	}
	rec := w.one("")
	if rec.Human == nil || rec.Human.Subject != "ana" || rec.Human.Email != "ana@example.com" || rec.Task == nil || rec.Task.OpenedBy != "launcher" || rec.Task.Purpose != "triage issue 7" {
		t.Errorf("record: human %+v task %+v", rec.Human, rec.Task)
	}
	if _, issued, revoked := i.state(); len(issued) != 1 || len(revoked) != 1 || issued[0] != revoked[0] {
		t.Errorf("issued %q, revoked %q at the issuer", issued, revoked)
	}
	if len(w.events("task.opened")) != 1 || len(w.events("task.closed")) != 1 {
		t.Error("the task's events are missing")
	}
}

// Each bad token: what is wrong and what to do, and no agent.
func TestBadHumanToken(t *testing.T) {
	t.Parallel()
	p := identitytest.NewProvider(t)
	stranger := identitytest.NewProvider(t)
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	sign := func(change map[string]any) string { return p.Sign(t, "", claims(p, change)) }
	tests := []struct{ name, token, says string }{
		{"expired", sign(map[string]any{"iat": ago(10 * time.Minute), "exp": ago(2 * time.Minute)}), "expired"},
		{"stale", sign(map[string]any{"iat": ago(20 * time.Minute)}), "must not be older than"},
		{"not yet valid", sign(map[string]any{"nbf": ago(-5 * time.Minute)}), "valid"},
		{"issued in the future", sign(map[string]any{"iat": ago(-5 * time.Minute)}), "clock"},
		{"wrong audience", sign(map[string]any{"aud": "somebody-else"}), "audience"},
		{"wrong workload", sign(map[string]any{"azp": "spiffe://attache.local/agent/other"}), triage},
		{"wrong workload, may_act first", sign(map[string]any{"may_act": map[string]any{"sub": "spiffe://attache.local/agent/other"}}), triage},
		{"no jti", sign(map[string]any{"jti": nil}), "jti"},
		{"unknown issuer", stranger.Sign(t, "", claims(stranger, nil)), "trusted are " + p.URL},
		{"wrong signature", stranger.Sign(t, "", claims(p, nil)), "not signed"},
		{"garbage", "garbage", "token"},
		{"empty", "", "is empty"},
		{"binary", "\x00\x01\x02", "token"},
		{"huge", strings.Repeat("x", 1<<20), "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.write("attache.yaml", humans(p))
			w.write("policy.yaml", newOrigin(t).allow(""))
			file := w.file("token.jwt", tt.token)
			r := w.run(append([]string{"--task", "x", "--human-token-file", file}, started(w)...)...).want(t, 1, tt.says)
			if len(tt.token) > 10 && strings.Contains(r.all(), tt.token) {
				t.Error("the token stands in the output")
			}
			w.neverStarted()
			w.orderly()
		})
	}
}

// Clocks of issuers that differ by less than a minute are right.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	w, p := newWorld(t), identitytest.NewProvider(t)
	w.write("attache.yaml", humans(p))
	w.write("policy.yaml", newOrigin(t).allow(""))
	for _, skew := range []time.Duration{-50 * time.Second, 50 * time.Second} {
		at := time.Now().Add(skew)
		file := w.file("token.jwt", p.Sign(t, "", claims(p, map[string]any{"iat": at.Unix(), "nbf": at.Unix(), "jti": fmt.Sprint(at)})))
		w.run("--task", "x", "--human-token-file", file, "--", "true").must(t)
	}
}

// One token opens one task: not one in each run, and none that cannot be
// marked as used.
func TestHumanTokenInOneRun(t *testing.T) {
	t.Parallel()
	w, p := newWorld(t), identitytest.NewProvider(t)
	w.write("attache.yaml", humans(p))
	w.write("policy.yaml", newOrigin(t).allow(""))
	file := w.file("token.jwt", p.Sign(t, "", claims(p, nil)))
	used := filepath.Join(w.state, "used-human-tokens")
	w.run("--task", "x", "--human-token-file", file, "--", "sh", "-c", "! test -e "+used).must(t)
	if _, err := os.Stat(used); err != nil {
		t.Fatal(err)
	}
	w.run(append([]string{"--task", "x", "--human-token-file", file}, started(w)...)...).want(t, 1, "was used before")
	w.neverStarted()
	if err := os.WriteFile(used, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := w.file("fresh.jwt", p.Sign(t, "", claims(p, map[string]any{"jti": "fresh"})))
	w.run(append([]string{"--task", "x", "--human-token-file", fresh}, started(w)...)...).want(t, 1, "cannot be marked as used", used)
	w.neverStarted()
}

// A human issuer is reached as every issuer: no address of the machine's own
// without a pin.
func TestHumanIssuerUnpinned(t *testing.T) {
	t.Parallel()
	w, p := newWorld(t), identitytest.NewProvider(t)
	text := humans(p)
	w.write("attache.yaml", text[:strings.Index(text, "    addresses:")]+text[strings.Index(text, "    caBundle:"):])
	w.write("policy.yaml", newOrigin(t).allow(""))
	file := w.file("token.jwt", p.Sign(t, "", claims(p, nil)))
	w.run(append([]string{"--task", "x", "--human-token-file", file}, started(w)...)...).want(t, 1, "cannot be asked for its keys")
	if p.Requests() != 0 {
		t.Error("the issuer was asked")
	}
	// It is pinned, and away.
	w.write("attache.yaml", strings.Replace(text, `addresses: ["`+strings.TrimPrefix(p.URL, "https://"), `addresses: ["127.0.0.1:1`, 1))
	w.run(append([]string{"--task", "x", "--human-token-file", file}, started(w)...)...).want(t, 1, "cannot be asked for its keys", "try again")
	w.neverStarted()
}

func TestHumanTokenFileMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	w.run(append([]string{"--task", "x", "--human-token-file", filepath.Join(w.dir, "nowhere.jwt")}, started(w)...)...).want(t, 1, "read the human's token", "nowhere.jwt", "no such file")
	w.neverStarted()
}

// waiting starts an agent that makes a call for each line that appears in
// work/calls, and prints what it got.
func (w *world) waiting(flags ...string) *process {
	w.t.Helper()
	w.file("work/calls", "")
	script := `echo up; n=0; while :; do m=$(wc -l <calls); while [ $n -lt $m ]; do n=$((n+1)); eval "$(sed -n ${n}p calls)" 2>&1; echo; echo "did $n"; done; sleep 0.05; done`
	p := w.startRun(append(append([]string{"--name", "triage"}, flags...), "--", "sh", "-c", script)...)
	p.says("up\n")
	return p
}

// does makes the waiting agent run a line and returns what it printed.
func (w *world) does(p *process, line string) string {
	w.t.Helper()
	w.lines = append(w.lines, line)
	before := len(p.out.String())
	w.file("work/calls", strings.Join(w.lines, "\n")+"\n")
	done := fmt.Sprintf("did %d\n", len(w.lines))
	p.says(done)
	return strings.TrimSuffix(p.out.String()[before:], "\n"+done)
}

// An orchestrator outside the agent's tree opens, lists and closes tasks;
// closing revokes at the issuer. From inside all of it is refused.
func TestOrchestrator(t *testing.T) {
	t.Parallel()
	w, o, i, p := newWorld(t), newOrigin(t), newIssuer(t), identitytest.NewProvider(t)
	w.write("attache.yaml", humans(p))
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(`, when: "human.subject == 'ana'", credential: {provider: tokens}`))
	a := w.waiting()
	token := w.file("token.jwt", p.Sign(t, "", claims(p, nil)))
	var task struct{ ID string }
	r := w.attache("task", "open", "reconcile invoices", "--human-token-file", token, "--ttl", "10m", "-o", "json").must(t)
	if err := json.Unmarshal([]byte(r.stdout), &task); err != nil || task.ID == "" {
		t.Fatalf("task open: %v %s", err, r.stdout)
	}
	call := "curl -sS -m 10 https://" + apiHost + "/v1/x"
	if got := w.does(a, call+" -H 'Attache-Task: "+task.ID+"'"); got != `{"path":"/v1/x"}` {
		t.Errorf("with the task: %s", got)
	}
	if p := parseProblem(t, w.does(a, call)); p.Code != "denied" {
		t.Errorf("without the task: %+v", p)
	}
	if got := o.requests(); len(got) != 1 || got[0].Header.Get("Attache-Task") != "" {
		t.Errorf("the task's id went upstream: %+v", got)
	}
	list := w.attache("task", "list").must(t).stdout
	for _, s := range []string{task.ID, "orchestrator", "ana", "reconcile invoices"} {
		if !strings.Contains(list, s) {
			t.Errorf("task list misses %s: %s", s, list)
		}
	}
	w.attache("task", "open", "again", "--human-token-file", token).want(t, 1, "was used before")
	// From inside: the sockets are out of sight.
	for _, inside := range []string{"task list", "task open mine", "task close " + task.ID, "revoke --all", "inventory", "status"} {
		got := w.does(a, "ATTACHE_STATE="+w.state+" "+attacheBinary+" "+inside+"; echo status=$?")
		if strings.Contains(got, task.ID) || (inside != "status" && !strings.Contains(got, "status=1")) {
			t.Errorf("attache %s from inside: %s", inside, got)
		}
	}
	if _, _, revoked := i.state(); len(revoked) != 0 {
		t.Fatal("revoked before the task was closed")
	}
	w.attache("task", "close", task.ID).must(t)
	if _, issued, revoked := i.state(); len(issued) != 1 || len(revoked) != 1 || issued[0] != revoked[0] {
		t.Errorf("after close: issued %q, revoked %q", issued, revoked)
	}
	if p := parseProblem(t, w.does(a, call+" -H 'Attache-Task: "+task.ID+"'")); p.Code != "task_unknown" {
		t.Errorf("with the closed task: %+v", p)
	}
	w.attache("task", "close", task.ID).want(t, 1, "no such task is open")
	w.attache("task", "open", "x", "--human-token-file", w.file("empty.jwt", "\n")).want(t, 1, "is empty")
	w.attache("task", "close", "--run", "ffff", task.ID).want(t, 1, "no live run")
}

// Two runs share a state folder: a task's id is worth nothing in the other.
func TestTaskOfAnotherRun(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(`, when: "task.purpose != ''"`))
	one := w.waiting()
	two := w.startRun("--name", "triage", "--", "sh", "-c", `echo up; until [ -e id ]; do sleep 0.05; done; curl -sS -m 10 https://`+apiHost+`/v1/x -H "Attache-Task: $(cat id)"`)
	two.says("up\n")
	w.attache("task", "open", "x").want(t, 1, "2 runs are alive", "--run")
	var runs []struct {
		Run, Spool string
		PID        int
	}
	if err := json.Unmarshal([]byte(w.attache("status", "-o", "json").must(t).stdout), &runs); err != nil || len(runs) != 2 || runs[0].PID != one.cmd.Process.Pid || runs[0].Spool == runs[1].Spool {
		t.Fatalf("status: %v %+v", err, runs)
	}
	id := strings.TrimSpace(w.attache("task", "open", "x", "--run", runs[0].Run[:8]).must(t).stdout)
	if got := w.does(one, "curl -sS -m 10 https://"+apiHost+"/v1/x -H 'Attache-Task: "+id+"'"); got != `{"path":"/v1/x"}` {
		t.Errorf("in its own run: %s", got)
	}
	w.file("work/id", id)
	if p := parseProblem(t, strings.TrimPrefix(two.wait().must(t).stdout, "up\n")); p.Code != "task_unknown" {
		t.Errorf("in the other run: %+v", p)
	}
	if got := len(o.requests()); got != 1 {
		t.Errorf("the upstream got %d requests, want 1", got)
	}
}

// The agent opens a task itself only where a rule says so, and the record
// says who did.
func TestAgentTask(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(`, when: "task.purpose == 'mine'"`))
	open := func(scheme string) string {
		return "curl -sS -m 10 " + scheme + `://attache.internal/v1/tasks -H 'Content-Type: application/json' -d '{"purpose":"mine","ttl":"1m"}'`
	}
	a := w.waiting()
	for _, scheme := range []string{"http", "https"} {
		if p := parseProblem(t, w.does(a, open(scheme))); p.Code != "denied" {
			t.Errorf("%s without a rule: %+v", scheme, p)
		}
	}
	w.write("tasks.yaml", `apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: tasks}
spec:
  rules:
  - {name: own-tasks, hosts: [attache.internal], action: allow, openTask: true}
`)
	eventually(t, "reload", func() bool { return len(w.events("policy.loaded")) == 2 })
	for _, scheme := range []string{"http", "https"} {
		var task struct{ ID, Header string }
		got := w.does(a, open(scheme))
		if err := json.Unmarshal([]byte(got), &task); err != nil || task.ID == "" || task.Header != "Attache-Task" {
			t.Fatalf("%s: %v %s", scheme, err, got)
		}
		if got := w.does(a, "curl -sS -m 10 https://"+apiHost+"/v1/"+scheme+" -H 'Attache-Task: "+task.ID+"'"); got != `{"path":"/v1/`+scheme+`"}` {
			t.Errorf("with its own task: %s", got)
		}
		if rec := w.one("path:/v1/" + scheme); rec.Task == nil || rec.Task.OpenedBy != "agent" || rec.Task.Purpose != "mine" {
			t.Errorf("record %+v", rec.Task)
		}
		if got := w.does(a, "curl -sS -m 10 -o /dev/null -w '%{http_code}' -X DELETE "+scheme+"://attache.internal/v1/tasks/"+task.ID); got != "204" {
			t.Errorf("close: %s", got)
		}
	}
}
