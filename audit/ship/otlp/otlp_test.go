package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/secret"
)

// answer is what a receiver says to an export.
type answer func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error)

// server is an OTLP receiver, over both protocols.
type server struct {
	collogs.UnimplementedLogsServiceServer
	mu     sync.Mutex
	answer answer
	got    []*collogs.ExportLogsServiceRequest
	head   string // authorization of the last
}

func (s *server) Export(ctx context.Context, req *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		s.head = strings.Join(md.Get("authorization"), ",")
	}
	s.got = append(s.got, req)
	if s.answer != nil {
		return s.answer(req)
	}
	return &collogs.ExportLogsServiceResponse{}, nil
}

func (s *server) grpc(t *testing.T, c Config) *Sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	collogs.RegisterLogsServiceServer(g, s)
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	c.Name, c.Endpoint = "test", ln.Addr().String()
	return sink(t, c)
}

func sink(t *testing.T, c Config) *Sink {
	t.Helper()
	out, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	return out
}

// lines are n chained lines.
func lines(n int) []audit.Line {
	var out []audit.Line
	head := chain.First("e1")
	for i := range n {
		rec := audit.Record{
			Schema: audit.SchemaVersion, Type: audit.TypeEnd, ID: fmt.Sprintf("rec_%d", i), Epoch: "e1", Sequence: uint64(i) + 1,
			Time: time.Date(2026, 3, 1, 12, 0, 0, i, time.UTC), Request: &audit.Request{Host: "api.example.com", Method: "GET"},
			Result: &audit.Result{Outcome: audit.OutcomeDenied},
		}
		b := rec.AppendJSON(nil)
		head = chain.Next(head, b)
		out = append(out, audit.Line{Epoch: "e1", Sequence: rec.Sequence, JSON: b, Chain: head, Chained: true})
	}
	return out
}

func records(req *collogs.ExportLogsServiceRequest) []*logs.LogRecord {
	return req.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
}

func attributes(kvs []*common.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range kvs {
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			m[kv.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			m[kv.GetKey()] = v.IntValue
		case *common.AnyValue_BoolValue:
			m[kv.GetKey()] = v.BoolValue
		}
	}
	return m
}

func TestTheFormOfALine(t *testing.T) {
	for _, direct := range []bool{true, false} {
		s := &server{}
		l := lines(1)
		if err := s.grpc(t, Config{Control: !direct, Gzip: true, Resource: map[string]string{"k8s.pod.uid": "u"}}).Send(t.Context(), ship.Batch{Producer: "p1", Lines: l}); err != nil {
			t.Fatal(err)
		}
		res := attributes(s.got[0].GetResourceLogs()[0].GetResource().GetAttributes())
		if res["service.instance.id"] != "p1" || res["k8s.pod.uid"] != "u" || res["service.name"] != "attache" {
			t.Errorf("resource %v", res)
		}
		r := records(s.got[0])[0]
		a := attributes(r.GetAttributes())
		if r.GetBody().GetStringValue() != string(l[0].JSON) || a["attache.epoch"] != "e1" || a["attache.sequence"] != int64(1) || a["attache.chain"] != l[0].Chain.String() {
			t.Errorf("the line is not as it was written: %v", r)
		}
		if r.GetEventName() != "attache.request" || r.GetTimeUnixNano() != uint64(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano()) {
			t.Errorf("event %s, time %d", r.GetEventName(), r.GetTimeUnixNano())
		}
		evident, told := a["attache.tamper_evident"]
		if told != direct || direct && (evident != false || r.GetSeverityText() != "WARN" || a["url.domain"] != "api.example.com") {
			t.Errorf("sent direct %v: %v, severity %s", direct, a, r.GetSeverityText())
		}
	}
}

