package task_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/secret"
)

// log collects events.
type log struct {
	mu     sync.Mutex // guards events
	events []map[string]string
}

func (l *log) add(name string, f map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f["event"] = name
	l.events = append(l.events, f)
}

func (l *log) last() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == 0 {
		return nil
	}
	return l.events[len(l.events)-1]
}

func store(t *testing.T, c task.StoreConfig) (*task.Store, *log) {
	t.Helper()
	l := &log{}
	c.OnEvent = l.add
	s, err := task.NewStore(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s, l
}

func open(t *testing.T, s *task.Store, r task.OpenRequest) *identity.Task {
	t.Helper()
	if r.Workload == nil {
		r.Workload = agent()
	}
	if r.Purpose == "" {
		r.Purpose = "triage"
	}
	if r.OpenedBy == "" {
		r.OpenedBy = task.ByLauncher
	}
	k, err := s.Open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestTaskIsNoBearerSecret: the id alone opens nothing.
func TestTaskIsNoBearerSecret(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	k := open(t, s, task.OpenRequest{})
	if len(k.ID) != 32 {
		t.Errorf("id %q; want 128 bits", k.ID)
	}
	if got, err := s.Lookup(k.ID, agent()); err != nil || got != k {
		t.Fatalf("%v %v", got, err)
	}
	for _, tt := range []struct {
		name string
		id   string
		edit func(*identity.Workload)
	}{
		{"another workload", k.ID, func(w *identity.Workload) { w.ID = spiffeid.RequireFromString(agentID + "x") }},
		{"another run", k.ID, func(w *identity.Workload) { w.RunID = strings.Repeat("cd", 16) }},
		{"no run", k.ID, func(w *identity.Workload) { w.RunID = "" }},
		{"nobody", k.ID, func(w *identity.Workload) { w.ID = spiffeid.ID{} }},
		{"another id", strings.Repeat("0", 32), func(*identity.Workload) {}},
		{"no id", "", func(*identity.Workload) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := agent()
			tt.edit(w)
			if got, err := s.Lookup(tt.id, w); got != nil || task.CodeOf(err) != task.CodeNotFound {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	if _, err := s.Lookup(k.ID, nil); err == nil {
		t.Error("nobody may use a task")
	}
}

func TestCurrent(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	if s.Current(agent()) != nil {
		t.Error("a task of nothing")
	}
	open(t, s, task.OpenRequest{OpenedBy: task.ByAgent})
	open(t, s, task.OpenRequest{OpenedBy: task.ByOrchestrator})
	if s.Current(agent()) != nil {
		t.Error("not the launcher's task")
	}
	a := open(t, s, task.OpenRequest{})
	b := open(t, s, task.OpenRequest{})
	if got := s.Current(agent()); got != b {
		t.Errorf("got %v", got)
	}
	if err := s.Close(b.ID, "done"); err != nil {
		t.Fatal(err)
	}
	if got := s.Current(agent()); got != a {
		t.Errorf("got %v", got)
	}
	w := agent()
	w.RunID = "other"
	if s.Current(w) != nil {
		t.Error("another run's task")
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := store(t, task.StoreConfig{MaxTTL: time.Hour})
		var closed []string
		s.OnClose(func(k *identity.Task, why string) { closed = append(closed, k.ID+" "+why) })
		long := open(t, s, task.OpenRequest{TTL: 100 * time.Hour})
		if d := time.Until(long.Expires); d != time.Hour {
			t.Errorf("MaxTTL is not kept: %v", d)
		}
		short := open(t, s, task.OpenRequest{TTL: time.Minute})
		time.Sleep(time.Minute)
		if _, err := s.Lookup(short.ID, agent()); err == nil {
			t.Error("found at its very end")
		}
		synctest.Wait()
		if len(closed) != 1 || closed[0] != short.ID+" expired" {
			t.Errorf("closed %v", closed)
		}
		if e := l.last(); e["event"] != task.EventClosed || e["reason"] != "expired" || e["task"] != short.ID {
			t.Errorf("event %v", e)
		}
		if err := s.Close(short.ID, "again"); task.CodeOf(err) != task.CodeNotFound {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(closed) != 2 || len(s.List()) != 0 {
			t.Errorf("closed %v, open %v", closed, s.List())
		}
	})
}

func TestHumanTask(t *testing.T) {
	p := identitytest.NewProvider(t)
	s, l := store(t, task.StoreConfig{Verifier: verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})})
	exp := time.Now().Add(5 * time.Minute).Truncate(time.Second)
	tok := p.Sign(t, "", grant(p, map[string]any{"act": map[string]any{"sub": agentID, "act": map[string]any{"sub": "planner"}}, "exp": exp.Unix()}))
	k := open(t, s, task.OpenRequest{HumanToken: secret.New(tok), TTL: 30 * time.Minute})
	if !k.Expires.Equal(exp) {
		t.Errorf("task ends %v, the human's grant %v", k.Expires, exp)
	}
	if k.Human == nil || k.Human.Subject != "alice" || k.SubjectToken.Reveal() != tok || k.SubjectTokenType == "" {
		t.Errorf("task %+v", k)
	}
	e := l.last()
	if len(k.Actors) != 2 || k.Actors[1].Subject != "planner" || e["actors"] != agentID+" planner" {
		t.Errorf("actors %v, in the record %q", k.Actors, e["actors"])
	}
	if e["subject"] != "alice" || e["human_token"] != secret.New(tok).Fingerprint() {
		t.Errorf("event %v", e)
	}
	held := k.SubjectToken // a copy that somebody kept
	if err := s.Close(k.ID, "done"); err != nil {
		t.Fatal(err)
	}
	if !held.IsZero() || held.Reveal() != "" || !k.SubjectToken.IsZero() {
		t.Error("the human's token outlives the task")
	}
	if e := l.last(); e["human_token"] != secret.New(tok).Fingerprint() {
		t.Errorf("close event lacks the hash: %v", e)
	}
	if _, err := s.Open(t.Context(), task.OpenRequest{Workload: agent(), Purpose: "x", OpenedBy: task.ByAgent, HumanToken: secret.New(tok)}); task.CodeOf(err) != task.CodeReplayed {
		t.Errorf("got %v", err)
	}
	if e := l.last(); e["event"] != task.EventRefused || e["code"] != string(task.CodeReplayed) || e["human_token"] == "" {
		t.Errorf("event %v", e)
	}
	// Skew lets the verifier take it; a task cannot outlive the grant.
	old := p.Sign(t, "", grant(p, map[string]any{"exp": time.Now().Unix() - 5}))
	if _, err := s.Open(t.Context(), task.OpenRequest{Workload: agent(), Purpose: "x", OpenedBy: task.ByLauncher, HumanToken: secret.New(old)}); task.CodeOf(err) != task.CodeExpired {
		t.Errorf("got %v", err)
	}
	for _, e := range l.events {
		if strings.Contains(fmt.Sprint(e), tok) {
			t.Errorf("token in event %v", e)
		}
	}
}

func TestOpenRefusals(t *testing.T) {
	s, l := store(t, task.StoreConfig{MaxTasks: 4})
	good := func() task.OpenRequest {
		return task.OpenRequest{Workload: agent(), Purpose: "p", OpenedBy: task.ByLauncher}
	}
	for _, tt := range []struct {
		name string
		edit func(*task.OpenRequest)
		want task.Code
	}{
		{"nobody", func(r *task.OpenRequest) { r.Workload = nil }, task.CodeInvalid},
		{"no run", func(r *task.OpenRequest) { r.Workload.RunID = "" }, task.CodeInvalid},
		{"another run", func(r *task.OpenRequest) { r.RunID = "x" }, task.CodeInvalid},
		{"unknown opener", func(r *task.OpenRequest) { r.OpenedBy = "root" }, task.CodeInvalid},
		{"no purpose", func(r *task.OpenRequest) { r.Purpose = " \n" }, task.CodeInvalid},
		{"negative ttl", func(r *task.OpenRequest) { r.TTL = -1 }, task.CodeInvalid},
		{"no issuers", func(r *task.OpenRequest) { r.HumanToken = secret.New("a.b.c") }, task.CodeUnknownIssuer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.edit(&r)
			if _, err := s.Open(t.Context(), r); task.CodeOf(err) != tt.want {
				t.Errorf("got %v; want %s", err, tt.want)
			}
			if e := l.last(); e["event"] != task.EventRefused || e["code"] != string(tt.want) {
				t.Errorf("event %v", e)
			}
		})
	}
	// Agents have half the room, so that they cannot lock out the launcher.
	byAgent := good()
	byAgent.OpenedBy = task.ByAgent
	open(t, s, byAgent)
	open(t, s, byAgent)
	if _, err := s.Open(t.Context(), byAgent); task.CodeOf(err) != task.CodeLimit {
		t.Errorf("got %v", err)
	}
	open(t, s, good())
	open(t, s, good())
	if _, err := s.Open(t.Context(), good()); task.CodeOf(err) != task.CodeLimit {
		t.Errorf("got %v", err)
	}
}

func TestPurposeIsClean(t *testing.T) {
	s, l := store(t, task.StoreConfig{})
	for _, tt := range []struct{ in, want string }{
		{"fix bug 7", "fix bug 7"},
		{"a\nb\x1b[31m", `a\nb\x1b[31m`},
		{"\u202eevil\u2028x", `\u202eevil\u2028x`},
		{"\xff", `\xff`},
		{strings.Repeat("é", 200), strings.Repeat("é", 128)},
		{strings.Repeat("x", 254) + "\n\n", strings.Repeat("x", 254) + `\n`},
	} {
		if got := open(t, s, task.OpenRequest{Purpose: tt.in}).Purpose; got != tt.want || l.last()["purpose"] != tt.want {
			t.Errorf("%q became %q; want %q", tt.in, got, tt.want)
		}
	}
}

func TestCloseRun(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	n := 0
	s.OnClose(func(_ *identity.Task, why string) {
		if why != task.ReasonRunEnded {
			t.Errorf("reason %q", why)
		}
		n++
	})
	other := agent()
	other.RunID = "r2"
	open(t, s, task.OpenRequest{})
	open(t, s, task.OpenRequest{OpenedBy: task.ByAgent})
	kept := open(t, s, task.OpenRequest{Workload: other})
	s.CloseRun(agent().RunID)
	if n != 2 || len(s.List()) != 1 || s.List()[0] != kept {
		t.Errorf("%d closed, %v left", n, s.List())
	}
	if _, err := s.Open(t.Context(), task.OpenRequest{Workload: agent(), Purpose: "x", OpenedBy: task.ByOrchestrator}); task.CodeOf(err) != task.CodeClosed {
		t.Errorf("a task for an ended run: %v", err)
	}
	s.OnClose(func(*identity.Task, string) {})
	if err := s.Close(kept.ID, task.ReasonRunEnded); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	if _, err := s.Open(t.Context(), task.OpenRequest{Workload: other, Purpose: "x", OpenedBy: task.ByLauncher}); task.CodeOf(err) != task.CodeClosed {
		t.Errorf("a task after shutdown: %v", err)
	}
}

// TestCloseOnce: whoever is first, hooks run once.
func TestCloseOnce(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	var mu sync.Mutex
	n := map[string]int{}
	s.OnClose(func(k *identity.Task, _ string) { mu.Lock(); n[k.ID]++; mu.Unlock() })
	var wg sync.WaitGroup
	for range 50 {
		k := open(t, s, task.OpenRequest{TTL: time.Millisecond * 2})
		wg.Go(func() { _ = s.Close(k.ID, "a") })
		wg.Go(func() { s.CloseRun("nobody's"); _ = s.Close(k.ID, "b") })
		wg.Go(func() { _, _ = s.Lookup(k.ID, agent()); s.Current(agent()) })
	}
	wg.Wait()
	// A task whose time was up first may still be on its way to the hook.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-time.After(time.Millisecond) {
		mu.Lock()
		done := len(n) == 50
		mu.Unlock()
		if done {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for id, c := range n {
		if c != 1 {
			t.Errorf("%s closed %d times", id, c)
		}
	}
	if len(n) != 50 {
		t.Errorf("%d tasks closed", len(n))
	}
}

// TestRunEndsDuringVerification: a slow issuer must not let a task slip in
// after the end of its run.
func TestRunEndsDuringVerification(t *testing.T) {
	p := identitytest.NewProvider(t)
	s, _ := store(t, task.StoreConfig{Verifier: verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})})
	tok := p.Sign(t, "", grant(p, nil))
	p.Hook(endRun(s))
	_, err := s.Open(context.WithoutCancel(t.Context()), task.OpenRequest{Workload: agent(), Purpose: "x", OpenedBy: task.ByLauncher, HumanToken: secret.New(tok)})
	if task.CodeOf(err) != task.CodeClosed || len(s.List()) != 0 {
		t.Errorf("got %v, open %v", err, s.List())
	}
}
