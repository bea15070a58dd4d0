package collector_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/collector"
)

const uid = "6f1d0c1e-0000-4000-8000-000000000001"

func TestLinesAreStoredAndRepetitionsAcknowledged(t *testing.T) {
	r := start(t)
	c := r.pod("team", "agent", uid)
	e := begin("e1")
	first, second := e.lines(3), e.lines(4)
	r.must(c, first...)
	r.must(c, append(first[1:], second...)...)
	if n := r.store.count("e1"); n != 7 {
		t.Errorf("%d lines are stored", n)
	}
	for i, l := range append(first, second...) {
		if got := r.store.lines["e1"][uint64(i+1)]; string(got.JSON) != string(l.JSON) || got.Chain != l.Chain {
			t.Errorf("line %d is another", i+1)
		}
	}
	if n := len(r.events); n != 0 {
		t.Errorf("%d events", n)
	}
	h := r.store.heads["e1"]
	if h.Producer.ID != uid || h.Producer.Kind != "sidecar" || h.Producer.Namespace != "team" || !strings.HasSuffix(h.Producer.Workload, "/ns/team/sa/agent") {
		t.Errorf("producer is %+v", h.Producer)
	}
}

func TestNewerSchemaIsStoredAsItIs(t *testing.T) {
	r := start(t)
	l := begin("e1").line(map[string]any{"schema": "attache.audit/v9", "type": "dream", "new": map[string]any{"x": 1}})
	r.must(r.pod("team", "agent", uid), l)
	if got := string(r.store.lines["e1"][1].JSON); got != string(l.JSON) {
		t.Errorf("stored %s", got)
	}
}

// A forger is refused and told of, and what the true producer sends then is
// taken.
func TestForgers(t *testing.T) {
	other := "6f1d0c1e-0000-4000-8000-000000000002"
	for name, c := range map[string]struct {
		forge func(r *rig, e *epoch, first []audit.Line) (int64, string, error)
		event string
		why   string
	}{
		"the epoch of another pod": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			forged := *e
			return r.send(r.pod("team", "agent", other), forged.lines(2)...)
		}, audit.EventProducerRejected, "belongs to another producer"},
		"a repetition of another pod's lines": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("other", "agent", other), first...)
		}, audit.EventProducerRejected, "belongs to another producer"},
		"an epoch opened in another's name": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"type": "epoch.open", "event": map[string]any{"name": "epoch.open", "fields": map[string]string{"producer": uid}},
			}))
		}, audit.EventProducerRejected, "names another producer"},
		"a call of another workload": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"type": "end", "workload": map[string]any{"id": "spiffe://attache.test/ns/team/sa/admin"},
			}))
		}, audit.EventProducerRejected, "names another workload"},
		"a call of another namespace": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"type": "end", "workload": map[string]any{"namespace": "payments"},
			}))
		}, audit.EventProducerRejected, "names another namespace"},
		"an event of another namespace": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"event": map[string]any{"name": "credential.minted", "fields": map[string]string{"namespace": "payments"}},
			}))
		}, audit.EventProducerRejected, "names another namespace"},
		"an event of the control plane": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"event": map[string]any{"name": audit.EventProducerReturned},
			}))
		}, audit.EventProducerRejected, "only the control plane sees"},
		"the documents of a policy version": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"event": map[string]any{"name": audit.EventPolicyBundle},
			}))
		}, audit.EventProducerRejected, "only the control plane sees"},
		"a change of a policy": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			return r.send(r.pod("team", "agent", other), begin("e2").line(map[string]any{
				"change": map[string]any{"kind": "AccessPolicy", "namespace": "team", "by": map[string]any{"username": "ana"}},
			}))
		}, audit.EventProducerRejected, "which only the control plane sees"},
		"a sequence number again": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			again := begin("e1")
			return r.send(r.pod("team", "agent", uid), again.line(map[string]any{"owner": "nobody"}))
		}, audit.EventProducerForged, "forged"},
		"a chain that does not follow": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			forged := *e
			forged.head[0]++
			return r.send(r.pod("team", "agent", uid), forged.line(nil))
		}, audit.EventProducerForged, "does not follow"},
		"a text that is not what its hash says": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			forged := *e
			l := forged.line(map[string]any{"owner": "ana"})
			l.JSON = bytes.Replace(l.JSON, []byte("ana"), []byte("bob"), 1)
			return r.send(r.pod("team", "agent", uid), l)
		}, audit.EventProducerForged, "does not follow"},
		"a line without a hash": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			forged := *e
			l := forged.line(nil)
			l.Chained = false
			return r.send(r.pod("team", "agent", uid), l)
		}, audit.EventProducerForged, "has no hash"},
		"two lines of one number": {func(r *rig, e *epoch, first []audit.Line) (int64, string, error) {
			forged := begin("e3")
			a := forged.line(nil)
			b := begin("e3").line(map[string]any{"owner": "x"})
			return r.send(r.pod("team", "agent", uid), a, b)
		}, audit.EventProducerForged, "stands for two lines"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			e := begin("e1")
			first := e.lines(3)
			r.must(r.pod("team", "agent", uid), first...)
			n, why, err := c.forge(r, e, first)
			if err != nil || n == 0 || !strings.Contains(why, c.why) {
				t.Errorf("refused %d: %q, %v; want %q", n, why, err, c.why)
			}
			told := r.told(c.event)
			if len(told) != 1 || !strings.Contains(told[0]["reason"], c.why) {
				t.Errorf("told %v", told)
			}
			if n := r.metric("attache_collector_forged_total"); n == 0 {
				t.Error("not counted")
			}
			if n := r.store.count("e1"); n != 3 {
				t.Errorf("%d lines are stored", n)
			}
			r.must(r.pod("team", "agent", uid), e.lines(2)...)
		})
	}
}