func TestHeaders(t *testing.T) {
	s := &server{}
	token := "Bearer one"
	k := s.grpc(t, Config{Headers: []Header{{"Authorization", func() (secret.Value, error) { return secret.New(token), nil }}}})
	if err := k.Send(t.Context(), ship.Batch{Lines: lines(1)}); err != nil || s.head != "Bearer one" {
		t.Errorf("%v, header %q", err, s.head)
	}
	token = "Bearer two" // replaced while we run
	if err := k.Send(t.Context(), ship.Batch{Lines: lines(1)}); err != nil || s.head != "Bearer two" {
		t.Errorf("%v, header %q", err, s.head)
	}
	k = s.grpc(t, Config{Headers: []Header{{"Authorization", func() (secret.Value, error) { return secret.Value{}, errors.New("no file") }}}})
	if err := k.Send(t.Context(), ship.Batch{Lines: lines(1)}); err == nil || errors.Is(err, ship.ErrRejected) {
		t.Errorf("without its header: %v, want an error that is tried again", err)
	}
}

// bad refuses a batch in which sequence 3 is.
func bad(req *collogs.ExportLogsServiceRequest) bool {
	return slices.ContainsFunc(records(req), func(r *logs.LogRecord) bool { return attributes(r.GetAttributes())["attache.sequence"] == int64(3) })
}

func TestAnswers(t *testing.T) {
	withHint := status.New(codes.ResourceExhausted, "slow down")
	withHint, _ = withHint.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
	for _, tc := range []struct {
		name    string
		control bool
		answer  answer
		want    []uint64      // rejected
		count   int           // rejected, where it does not say which
		after   time.Duration // hint
		err     bool          // to be tried again
	}{
		{name: "all taken"},
		{name: "invalid", answer: func(r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
			if bad(r) {
				return nil, status.Error(codes.InvalidArgument, "bad")
			}
			return &collogs.ExportLogsServiceResponse{}, nil
		}, want: []uint64{3}},
		{name: "partial, by attache-control", control: true, answer: partial, want: []uint64{3}},
		{name: "partial", answer: partial, count: 1},
		{name: "a warning", answer: func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
			return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{ErrorMessage: "soon deprecated"}}, nil
		}},
		{name: "a count that is none", answer: func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
			return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: math.MaxInt64}}, nil
		}, want: []uint64{1, 2, 3, 4, 5}},
		{name: "with a hint", answer: fails(withHint.Err()), err: true, after: 7 * time.Second},
		{name: "exhausted, and small", answer: fails(status.Error(codes.ResourceExhausted, "no")), err: true},
		{name: "unavailable", answer: fails(status.Error(codes.Unavailable, "no")), err: true},
		{name: "not let in", answer: fails(status.Error(codes.Unauthenticated, "no")), err: true},
		{name: "no service", answer: fails(status.Error(codes.Unimplemented, "no")), err: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &server{answer: tc.answer}
			err := s.grpc(t, Config{Control: tc.control}).Send(t.Context(), ship.Batch{Lines: lines(5)})
			check(t, err, tc.want, tc.count, tc.after, tc.err)
		})
	}
}

func partial(r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	if bad(r) {
		return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "one is bad"}}, nil
	}
	return &collogs.ExportLogsServiceResponse{}, nil
}

func fails(err error) answer {
	return func(*collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) { return nil, err }
}

