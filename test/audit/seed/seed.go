// Package seed makes audit records as a fleet of agents would write them: the
// same ones for the same options. Tests and measurements of the record store
// read them.
package seed

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// Options of [New]. Zero fields have defaults.
type Options struct {
	Seed    uint64
	Records int       // requests and events
	Agents  int       // default 400; each is a producer with one epoch
	Start   time.Time // of the first record
	Span    time.Duration
	// BatchLines is how many lines of one producer come together at most; default
	// 512. MaxAge is how old the first of them may be: a fleet that is seeded
	// faster than life ships what it would ship of an hour together; default a
	// 720th of Span.
	BatchLines int
	MaxAge     time.Duration
}

// Batch is successive lines of one producer.
type Batch struct {
	Producer store.Producer
	Lines    []audit.Line
}

// Fleet writes records.
type Fleet struct {
	o      Options
	rnd    *rand.Rand
	agents []*agent
	weight []float64 // cumulative, by agent
	now    time.Time
	step   time.Duration
	swept  time.Time
	made   int
	ready  []Batch
}

// route is something that an agent does.
type route struct {
	host, method, template, rule, provider, protocol string
	aws                                              *audit.AWSUse
	bucket                                           string
	denied                                           bool
	code                                             string
}

type agent struct {
	producer store.Producer
	workload audit.Workload
	process  audit.Process
	owner    string
	policy   string
	version  string
	routes   []route
	human    *audit.Human
	task     *audit.Task
	taskLeft int
	handles  map[string]string // by provider
	uses     map[string]int

	epoch   string
	seq     uint64
	head    chain.Hash
	lines   []audit.Line
	since   time.Time // of the first line
	pending []pending
}

type pending struct {
	rec  audit.Record
	left int // records of the agent until its end is written
	seq  uint64
}

// New returns a fleet that has not written anything.
func New(o Options) *Fleet {
	if o.Agents == 0 {
		o.Agents = 400
	}
	if o.BatchLines == 0 {
		o.BatchLines = 512
	}
	if o.Start.IsZero() {
		o.Start = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	}
	if o.Span == 0 {
		o.Span = 30 * 24 * time.Hour
	}
	if o.MaxAge == 0 {
		o.MaxAge = o.Span / 720
	}
	f := &Fleet{o: o, rnd: rand.New(rand.NewPCG(o.Seed, 1)), now: o.Start} //nolint:gosec // repeatable on purpose
	f.step = o.Span / time.Duration(max(o.Records, 1))
	total := 0.0
	for i := range o.Agents {
		f.agents = append(f.agents, f.newAgent(i))
		total += 1 / float64(i+10) // some are much busier than others
		f.weight = append(f.weight, total)
	}
	return f
}

// Owners, people and places that a fleet has; tests ask for them.
const (
	Owners    = 60
	Humans    = 300
	Hosts     = 150
	Buckets   = 40
	Providers = 80
)

// Owner, Person, Host and Bucket return the n-th name.
func Owner(n int) string {
	if n == 7 {
		return "ana"
	}
	return fmt.Sprintf("team-%02d@example.com", n)
}

// Person is the email address of the n-th person.
func Person(n int) string { return fmt.Sprintf("person%03d@example.com", n) }

// Host is the n-th destination.
func Host(n int) string {
	words := []string{"billing", "search", "mail", "tickets", "weather", "ledger", "payments", "maps", "models", "orders"}
	return fmt.Sprintf("%s%02d.api.example.com", words[n%len(words)], n/len(words))
}

// Bucket is the n-th bucket.
func Bucket(n int) string {
	if n == 0 {
		return "payments"
	}
	return fmt.Sprintf("data-%02d", n)
}

func (f *Fleet) id(prefix string) string { return prefix + f.hex(16) }

func (f *Fleet) hex(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(f.rnd.Uint32())
	}
	return hex.EncodeToString(b)
}

func (f *Fleet) newAgent(n int) *agent {
	ns := fmt.Sprintf("ns-%02d", n%25)
	name := fmt.Sprintf("agent-%03d", n)
	if n == 3 {
		name = "invoices"
	}
	pod := fmt.Sprintf("%s-%s", name, f.hex(4))
	a := &agent{
		producer: store.Producer{ID: f.hex(16), Kind: "sidecar", Namespace: ns, Pod: pod, Node: fmt.Sprintf("node-%02d", n%20)},
		workload: audit.Workload{ID: "spiffe://cluster.example/ns/" + ns + "/sa/" + name, Namespace: ns, ServiceAccount: name,
			Labels: map[string]string{"app": name, "tier": []string{"batch", "online"}[n%2]}, Node: fmt.Sprintf("node-%02d", n%20),
			PostureDigest: f.hex(32), RunID: f.hex(16)},
		process: audit.Process{PID: 7 + n%90, UID: 1000, Exe: []string{"/usr/bin/python3.12", "/usr/local/bin/node", "/app/agent"}[n%3], Digest: "sha256:" + f.hex(32)},
		owner:   Owner(n % Owners), policy: ns + "/" + name, version: "sha256:" + f.hex(32),
		handles: map[string]string{}, uses: map[string]int{}, epoch: f.hex(16),
	}
	a.head = chain.First(a.epoch)
	for range 3 + f.rnd.IntN(5) {
		a.routes = append(a.routes, f.newRoute(n))
	}
	return a
}

