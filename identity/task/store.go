package task

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

// Who can open a task.
const (
	ByLauncher     = "launcher"     // attache run itself
	ByOrchestrator = "orchestrator" // over the Unix socket
	ByAgent        = "agent"        // through the proxy, where a rule allows it
)

// Events that a [Store] reports.
const (
	EventOpened  = "task.opened"
	EventClosed  = "task.closed"
	EventRefused = "task.refused"
)

// Reasons for which a store closes a task by itself.
const (
	ReasonExpired  = "expired"
	ReasonRunEnded = "run ended"
	ReasonShutdown = "shutdown"
)

// Defaults of [StoreConfig].
const (
	DefaultMaxTTL   = time.Hour
	DefaultMaxTasks = 1024
)

const rememberedRuns = 4096 // ended runs that no task may be opened for

// StoreConfig describes a [Store]. The zero value is usable; tasks for humans
// need a Verifier.
type StoreConfig struct {
	Verifier *Verifier
	// MaxTTL bounds every task. Default 1h.
	MaxTTL time.Duration
	// MaxTasks bounds open tasks; agents may have half of them. Default 1024.
	MaxTasks int
	// OnEvent receives one event for each task opened, closed or refused. It
	// must not block for long and must not call the store.
	OnEvent func(name string, fields map[string]string)
}

// OpenRequest asks for a task.
type OpenRequest struct {
	Workload *identity.Workload
	// RunID may repeat Workload.RunID; it must not differ.
	RunID string
	// Purpose is free text, required; it is escaped and cut at 256 bytes.
	Purpose string
	// OpenedBy is ByLauncher, ByOrchestrator or ByAgent.
	OpenedBy string
	// HumanToken is the OpenID token of the human; zero for none.
	HumanToken secret.Value
	// TTL is the wished lifetime; zero or more than MaxTTL means MaxTTL.
	TTL time.Duration
}

// Store keeps open tasks. It is safe for concurrent use.
type Store struct {
	cfg StoreConfig

	mu    sync.Mutex // guards everything below
	tasks map[[sha256.Size]byte]*entry
	hooks []func(*identity.Task, string)
	ended *lru.Cache[string, struct{}] // ids of runs that are over
	shut  bool
	order uint64
}

type entry struct {
	task  *identity.Task
	drop  func() // makes the human's token unreadable
	hash  string // fingerprint of the human's token
	timer *time.Timer
	order uint64
}

// NewStore returns an empty store. Call [Store.Shutdown] when done.
func NewStore(c StoreConfig) (*Store, error) {
	if c.MaxTTL < 0 || c.MaxTasks < 0 {
		return nil, errors.New("tasks: maxTTL and the number of tasks must not be negative")
	}
	if c.MaxTTL == 0 {
		c.MaxTTL = DefaultMaxTTL
	}
	if c.MaxTasks == 0 {
		c.MaxTasks = DefaultMaxTasks
	}
	if c.OnEvent == nil {
		c.OnEvent = func(string, map[string]string) {}
	}
	ended, err := lru.New[string, struct{}](rememberedRuns)
	if err != nil {
		return nil, err
	}
	return &Store{cfg: c, tasks: map[[sha256.Size]byte]*entry{}, ended: ended}, nil
}