func check(t *testing.T, err error, want []uint64, count int, after time.Duration, again bool) {
	t.Helper()
	var r *ship.RejectedError
	rejected := errors.As(err, &r)
	switch {
	case again:
		var h interface{ RetryAfter() time.Duration }
		if err == nil || rejected || after > 0 && (!errors.As(err, &h) || h.RetryAfter() != after) {
			t.Errorf("%v, want an error that is tried again, after %s", err, after)
		}
		return
	case count > 0:
		if !rejected || r.Count != count || len(r.Lines) != 5 {
			t.Errorf("%v, want %d of 5 rejected", err, count)
		}
		return
	case want == nil:
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !rejected || !errors.Is(err, ship.ErrRejected) {
		t.Fatalf("%v, want %v rejected", err, want)
	}
	var got []uint64
	for _, l := range r.Lines {
		got = append(got, l.Sequence)
	}
	if !slices.Equal(got, want) || r.Count != len(want) {
		t.Errorf("rejected %v (%d), want %v", got, r.Count, want)
	}
}

func TestTooLarge(t *testing.T) {
	s := &server{answer: func(r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
		if proto.Size(r) > 200<<10 {
			return nil, status.Error(codes.ResourceExhausted, "larger than max")
		}
		return &collogs.ExportLogsServiceResponse{}, nil
	}}
	l := lines(4)
	for i := range l[:3] {
		l[i].JSON = bytes.Replace(l[i].JSON, []byte("GET"), bytes.Repeat([]byte("G"), 90<<10), 1)
	}
	l[3].JSON = bytes.Replace(l[3].JSON, []byte("GET"), bytes.Repeat([]byte("G"), 300<<10), 1)
	err := s.grpc(t, Config{Control: true}).Send(t.Context(), ship.Batch{Lines: l})
	var r *ship.RejectedError
	if !errors.As(err, &r) || r.Count != 1 || r.Lines[0].Sequence != 4 {
		t.Errorf("%v, want the fourth rejected and the others taken in parts", err)
	}
}

// over serves a handler and returns a sink to it.
func over(t *testing.T, c Config, h http.HandlerFunc) *Sink {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c.Name, c.Protocol, c.Endpoint = "test", HTTP, srv.URL
	return sink(t, c)
}

func TestHTTP(t *testing.T) {
	var got collogs.ExportLogsServiceRequest
	k := over(t, Config{Gzip: true, Headers: []Header{{"Authorization", func() (secret.Value, error) { return secret.New("x"), nil }}}}, func(w http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil || r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != protobufType || r.Header.Get("Authorization") != "x" {
			t.Errorf("%v: %s %v", err, r.URL, r.Header)
			return
		}
		b, _ := io.ReadAll(z)
		if err := proto.Unmarshal(b, &got); err != nil {
			t.Error(err)
		}
	})
	if err := k.Send(t.Context(), ship.Batch{Lines: lines(5)}); err != nil || len(records(&got)) != 5 {
		t.Errorf("%v, %d records", err, len(records(&got)))
	}
}

func TestHTTPAnswers(t *testing.T) {
	for _, tc := range []struct {
		code  int
		head  string
		body  string
		want  []uint64
		after time.Duration
		again bool
	}{
		{code: 200},
		{code: 200, body: "<html>a portal</html>", again: true},
		{code: 400, want: []uint64{1, 2, 3, 4, 5}},
		{code: 413, want: []uint64{1, 2, 3, 4, 5}},
		{code: 429, head: "9", again: true, after: 9 * time.Second},
		{code: 503, again: true},
		{code: 502, again: true},
		{code: 504, again: true},
		{code: 401, again: true},
		{code: 404, again: true},
		{code: 302, again: true},
	} {
		t.Run(fmt.Sprint(tc.code, tc.body), func(t *testing.T) {
			k := over(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					return // 200: it would count as delivered
				}
				if tc.head != "" {
					w.Header().Set("Retry-After", tc.head)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tc.code)
				_, _ = io.WriteString(w, tc.body)
			})
			check(t, k.Send(t.Context(), ship.Batch{Lines: lines(5)}), tc.want, 0, tc.after, tc.again)
		})
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Name: "a"},
		{Name: "a", Endpoint: "c:1", Protocol: "smoke"},
		{Name: "a", Endpoint: "c:1", Protocol: HTTP},
		{Name: "a", Endpoint: "https://u:p@c:1", Protocol: HTTP},
	} {
		if k, err := New(c); err == nil {
			t.Errorf("%+v makes a sink: %v", c, k)
		}
	}
}

// FuzzAnswer holds that no answer over HTTP is taken for a delivery that is
// none, or stops the sink.
func FuzzAnswer(f *testing.F) {
	ok, _ := proto.Marshal(&collogs.ExportLogsServiceResponse{})
	no, _ := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 2}})
	f.Add(200, ok)
	f.Add(200, no)
	f.Add(503, []byte("x"))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		code = 200 + max(code, -code)%400
		k := over(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write(body)
		})
		err := k.Send(t.Context(), ship.Batch{Lines: lines(2)})
		var a collogs.ExportLogsServiceResponse
		good := code == http.StatusOK && proto.Unmarshal(body, &a) == nil && a.GetPartialSuccess().GetRejectedLogRecords() <= 0
		if (err == nil) != good {
			t.Errorf("HTTP %d %q gives %v", code, body, err)
		}
	})
}
