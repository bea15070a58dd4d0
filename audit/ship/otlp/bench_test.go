package otlp

import (
	"bytes"
	"compress/gzip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
)

// typical are lines as a sidecar writes them.
func typical(n int) []audit.Line {
	out := lines(n)
	for i := range out {
		r := audit.Record{
			Schema: audit.SchemaVersion, Type: audit.TypeBegin, ID: audit.NewID(), Epoch: "e1", Sequence: uint64(i) + 1, Time: time.Now(), //nolint:gosec // small
			Workload: &audit.Workload{ID: "spiffe://local/agent/demo", Namespace: "local", ServiceAccount: "demo", Labels: map[string]string{"team": "payments"}, RunID: "0123456789abcdef0123456789abcdef"},
			Process:  &audit.Process{PID: 4242, UID: 1000, Exe: "/usr/bin/python3.12"}, Owner: "ada@example.com",
			Human: &audit.Human{Subject: "ada", Issuer: "https://idp.example.com"}, Task: &audit.Task{ID: "t_0123", Purpose: "close the books"},
			Request:  &audit.Request{Door: "connect", Host: "api.example.com", Port: 443, Method: "GET", Path: "/v1/invoices/42", UserAgent: "python-requests/2.32"},
			Decision: &audit.Decision{Verdict: "inject", Policy: "local/quickstart", Rule: "read-invoices", Reason: "rule read-invoices allows GET"},
		}
		out[i].JSON = r.AppendJSON(nil)
	}
	return out
}

// BenchmarkMessage is what a line costs to be sent, without the network.
func BenchmarkMessage(b *testing.B) {
	for name, c := range map[string]Config{"control": {Control: true}, "control, gzip": {Control: true, Gzip: true}, "direct": {}, "direct, gzip": {Gzip: true}} {
		b.Run(name, func(b *testing.B) {
			s := &Sink{c: c}
			batch := ship.Batch{Producer: "p", Lines: typical(ship.MaxLines)}
			size := 0
			for b.Loop() {
				body, err := proto.Marshal(s.request(batch))
				if err != nil {
					b.Fatal(err)
				}
				if size = len(body); c.Gzip {
					var z bytes.Buffer
					w := gzip.NewWriter(&z)
					_, _ = w.Write(body)
					_ = w.Close()
					size = z.Len()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*ship.MaxLines), "ns/line")
			b.ReportMetric(float64(size)/ship.MaxLines, "B/line")
		})
	}
}