// OnClose adds a hook that runs once for each task that closes, whyever. Hooks
// run in the goroutine that closes the task, in the order they were added.
func (s *Store) OnClose(f func(t *identity.Task, reason string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = append(s.hooks, f)
}

// Open opens a task. Every refusal is an [*Error] and reported as
// EventRefused.
func (s *Store) Open(ctx context.Context, r OpenRequest) (*identity.Task, error) {
	t, hash, err := s.open(ctx, r)
	if err != nil {
		s.cfg.OnEvent(EventRefused, refusedFields(r, err))
		return nil, err
	}
	s.cfg.OnEvent(EventOpened, fields(t, hash))
	return t, nil
}

func (s *Store) open(ctx context.Context, r OpenRequest) (*identity.Task, string, error) {
	if err := s.checkOpen(&r); err != nil {
		return nil, "", err
	}
	now := time.Now()
	t := &identity.Task{
		ID:         newID(),
		Purpose:    clean(r.Purpose, maxPurpose),
		OpenedBy:   r.OpenedBy,
		Opened:     now,
		Expires:    now.Add(r.TTL),
		WorkloadID: r.Workload.ID,
		RunID:      r.RunID,
	}
	e := &entry{task: t, drop: func() {}, hash: r.HumanToken.Fingerprint()}
	if !r.HumanToken.IsZero() {
		if s.cfg.Verifier == nil {
			return nil, "", refuse(CodeUnknownIssuer, "no issuer of human tokens is configured; add one to spec.humans")
		}
		v, err := s.cfg.Verifier.Verify(ctx, r.HumanToken, r.Workload)
		if err != nil {
			return nil, "", err
		}
		if v.Expires.Before(t.Expires) {
			t.Expires = v.Expires
		}
		t.Human, t.Actors, t.SubjectTokenType = &v.Human, v.Actors, v.TokenType
		t.SubjectToken, e.drop = secret.NewRevocable(r.HumanToken.Reveal())
	}
	// The verifier allows for clock skew, a task does not: it would outlive
	// the grant.
	if !live(t, time.Now()) {
		e.drop()
		return nil, "", refuse(CodeExpired, "the human's token expired at %s; sign in again", t.Expires.UTC().Format(time.RFC3339))
	}
	if err := s.insert(e); err != nil {
		e.drop()
		return nil, "", err
	}
	return t, e.hash, nil
}

// checkOpen refuses what cannot become a task before a token is spent on it.
func (s *Store) checkOpen(r *OpenRequest) error {
	w := r.Workload
	switch {
	case w == nil || w.ID.IsZero() || w.RunID == "":
		return refuse(CodeInvalid, "no attested workload to open a task for")
	case r.RunID != "" && !equal(r.RunID, w.RunID):
		return refuse(CodeInvalid, "the run is not a run of workload %s", w.ID)
	case r.OpenedBy != ByLauncher && r.OpenedBy != ByOrchestrator && r.OpenedBy != ByAgent:
		return refuse(CodeInvalid, "opened by %s; must be launcher, orchestrator or agent", quote(r.OpenedBy))
	case strings.TrimSpace(r.Purpose) == "":
		return refuse(CodeInvalid, "a task needs a purpose; say in a few words what it is for")
	case r.TTL < 0:
		return refuse(CodeInvalid, "ttl is %v; must not be negative", r.TTL)
	}
	r.RunID = w.RunID
	if r.TTL == 0 || r.TTL > s.cfg.MaxTTL {
		r.TTL = s.cfg.MaxTTL
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room(r.RunID, r.OpenedBy)
}

// room reports why no further task can be opened. The caller holds mu.
func (s *Store) room(run, by string) error {
	if s.shut || s.ended.Contains(run) {
		return refuse(CodeClosed, "the run has ended; no task can be opened for it")
	}
	if len(s.tasks) >= s.cfg.MaxTasks {
		return refuse(CodeLimit, "%d tasks are open; close some first", len(s.tasks))
	}
	if by != ByAgent {
		return nil
	}
	n := 0
	for _, e := range s.tasks {
		if e.task.OpenedBy == ByAgent {
			n++
		}
	}
	// An agent that opens tasks without end must not lock out its operators.
	if 2*(n+1) > s.cfg.MaxTasks {
		return refuse(CodeLimit, "agents have %d tasks open; close some first", n)
	}
	return nil
}

func (s *Store) insert(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The run may have ended while its token was verified.
	if err := s.room(e.task.RunID, e.task.OpenedBy); err != nil {
		return err
	}
	s.order++
	e.order = s.order
	id := e.task.ID
	s.tasks[sha256.Sum256([]byte(id))] = e
	e.timer = time.AfterFunc(time.Until(e.task.Expires), func() { _ = s.Close(id, ReasonExpired) })
	return nil
}

// Lookup returns the open task with this id if it was opened for w and w's
// run. Unknown, ended and other workloads' tasks are refused alike, with
// CodeNotFound: the answer tells nothing about others' tasks.
func (s *Store) Lookup(id string, w *identity.Workload) (*identity.Task, error) {
	none := refuse(CodeNotFound, "no such task is open for this workload and run")
	if w == nil || w.ID.IsZero() || w.RunID == "" {
		return nil, none
	}
	s.mu.Lock()
	e := s.tasks[sha256.Sum256([]byte(id))]
	s.mu.Unlock()
	if e == nil {
		return nil, none
	}
	ok := match(e.task.ID, id) & match(e.task.WorkloadID.String(), w.ID.String()) & match(e.task.RunID, w.RunID)
	if ok != 1 || !live(e.task, time.Now()) {
		return nil, none
	}
	return e.task, nil
}

// Current returns the task of w's run that the launcher opened last, nil if
// none is open.
func (s *Store) Current(w *identity.Workload) *identity.Task {
	if w == nil || w.ID.IsZero() || w.RunID == "" {
		return nil
	}
	now := time.Now()
	var best *entry
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.tasks {
		t := e.task
		if t.OpenedBy == ByLauncher && t.WorkloadID == w.ID && equal(t.RunID, w.RunID) && live(t, now) &&
			(best == nil || e.order > best.order) {
			best = e
		}
	}
	if best == nil {
		return nil
	}
	return best.task
}

// List returns the open tasks, oldest first.
func (s *Store) List() []*identity.Task {
	s.mu.Lock()
	es := make([]*entry, 0, len(s.tasks))
	for _, e := range s.tasks {
		es = append(es, e)
	}
	s.mu.Unlock()
	slices.SortFunc(es, func(a, b *entry) int { return int(a.order) - int(b.order) }) //nolint:gosec // a count
	out := make([]*identity.Task, 0, len(es))
	for _, e := range es {
		out = append(out, e.task)
	}
	return out
}

// Close ends a task: its human's token becomes unreadable, then the hooks
// run. It is for trusted callers; an agent's request goes through
// [Store.Lookup] first. The error has CodeNotFound.
func (s *Store) Close(id, reason string) error {
	key := sha256.Sum256([]byte(id))
	s.mu.Lock()
	e := s.tasks[key]
	delete(s.tasks, key)
	s.mu.Unlock()
	if e == nil {
		return refuse(CodeNotFound, "no such task is open")
	}
	s.finish(e, reason)
	return nil
}

// CloseRun ends every task of a run, and lets none be opened for it again.
func (s *Store) CloseRun(runID string) {
	s.mu.Lock()
	s.ended.Add(runID, struct{}{})
	s.mu.Unlock()
	s.closeWhere(ReasonRunEnded, func(t *identity.Task) bool { return t.RunID == runID })
}

// Shutdown ends every task; the store opens no more.
func (s *Store) Shutdown() {
	s.mu.Lock()
	s.shut = true
	s.mu.Unlock()
	s.closeWhere(ReasonShutdown, func(*identity.Task) bool { return true })
}

func (s *Store) closeWhere(reason string, which func(*identity.Task) bool) {
	var out []*entry
	s.mu.Lock()
	for k, e := range s.tasks {
		if which(e.task) {
			out = append(out, e)
			delete(s.tasks, k)
		}
	}
	s.mu.Unlock()
	for _, e := range out {
		s.finish(e, reason)
	}
}

// finish runs once for each entry: whoever took it out of the map calls it.
func (s *Store) finish(e *entry, reason string) {
	e.timer.Stop()
	e.drop()
	s.mu.Lock()
	hooks := slices.Clone(s.hooks)
	s.mu.Unlock()
	for _, f := range hooks {
		f(e.task, reason)
	}
	out := fields(e.task, e.hash)
	out["reason"] = clean(reason, maxPurpose)
	s.cfg.OnEvent(EventClosed, out)
}

// live reports whether t has not ended by either clock: the wall clock stands
// still for nobody's sleep, the monotonic one for nobody's correction.
func live(t *identity.Task, now time.Time) bool {
	return now.Before(t.Expires) && now.Round(0).Before(t.Expires.Round(0))
}

func match(a, b string) int { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) }

func equal(a, b string) bool { return match(a, b) == 1 }

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b[:])
}