// What a sidecar may tell of is a list: no other spelling of a name passes that
// a search would find for it, and nothing that is not known.
func TestEventsOfSidecars(t *testing.T) {
	r := start(t)
	c := r.pod("team", "agent", uid)
	send := func(epoch, name string) int64 {
		n, _, err := r.send(c, begin(epoch).line(map[string]any{"event": map[string]any{"name": name, "fields": map[string]string{"session": "x"}}}))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, name := range []string{
		audit.EventLogout, "LOGOUT", "Logout", " logout", "logout ", "logout\n", "logout\x00", "\u200blogout", "log\u017fout", "Audit.query", "AUDIT.QUERY",
		"Policy.changed", "policy.Changed", "policy.changed ", "policy.bundle", "Policy.Bundle", "producer.lost", "Producer.lost", "identity.issued",
		"broker.denied", "Task.opened", "task.dreamt", "epoch.opened", "",
	} {
		if n := send("bad-"+strconv.Itoa(i), name); n != 1 {
			t.Errorf("%q is taken", name)
		}
	}
	for i, name := range []string{ // docs/audit-events.md: sidecar, any; and the heads of an epoch
		"epoch.open", "epoch.close", "heartbeat", "task.opened", "task.closed", "task.refused", "credential.minted", "credential.revoked", "revocation",
		"policy.loaded", "policy.rejected", "ship.rejected", "spool.dropped", "spool.removed", "spool.damaged", "spool.shipped", "spool.tail_cut",
	} {
		if n := send("good-"+strconv.Itoa(i), name); n != 0 {
			t.Errorf("%q is refused", name)
		}
	}
}

// The lines before the one that breaks the chain are stored.
func TestWhatIsBeforeAForgeryCounts(t *testing.T) {
	r := start(t)
	e := begin("e1")
	lines := e.lines(5)
	lines[3].JSON = bytes.Replace(lines[3].JSON, []byte("event"), []byte("evens"), 1)
	n, _, err := r.send(r.pod("team", "agent", uid), lines...)
	if err != nil || n != 2 || r.store.count("e1") != 3 {
		t.Errorf("%d refused, %d stored, %v", n, r.store.count("e1"), err)
	}
}

func TestGapIsShownAndWhatFollowsIsTaken(t *testing.T) {
	r := start(t)
	c := r.pod("team", "agent", uid)
	e := begin("e1")
	lines := e.lines(9)
	r.must(c, lines[:2]...)
	r.must(c, lines[5:]...)
	gaps := r.told(audit.EventProducerGap)
	if len(gaps) != 1 || gaps[0]["from"] != "3" || gaps[0]["to"] != "5" || gaps[0]["producer"] != uid || gaps[0]["epoch"] != "e1" {
		t.Fatalf("gaps: %v", gaps)
	}
	if n := r.store.count("e1"); n != 6 {
		t.Errorf("%d lines", n)
	}
	if r.metric("attache_collector_gaps_total") != 1 {
		t.Error("the gap is not counted")
	}
}

// Nothing is acknowledged that the store did not commit, and the same lines
// sent again are taken.
func TestOutageOfTheStore(t *testing.T) {
	r := start(t)
	c := r.pod("team", "agent", uid)
	e := begin("e1")
	r.must(c, e.lines(2)...)
	lines := e.lines(3)
	r.store.broken(errDown)
	if _, _, err := r.send(c, lines...); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "disk") {
		t.Fatalf("got %v", err)
	}
	r.store.broken(nil)
	r.must(c, lines...)
	if n := r.store.count("e1"); n != 5 {
		t.Errorf("%d lines", n)
	}
	if r.metric("attache_collector_store_errors_total") != 1 {
		t.Error("not counted")
	}
}

