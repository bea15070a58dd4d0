// Package trail records what the control plane does in the same records as
// what agents do: identities, mints, admissions, changes of policies, keys and
// revocations. A replica has one spool, which is shipped like a sidecar's.
package trail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/expirable"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// Events that only the control plane has, beside those of package audit.
const (
	// EventBrokerDenied is a credential that the broker did not give.
	EventBrokerDenied = "broker.denied"
	// EventRelay begins what the relay did: relay.sent, relay.ended and
	// relay.denied.
	EventRelay = "relay."
	// EventNamespaceChanged is a change of a namespace's labels and annotations
	// of ours: whether its pods are injected, and how.
	EventNamespaceChanged = "namespace.changed"
)

// Options of [Open]. Dir and Replica are required.
type Options struct {
	Dir      string // on a disk of the pod's own
	MaxBytes int64  // of the spool; 0 is audit.DefaultMaxBytes
	OnFull   string // audit.OnFullRefuse (default) or OnFullOverwrite
	// Replica is the name of this pod.
	Replica string
	// Redact says what is taken out of the records, documents included.
	Redact v1alpha1.AuditRedact
	// Signer signs the end of the epoch; nil: nobody.
	Signer   func(text []byte) (audit.Signature, error)
	Version  string
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// repeatAfter is how often one pod's refusal for one reason is recorded, and
// remembered how many are in memory.
const (
	repeatAfter = time.Minute
	remembered  = 1 << 14
)

// Trail writes records. The nil Trail writes none: of a control plane without
// audit. It is safe for concurrent use.
type Trail struct {
	spool    *audit.Spool
	log      *slog.Logger
	asking   sync.Mutex // one asks Trail.told whether it is the first
	told     *expirable.LRU[string, *refusals]
	mu       sync.Mutex  // guards over
	over     []*refusals // whose minute is over, and which were more than one
	writing  sync.Mutex  // held while those are recorded
	records  *prometheus.CounterVec
	failures prometheus.Counter
	own      prometheus.Counter
}

// Open opens the spool of this replica.
func Open(o Options) (*Trail, error) {
	if o.Dir == "" || o.Replica == "" {
		return nil, errors.New("trail: Dir and Replica are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Trail{
		log: o.Log,
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attache_control_records_total", Help: "Records of the control plane's own doing, by event.",
		}, []string{"event"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "attache_control_records_failed_total", Help: "Records that could not be written; what they were of was refused, where it could be.",
		}),
		own: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "attache_policy_changed_by_beneficiary_total", Help: "Changes of policies and providers by a service account that gains by them.",
		}),
	}
	t.told = expirable.NewLRU(remembered, t.ended, repeatAfter)
	var err error
	if t.spool, err = audit.Open(spoolOptions(o)); err != nil {
		return nil, fmt.Errorf("records of the control plane: %w", err)
	}
	if o.Registry != nil {
		o.Registry.MustRegister(t.records, t.failures, t.own)
	}
	return t, nil
}

// Spool is where the records are, to be shipped; nil for the nil Trail.
func (t *Trail) Spool() *audit.Spool {
	if t == nil {
		return nil
	}
	return t.spool
}

// Close ends the epoch.
func (t *Trail) Close() error {
	if t == nil {
		return nil
	}
	t.told.Purge()
	t.more() // what was only counted
	return t.spool.Close()
}

// Write records something. When it returns without error the record is in the
// kernel.
func (t *Trail) Write(ctx context.Context, r *audit.Record) error {
	if t == nil {
		return nil
	}
	name := "request"
	if r.Event != nil {
		name = r.Event.Name
	}
	if err := t.spool.Write(r); err != nil {
		t.failures.Inc()
		t.log.ErrorContext(ctx, "not recorded", "event", name, "cause", err)
		return fmt.Errorf("record %s: %w", name, err)
	}
	t.records.WithLabelValues(name).Inc()
	return nil
}

// event makes a record of what is not a request. Empty fields are left out.
func event(name string, fields map[string]string) *audit.Record {
	for k, v := range fields {
		if v == "" {
			delete(fields, k)
		}
	}
	return &audit.Record{Event: &audit.Event{Name: name, Fields: fields}}
}

// refusals are those like one that was recorded.
type refusals struct {
	first *audit.Record
	mu    sync.Mutex // guards all below
	count int64      // of those after it
	over  bool       // their minute is
}

// add counts one more, unless the minute is over.
func (n *refusals) add() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.over {
		n.count++
	}
	return !n.over
}

// end returns how many there were: there will be no more.
func (n *refusals) end() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = true
	return n.count
}

// again reports whether the like of r was recorded within the last minute: a
// peer that is refused goes on asking, and must not fill the spool. It is
// counted then. What could not be recorded is to be forgotten.
func (t *Trail) again(key string, r *audit.Record) bool {
	t.asking.Lock()
	defer t.asking.Unlock()
	if n, ok := t.told.Get(key); ok {
		id := r.Event.Fields["request"]
		if id != "" && id == n.first.Event.Fields["request"] { // the API server sends an event again
			return true
		}
		if n.add() {
			return true
		}
	}
	t.told.Remove(key) // Add would put it in the place of one whose minute is over, and nobody be told
	t.told.Add(key, &refusals{first: r})
	return false
}

// ended is told of what leaves t.told, under its lock: nothing is written here.
func (t *Trail) ended(_ string, n *refusals) {
	if n.end() == 0 {
		return
	}
	t.mu.Lock()
	t.over = append(t.over, n)
	t.mu.Unlock()
	go t.more()
}

// more records at the end of the minute how many were only counted: one record,
// however many they were. When it returns they are recorded, by whomever.
func (t *Trail) more() {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	list := t.over
	t.over = nil
	t.mu.Unlock()
	for _, n := range list {
		f := n.first
		fields := maps.Clone(f.Event.Fields)
		fields["unrecorded"] = strconv.FormatInt(n.end(), 10)
		r := event(f.Event.Name, fields)
		r.Workload, r.Owner, r.Credential = f.Workload, f.Owner, f.Credential
		_ = t.Write(context.Background(), r) // logged and counted there
	}
}

// once writes r unless the like of it was recorded within the last minute.
func (t *Trail) once(ctx context.Context, r *audit.Record, like ...string) error {
	key := strings.Join(like, "\x00")
	if t.again(key, r) {
		return nil
	}
	err := t.Write(ctx, r)
	if err != nil {
		t.told.Remove(key) // who asks again must not be told that it is recorded
	}
	return err
}