// fields describes a task for the audit: never its token.
func fields(t *identity.Task, hash string) map[string]string {
	out := map[string]string{
		"task":      t.ID,
		"purpose":   t.Purpose,
		"opened_by": t.OpenedBy,
		"workload":  t.WorkloadID.String(),
		"run":       t.RunID,
		"opened":    t.Opened.UTC().Format(time.RFC3339Nano),
		"expires":   t.Expires.UTC().Format(time.RFC3339Nano),
	}
	if t.Human != nil {
		out["subject"], out["subject_issuer"] = clean(t.Human.Subject, maxName), t.Human.Issuer
		out["human_token"] = hash
	}
	for _, a := range t.Actors {
		out["actors"] = strings.TrimSpace(out["actors"] + " " + clean(a.Subject, maxName))
	}
	return out
}

func refusedFields(r OpenRequest, err error) map[string]string {
	out := map[string]string{
		"purpose":   clean(r.Purpose, maxPurpose),
		"opened_by": clean(r.OpenedBy, 32),
		"code":      string(CodeOf(err)),
		"reason":    clean(err.Error(), 1024),
	}
	if r.Workload != nil {
		out["workload"], out["run"] = r.Workload.ID.String(), r.Workload.RunID
	}
	if !r.HumanToken.IsZero() {
		out["human_token"] = r.HumanToken.Fingerprint()
	}
	return out
}