func TestWhoIsNoPodIsRefused(t *testing.T) {
	r := start(t)
	stranger := start(t) // with an authority of its own
	for name, c := range map[string]collogs.LogsServiceClient{
		"no certificate":        r.client(),
		"another authority":     r.client(stranger.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))),
		"an expired one":        r.client(r.ca.SVID("team", "agent", uid, time.Now().Add(-time.Hour))),
		"no pod's":              r.client(r.ca.SVID("team", "agent", "", time.Now().Add(time.Hour))),
		"the server's own kind": r.client(r.ca.Serving()),
	} {
		if _, _, err := r.send(c, begin("e1").lines(1)...); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.store.lines) != 0 {
		t.Error("something is stored")
	}
}

// Only the control plane's own namespace has replicas of the control plane.
func TestControlPlaneIsAProducer(t *testing.T) {
	r := start(t)
	r.must(r.pod("attache-system", "attache-control", "control/attache-control-1"), begin("e1").lines(1)...)
	r.must(r.pod("team", "agent", "control/attache-control-2"), begin("e2").lines(1)...)
	if p := r.store.heads["e1"].Producer; p.Kind != "control" || p.Pod != "attache-control-1" {
		t.Errorf("is %+v", p)
	}
	if p := r.store.heads["e2"].Producer; p.Kind != "sidecar" {
		t.Errorf("is %+v", p)
	}
}

// A pod is shown by its name, once that is known; who it is goes by its uid, and
// what a replica of the control plane is called, by its certificate.
func TestNameOfAPod(t *testing.T) {
	names, asked := map[string]string{}, 0
	s := searching(t, func(c *collector.Config) {
		c.PodName = func(_ context.Context, namespace, uid string) string { asked++; return names[namespace+"/"+uid] }
	})
	agent := s.client(s.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour)))
	e := begin("e1")
	s.must(agent, e.lines(1)...)
	if p := s.store.heads["e1"].Producer; p.Pod != "" || p.ID != uid {
		t.Errorf("before it is known: %+v", p)
	}
	names["team/"+uid], names["attache-system/control/replica"] = "agent-7d4b9", "another"
	s.must(agent, e.lines(1)...)
	if p := s.store.heads["e1"].Producer; p.Pod != "agent-7d4b9" || p.ID != uid || p.Kind != audit.KindSidecar {
		t.Errorf("is %+v", p)
	}
	if asked != 2 {
		t.Errorf("asked %d times for two exports", asked)
	}
	s.must(s.client(s.ca.SVID("attache-system", "attache-control", "control/replica", time.Now().Add(time.Hour))), begin("e2").lines(1)...)
	if p := s.store.heads["e2"].Producer; p.Pod != "replica" {
		t.Errorf("a replica is %+v", p)
	}
	// Once it is gone nobody knows its name but from before.
	clear(names)
	s.must(agent, e.lines(1)...)
	s.after(time.Second)
	s.after(2 * time.Minute)
	lost := s.told(audit.EventProducerLost)
	if i := slices.IndexFunc(lost, func(f map[string]string) bool { return f["producer"] == uid }); i < 0 || lost[i]["pod"] != "agent-7d4b9" {
		t.Errorf("lost are %v", lost)
	}
}

