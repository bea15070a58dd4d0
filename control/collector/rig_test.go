package collector_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/xds/xdstest"
)

const patience = time.Minute

// memory is a store that can be told to fail.
type memory struct {
	mu    sync.Mutex
	heads map[string]store.Head
	lines map[string]map[uint64]audit.Line
	state map[string][]byte
	fail  error
}

func newMemory() *memory {
	return &memory{heads: map[string]store.Head{}, lines: map[string]map[uint64]audit.Line{}}
}

func (m *memory) Head(_ context.Context, epoch string) (store.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return store.Head{}, m.fail
	}
	h, ok := m.heads[epoch]
	if !ok {
		return h, store.ErrNotFound
	}
	return h, nil
}

func (m *memory) Append(_ context.Context, p store.Producer, lines []audit.Line) (ack store.Ack, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return ack, m.fail
	}
	h := m.heads[lines[0].Epoch]
	for _, l := range lines {
		if h.Last > 0 && h.Producer.ID != p.ID {
			return store.Ack{}, store.ErrForged
		}
		of := m.lines[l.Epoch]
		if of == nil {
			of = map[uint64]audit.Line{}
			m.lines[l.Epoch] = of
		}
		if old, ok := of[l.Sequence]; ok {
			if old.Chain != l.Chain || string(old.JSON) != string(l.JSON) {
				return store.Ack{}, fmt.Errorf("%w: sequence %d", store.ErrForged, l.Sequence)
			}
			ack.Duplicates++
			continue
		}
		if l.Sequence > h.Last+1 {
			ack.Gaps = append(ack.Gaps, store.Gap{Epoch: l.Epoch, From: h.Last + 1, To: l.Sequence - 1})
		}
		of[l.Sequence] = l
		ack.Stored++
		if l.Sequence > h.Last {
			h.Last, h.Hash, h.Chained, h.Epoch, h.Producer = l.Sequence, l.Chain, l.Chained, l.Epoch, p
			if r, err := l.Record(); err == nil {
				h.Closed = h.Closed || r.Type == audit.TypeEpochEnd
				if h.Opened.IsZero() {
					h.Opened = r.Time
				}
			}
		}
	}
	m.heads[lines[0].Epoch] = h
	return ack, nil
}

func (m *memory) broken(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) count(epoch string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lines[epoch])
}

// rig is a collector with an authority around it.
type rig struct {
	*collector.Collector
	t        *testing.T
	ca       *xdstest.Authority
	store    *memory
	registry *prometheus.Registry
	grpcAt   string
	httpAt   string
	kill     func() // cuts all calls

	mu     sync.Mutex
	events []*audit.Record
}

func start(t *testing.T, change ...func(*collector.Config)) *rig {
	t.Helper()
	return startBy(t, xdstest.NewAuthority(t), change...)
}

// startBy starts one collector of several.
func startBy(t *testing.T, ca *xdstest.Authority, change ...func(*collector.Config)) *rig {
	t.Helper()
	r := &rig{t: t, ca: ca, store: newMemory(), registry: prometheus.NewRegistry()}
	c := collector.Config{
		Store: r.store, Namespace: "attache-system", Registry: r.registry,
		Authorities: func() (*x509.CertPool, error) { return r.ca.Pool(), nil },
		Record: func(_ context.Context, e *audit.Record) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
			return nil
		},
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	if r.Collector, err = collector.New(c); err != nil {
		t.Fatal(err)
	}
	serving := r.ca.Serving()
	config := collector.ServerTLS(peer.ServerTLS(
		func() (*tls.Certificate, error) { return &serving, nil },
		func() (*x509.CertPool, error) { return r.ca.Pool(), nil },
	))
	listen := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	g := grpc.NewServer(append(collector.ServerOptions(), grpc.Creds(credentials.NewTLS(config)))...)
	r.Register(g)
	gl, hl := listen(), listen()
	r.grpcAt, r.httpAt = gl.Addr().String(), hl.Addr().String()
	h := &http.Server{Handler: r.Handler(), TLSConfig: config, ReadHeaderTimeout: patience}
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = g.Serve(gl) })
	tasks.Go(func() { _ = h.ServeTLS(hl, "", "") })
	r.kill = func() { g.Stop(); _ = h.Close(); tasks.Wait() }
	t.Cleanup(r.kill)
	return r
}

// told returns the events of a name so far.
func (r *rig) told(name string) (out []map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Event.Name == name {
			out = append(out, e.Event.Fields)
		}
	}
	return out
}

func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum, found = sum+m.GetCounter().GetValue(), true
		}
	}
	if !found {
		r.t.Fatalf("no metric %s", name)
	}
	return sum
}

// pod is a client with the SVID of a pod.
func (r *rig) pod(ns, sa, uid string) collogs.LogsServiceClient {
	return r.client(r.ca.SVID(ns, sa, uid, time.Now().Add(time.Hour)))
}

func (r *rig) client(svid ...tls.Certificate) collogs.LogsServiceClient {
	r.t.Helper()
	conn, err := grpc.NewClient(r.grpcAt, grpc.WithTransportCredentials(credentials.NewTLS(r.ca.Client(svid...))))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return collogs.NewLogsServiceClient(conn)
}

func (r *rig) send(c collogs.LogsServiceClient, lines ...audit.Line) (rejected int64, why string, err error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	a, err := c.Export(ctx, export(lines...))
	return a.GetPartialSuccess().GetRejectedLogRecords(), a.GetPartialSuccess().GetErrorMessage(), err
}

// must sends lines that are taken, all of them.
func (r *rig) must(c collogs.LogsServiceClient, lines ...audit.Line) {
	r.t.Helper()
	if n, why, err := r.send(c, lines...); err != nil || n != 0 {
		r.t.Fatalf("%d refused: %s, %v", n, why, err)
	}
}

// epoch is a producer's spool in memory.
type epoch struct {
	id   string
	seq  uint64
	head chain.Hash
}

func begin(id string) *epoch { return &epoch{id: id, head: chain.First(id)} }

func (e *epoch) line(members map[string]any) audit.Line {
	e.seq++
	m := map[string]any{"schema": audit.SchemaVersion, "type": "event", "id": "rec_x", "epoch": e.id, "sequence": e.seq, "time": time.Now().UTC().Format(time.RFC3339Nano)}
	for k, v := range members {
		m[k] = v
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	e.head = chain.Next(e.head, text)
	return audit.Line{Epoch: e.id, Sequence: e.seq, JSON: text, Chain: e.head, Chained: true}
}

func (e *epoch) lines(n int) (out []audit.Line) {
	for range n {
		out = append(out, e.line(nil))
	}
	return out
}

func export(lines ...audit.Line) *collogs.ExportLogsServiceRequest {
	s := &logs.ScopeLogs{}
	for _, l := range lines {
		s.LogRecords = append(s.LogRecords, logRecord(l))
	}
	return &collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{ScopeLogs: []*logs.ScopeLogs{s}}}}
}

func logRecord(l audit.Line) *logs.LogRecord {
	text := func(k, v string) *common.KeyValue {
		return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}}
	}
	r := &logs.LogRecord{Body: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(l.JSON)}}}
	r.Attributes = []*common.KeyValue{
		text("attache.epoch", l.Epoch),
		{Key: "attache.sequence", Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: int64(l.Sequence)}}}, //nolint:gosec // small
	}
	if l.Chained {
		r.Attributes = append(r.Attributes, text("attache.chain", l.Chain.String()))
	}
	return r
}

var errDown = errors.New("the disk is full")