func (f *Fleet) newRoute(n int) route {
	r := route{protocol: "http", method: []string{"GET", "GET", "GET", "POST", "PUT", "DELETE"}[f.rnd.IntN(6)]}
	r.rule = []string{"read", "write", "sync", "report"}[f.rnd.IntN(4)]
	if n%5 == 3 && f.rnd.IntN(2) == 0 || n == 7 {
		b := f.rnd.IntN(Buckets)
		if n == 3 || n == 7 {
			b = 0
		}
		r.bucket = Bucket(b)
		op := []string{"GetObject", "GetObject", "PutObject", "ListObjectsV2", "DeleteObject"}[f.rnd.IntN(5)]
		r.host, r.provider, r.template = r.bucket+".s3.eu-west-1.amazonaws.com", "aws-"+r.bucket, ""
		r.aws = &audit.AWSUse{Service: "s3", Operation: op, Region: "eu-west-1", Account: "111122223333", Actions: []string{"s3:" + op}, Scope: "request"}
	} else {
		h := int(float64(Hosts) * f.rnd.Float64() * f.rnd.Float64())
		what := []string{"invoices", "customers", "orders", "tickets", "messages", "documents"}[f.rnd.IntN(6)]
		r.host, r.provider = Host(h), fmt.Sprintf("provider-%02d", h%Providers)
		r.template = "/v1/" + what + "/{id}"
	}
	if f.rnd.IntN(12) == 0 {
		r.denied, r.code = true, []string{"policy_denied", "policy_denied", "no_policy", "task_required"}[f.rnd.IntN(4)]
	}
	return r
}

// Next returns the next lines of some producer; nil when all records are
// written.
func (f *Fleet) Next() *Batch {
	for len(f.ready) == 0 {
		if f.made == f.o.Records {
			f.close()
			if len(f.ready) == 0 {
				return nil
			}
			break
		}
		f.record()
	}
	b := f.ready[0]
	f.ready = f.ready[1:]
	return &b
}

// close ends what is open and gives what is left.
func (f *Fleet) close() {
	for _, a := range f.agents {
		for len(a.pending) > 0 {
			f.end(a, &a.pending[0])
			a.pending = a.pending[1:]
		}
		f.flush(a)
	}
}

func (f *Fleet) flush(a *agent) {
	if len(a.lines) > 0 {
		f.ready = append(f.ready, Batch{a.producer, a.lines})
		a.lines = nil
	}
}

// write adds a line.
func (f *Fleet) write(a *agent, r *audit.Record) {
	a.seq++
	r.Schema, r.Epoch, r.Sequence = audit.SchemaVersion, a.epoch, a.seq
	text := r.AppendJSON(nil)
	a.head = chain.Next(a.head, text)
	if len(a.lines) == 0 {
		a.since = f.now
	}
	a.lines = append(a.lines, audit.Line{Epoch: a.epoch, Sequence: a.seq, JSON: text, Chain: a.head, Chained: true})
	if len(a.lines) == f.o.BatchLines {
		f.flush(a)
	}
}

// record writes one request or event.
func (f *Fleet) record() {
	f.made++
	f.now = f.now.Add(f.step/2 + time.Duration(f.rnd.Int64N(int64(f.step)+1)))
	if f.now.Sub(f.swept) >= f.o.MaxAge/4 {
		f.swept = f.now
		for _, a := range f.agents {
			if len(a.lines) > 0 && f.now.Sub(a.since) >= f.o.MaxAge {
				f.flush(a)
			}
		}
	}
	x := f.rnd.Float64() * f.weight[len(f.weight)-1]
	n := 0
	for f.weight[n] < x {
		n++
	}
	a := f.agents[n]
	for i := 0; i < len(a.pending); {
		if a.pending[i].left--; a.pending[i].left < 0 {
			f.end(a, &a.pending[i])
			a.pending = append(a.pending[:i], a.pending[i+1:]...)
			continue
		}
		i++
	}
	if a.seq == 0 {
		f.event(a, audit.TypeEpochOpen, "", map[string]string{"producer": a.producer.ID, "producer_kind": "sidecar"})
		return
	}
	if a.taskLeft--; a.taskLeft < 0 {
		h := f.rnd.IntN(Humans)
		a.taskLeft = 10 + f.rnd.IntN(60)
		a.task = &audit.Task{ID: f.hex(8), Purpose: fmt.Sprintf("work item %d", f.rnd.IntN(1e6)), OpenedBy: "launcher"}
		a.human = &audit.Human{Subject: fmt.Sprint(248289000000 + h), Issuer: "https://login.example.com", Email: Person(h)}
		clear(a.handles)
		f.event(a, audit.TypeEvent, audit.EventTaskOpened, map[string]string{"task": a.task.ID, "purpose": a.task.Purpose})
		return
	}
	r := &a.routes[f.rnd.IntN(len(a.routes))]
	if a.handles[r.provider] == "" || a.uses[r.provider] > 20 {
		if !r.denied && a.uses[r.provider] != -1 {
			a.handles[r.provider] = f.id("cred_")
			a.uses[r.provider] = 0
			f.event(a, audit.TypeEvent, audit.EventCredentialMinted, map[string]string{"handle": a.handles[r.provider], "provider": r.provider, "task": a.task.ID})
			return
		}
	}
	f.request(a, r)
}