func TestLinesThatNeverBecomeRight(t *testing.T) {
	long := begin("e1")
	head := begin("e1")
	for name, c := range map[string]struct {
		change func(*audit.Line, *collogs.ExportLogsServiceRequest)
		line   audit.Line
		want   string
	}{
		"no text": {func(_ *audit.Line, q *collogs.ExportLogsServiceRequest) {
			q.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()[0].Body = nil
		}, begin("e1").line(nil), "no text"},
		"no JSON": {func(_ *audit.Line, q *collogs.ExportLogsServiceRequest) {
			q.ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body.Value = export(audit.Line{JSON: []byte("{")}).ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body.Value
		}, begin("e1").line(nil), "no JSON object"},
		"a tab":          {nil, audit.Line{Epoch: "e1", Sequence: 1, JSON: []byte("{\"epoch\":\"e1\",\t\"sequence\":1}")}, "no JSON object"},
		"too long":       {nil, long.line(map[string]any{"owner": strings.Repeat("x", 1<<20)}), "longer than"},
		"another epoch":  {nil, func() audit.Line { l := head.line(nil); l.Epoch = "e2"; return l }(), "are not those of the line"},
		"another number": {nil, func() audit.Line { l := begin("e1").line(nil); l.Sequence = 2; return l }(), "are not those of the line"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			q := export(c.line)
			if c.change != nil {
				c.change(&c.line, q)
			}
			// A good line in the same export is taken.
			good := begin("good").line(nil)
			q.ResourceLogs = append(q.ResourceLogs, export(good).ResourceLogs...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a, err := r.pod("team", "agent", uid).Export(ctx, q)
			if p := a.GetPartialSuccess(); err != nil || p.GetRejectedLogRecords() != 1 || !strings.Contains(p.GetErrorMessage(), c.want) {
				t.Errorf("got %v, %v; want %q", p, err, c.want)
			}
			if r.store.count("good") != 1 || len(r.store.lines) != 1 {
				t.Errorf("stored %v", r.store.lines)
			}
		})
	}
}

// What is too large is refused for good: a producer that tried again would
// never get on.
func TestOversizedExports(t *testing.T) {
	r := start(t)
	c := r.pod("team", "agent", uid)
	var many []audit.Line
	e := begin("e1")
	for range 5 {
		many = append(many, e.line(map[string]any{"owner": strings.Repeat("x", 1<<20-1000)}))
	}
	_, _, err := r.send(c, many...)
	if status.Code(err) != codes.ResourceExhausted || retry(err) != nil {
		t.Errorf("5 MiB: %v", err)
	}
	if _, _, err := r.send(c, begin("e2").lines(4097)...); status.Code(err) != codes.InvalidArgument {
		t.Errorf("4097 lines: %v", err)
	}
	if len(r.store.lines) != 0 {
		t.Error("something is stored")
	}
}

func retry(err error) *errdetails.RetryInfo {
	for _, d := range status.Convert(err).Details() {
		if i, ok := d.(*errdetails.RetryInfo); ok {
			return i
		}
	}
	return nil
}

func TestRateOfAProducer(t *testing.T) {
	now := time.Now()
	r := start(t, func(c *collector.Config) { c.Rate, c.Burst, c.Now = 10, 20, func() time.Time { return now } })
	c := r.pod("team", "agent", uid)
	e := begin("e1")
	r.must(c, e.lines(20)...)
	lines := e.lines(10)
	_, _, err := r.send(c, lines...)
	if i := retry(err); status.Code(err) != codes.ResourceExhausted || i == nil || i.GetRetryDelay().AsDuration() != time.Second {
		t.Fatalf("got %v, %v", err, i)
	}
	// Another is not held up by it.
	r.must(r.pod("team", "agent", uid+"2"), begin("e2").lines(20)...)
	now = now.Add(time.Second)
	r.must(c, lines...)
}

// Who starts anew with each line is put off, and loses nothing.
func TestStartsOfAProducer(t *testing.T) {
	now := time.Now()
	r := start(t, func(c *collector.Config) { c.Now = func() time.Time { return now } })
	c := r.pod("team", "agent", uid)
	var lines []audit.Line
	for n := range 300 {
		lines = append(lines, begin("e"+itoa(int64(n))).line(nil))
	}
	_, _, err := r.send(c, lines...)
	if i := retry(err); status.Code(err) != codes.ResourceExhausted || i == nil || i.GetRetryDelay().AsDuration() != time.Second || len(r.store.lines) != 256 {
		t.Fatalf("got %v, %v, %d epochs", err, i, len(r.store.lines))
	}
	now = now.Add(44 * time.Second)
	r.must(c, lines...)
}

// Who leaves out every other line fills nothing with that.
func TestFindingsOfAProducer(t *testing.T) {
	now := time.Now()
	r := start(t, func(c *collector.Config) { c.Now = func() time.Time { return now } })
	e := begin("e1")
	var lines []audit.Line
	for range 150 {
		e.seq++ // left out
		lines = append(lines, e.line(nil))
	}
	r.must(r.pod("team", "agent", uid), lines...)
	if n, m := len(r.told(audit.EventProducerGap)), r.metric("attache_collector_unrecorded_total"); n != 100 || m != 50 {
		t.Errorf("%d gaps are recorded, %v counted", n, m)
	}
}

