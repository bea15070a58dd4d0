package audit

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sample() *Record {
	return &Record{Time: time.Now(), Steps: &Steps{Attested: 12, Decided: 40}, Workload: &Workload{ID: "spiffe://local/agent/demo", Namespace: "local", ServiceAccount: "demo", Labels: map[string]string{"team": "payments", "app": "agent"}, Node: "laptop", PostureDigest: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", RunID: "0123456789abcdef0123456789abcdef"},
		Process: &Process{PID: 4242, UID: 1000, Exe: "/usr/bin/python3.12", Digest: "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}, Owner: "ada@example.com", OwnerSource: "config",
		Human: &Human{Subject: "ada", Issuer: "https://idp.example.com", Email: "ada@example.com"}, Task: &Task{ID: "t_0123", Purpose: "close the books", OpenedBy: "launcher"},
		Request:  &Request{Door: "connect", Scheme: "https", Host: "api.example.com", Port: 443, Method: "GET", Path: "/v1/invoices/42", PathTemplate: "/v1/invoices/{id}", QueryKeys: []string{"page"}, Protocol: "http", HTTPVersion: "1.1", UserAgent: "python-requests/2.32", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736"},
		Decision: &Decision{Verdict: "inject", Policy: "local/quickstart", Rule: "read-invoices", Version: "sha256:abcd", Reason: "rule read-invoices allows GET"}}
}

// cpuTime is what this process has used of the processors, in nanoseconds: on a
// busy machine the wall's clock says little.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func BenchmarkBeginEnd(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := sample()
	b.ReportAllocs()
	begin := cpuTime(b)
	defer func() { b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op") }()
	for b.Loop() {
		r.ID = ""
		tk, err := s.Begin(context.Background(), r)
		if err != nil {
			b.Fatal(err)
		}
		if err := tk.End(&Result{Outcome: "ok", Status: 200, BytesDown: 1024}, &Use{Handle: "cred_0123456789abcdef0123456789abcdef", Provider: "invoices", Kind: "bearer", ScopeAsked: []string{"invoices.read"}, ScopeGranted: []string{"invoices.read"}, Expires: time.Now(), TTLSeconds: 300, Cached: true}, &Steps{Begun: 50, Minted: 60, FirstByte: 900, Ended: 1000}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBeginEndParallel(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), EndDelay: DefaultEndDelay})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // measured, not checked
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		r := sample()
		for pb.Next() {
			r.ID = ""
			tk, err := s.Begin(context.Background(), r)
			if err != nil {
				b.Error(err)
				return
			}
			if err := tk.End(&Result{Outcome: OutcomeOK, Status: 200}, nil, nil, nil); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := sample()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}

// BenchmarkOpen recovers a spool of 256 MiB.
func BenchmarkOpen(b *testing.B) {
	o := Options{Dir: b.TempDir()}
	s, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	for s.Stats().Size < 256<<20 {
		if err := s.Deny(sample()); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(256 << 20)
	for b.Loop() {
		s, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