func (f *Fleet) event(a *agent, kind, name string, fields map[string]string) {
	f.write(a, &audit.Record{Type: kind, ID: f.id("rec_"), Time: f.now, Workload: &a.workload, Owner: a.owner, OwnerSource: "namespace",
		Human: a.human, Task: a.task, Event: &audit.Event{Name: name, Fields: fields}})
}

func (f *Fleet) request(a *agent, t *route) {
	q := &audit.Request{Door: "connect", Scheme: "https", Host: t.host, Port: 443, Method: t.method, Protocol: t.protocol, HTTPVersion: "1.1",
		UserAgent: "python-requests/2.32.3", TraceID: f.hex(16), PathTemplate: t.template}
	switch {
	case t.aws != nil:
		q.Path = fmt.Sprintf("/%s/2026/%02d/%02d/%06d.json", []string{"reports", "exports", "refunds"}[f.rnd.IntN(3)], 1+f.rnd.IntN(12), 1+f.rnd.IntN(28), f.rnd.IntN(1e6))
	default:
		q.Path = strings.Replace(t.template, "{id}", fmt.Sprint(10_000+f.rnd.IntN(200_000)), 1)
		if f.rnd.IntN(500) == 0 {
			q.Path += "/refund-" + fmt.Sprint(f.rnd.IntN(1e6))
		}
	}
	rec := audit.Record{Type: audit.TypeBegin, ID: f.id("rec_"), Time: f.now, Workload: &a.workload, Process: &a.process, Owner: a.owner, OwnerSource: "namespace",
		Human: a.human, Task: a.task, Request: q, Steps: &audit.Steps{Attested: 180, Decided: 200 + f.rnd.Int64N(100), Begun: 320 + f.rnd.Int64N(50)}}
	if t.denied {
		rec.Type = audit.TypeEnd
		rec.Steps.Begun, rec.Steps.Ended = 0, 400+f.rnd.Int64N(50)
		rec.Decision = &audit.Decision{Verdict: "deny", Policy: a.policy, Rule: t.rule, Version: a.version, Reason: "no rule allows " + t.method, Code: t.code}
		rec.Result = &audit.Result{Outcome: audit.OutcomeDenied, Status: 403}
		f.write(a, &rec)
		return
	}
	q.Address = fmt.Sprintf("192.0.2.%d:443", len(t.host)%200)
	rec.Decision = &audit.Decision{Verdict: "inject", Policy: a.policy, Rule: t.rule, Version: a.version, Reason: "rule " + t.rule + " allows " + t.method}
	rec.Credential = &audit.Use{Handle: a.handles[t.provider], Provider: t.provider, Kind: "bearer", ScopeGranted: []string{t.rule}, ScopeSource: "static", TTLSeconds: 300, Cached: true}
	if t.aws != nil {
		u := *t.aws
		u.Resources = []string{"arn:aws:s3:::" + t.bucket + q.Path}
		rec.Credential.AWS, rec.Credential.Kind = &u, "aws-session"
	}
	a.uses[t.provider]++
	begin := rec
	f.write(a, &begin)
	a.pending = append(a.pending, pending{rec, f.rnd.IntN(3), a.seq})
}

// end writes the end of a request, as the proxy does: what has changed since its
// begin.
func (f *Fleet) end(a *agent, p *pending) {
	status := 200
	out, kind := audit.OutcomeOK, ""
	switch n := f.rnd.IntN(1000); {
	case n < 20:
		status = 404
	case n < 25:
		status = 503
	case n < 28:
		status, out, kind = 0, audit.OutcomeError, "upstream_timeout"
	case n < 29:
		status, out = 0, audit.OutcomeCanceled
	}
	took := 2000 + f.rnd.Int64N(90_000)
	e := audit.Record{Type: audit.TypeEnd, ID: p.rec.ID, Time: p.rec.Time.Add(time.Duration(took) * time.Microsecond), BeginEpoch: a.epoch, BeginSequence: p.seq,
		Steps:  &audit.Steps{Minted: 350, Injected: 360, FirstByte: took - 1000, Ended: took},
		Result: &audit.Result{Outcome: out, Status: status, ErrorKind: kind, BytesUp: f.rnd.Int64N(2000), BytesDown: f.rnd.Int64N(40_000)}}
	f.write(a, &e)
}