// Long lines count for more than one.
func TestBytesOfAProducer(t *testing.T) {
	now := time.Now()
	r := start(t, func(c *collector.Config) { c.Rate, c.Burst, c.Now = 10, 20, func() time.Time { return now } })
	c := r.pod("team", "agent", uid)
	e := begin("e1")
	long := map[string]any{"owner": strings.Repeat("x", 90<<10)}
	r.must(c, e.line(long))
	if _, _, err := r.send(c, e.line(long)); status.Code(err) != codes.ResourceExhausted || retry(err) == nil {
		t.Fatalf("got %v", err)
	}
}

func (r *rig) post(kind, encoding string, body []byte, with bool) (int, http.Header, []byte) {
	r.t.Helper()
	config := r.ca.Client()
	if with {
		config = r.ca.Client(r.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour)))
	}
	tr := &http.Transport{TLSClientConfig: config}
	defer tr.CloseIdleConnections()
	q, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, "https://"+r.httpAt+collector.PathLogs, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Content-Type", kind)
	if encoding != "" {
		q.Header.Set("Content-Encoding", encoding)
	}
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Do(q)
	if err != nil {
		return 0, nil, []byte(err.Error())
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, res.Header, b
}

func TestHTTP(t *testing.T) {
	r := start(t, func(c *collector.Config) { c.Rate, c.Burst = 1e-3, 8 })
	e := begin("e1")
	pb := func(lines ...audit.Line) []byte {
		b, err := proto.Marshal(export(lines...))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := e.lines(2)
	if code, h, b := r.post("application/x-protobuf", "", pb(first...), true); code != 200 || h.Get("Content-Type") != "application/x-protobuf" || len(b) != 0 {
		t.Fatalf("%d %s", code, b)
	}
	j, err := protojson.Marshal(export(e.lines(2)...))
	if err != nil {
		t.Fatal(err)
	}
	if code, _, b := r.post("application/json; charset=utf-8", "", j, true); code != 200 || strings.TrimSpace(string(b)) != "{}" {
		t.Fatalf("%d %s", code, b)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(pb(e.lines(2)...))
	_ = w.Close()
	if code, _, b := r.post("application/x-protobuf", "gzip", z.Bytes(), true); code != 200 {
		t.Fatalf("%d %s", code, b)
	}
	if n := r.store.count("e1"); n != 6 {
		t.Errorf("%d lines", n)
	}
	bomb := &bytes.Buffer{}
	w = gzip.NewWriter(bomb)
	_, _ = w.Write(make([]byte, 64<<20))
	_ = w.Close()
	for name, c := range map[string]struct {
		kind, encoding string
		body           []byte
		code           int
	}{
		"a bomb":         {"application/x-protobuf", "gzip", bomb.Bytes(), 413},
		"5 MiB":          {"application/x-protobuf", "", make([]byte, 5<<20), 413},
		"no gzip":        {"application/x-protobuf", "gzip", []byte("x"), 400},
		"another kind":   {"text/plain", "", nil, 415},
		"another coding": {"application/x-protobuf", "br", nil, 415},
		"no protobuf":    {"application/x-protobuf", "", []byte("nonsense"), 400},
		"no JSON":        {"application/json", "", []byte("{"), 400},
	} {
		if code, _, b := r.post(c.kind, c.encoding, c.body, true); code != c.code {
			t.Errorf("%s: %d %s", name, code, b)
		}
	}
	code, h, _ := r.post("application/x-protobuf", "", pb(e.lines(5)...), true)
	if code != 429 || h.Get("Retry-After") == "" {
		t.Errorf("too much: %d %v", code, h)
	}
	if code, _, b := r.post("application/x-protobuf", "", pb(first...), false); code != 0 {
		t.Errorf("without a certificate: %d %s", code, b)
	}
	r.store.broken(errDown)
	// Within the allowance, and the store is down.
	if code, _, _ := r.post("application/x-protobuf", "", pb(e.lines(1)...), true); code != 503 {
		t.Errorf("store down: %d", code)
	}
}

func FuzzExport(f *testing.F) {
	seed, err := proto.Marshal(export(begin("e1").lines(2)...))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newMemory()
		c, err := collector.New(collector.Config{Store: m, Record: func(context.Context, *audit.Record) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		q := &collogs.ExportLogsServiceRequest{}
		if proto.Unmarshal(data, q) != nil {
			return
		}
		collector.TakeForTest(c, uid, q)
		// What is stored is framed as its head says.
		for epoch, of := range m.lines {
			for n, l := range of {
				if l.Epoch != epoch || l.Sequence != n || bytes.ContainsAny(l.JSON, "\n\t") {
					t.Errorf("stored %q", l.JSON)
				}
			}
		}
	})
}
