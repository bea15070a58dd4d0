// Package golden has a record of each protocol, outcome and event, for the
// tests of what records are turned into. Nothing in them is secret or real.
package golden

import (
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Named is a record with the name of its golden files.
type Named struct {
	Name   string
	Record audit.Record
}

// Handle of the credential in the records.
const Handle = "cred_5f0c8d1e2b3a49586776859403122130"

const (
	epoch    = "9c1185a5c5e9fc54612808977ee8f548"
	workload = "spiffe://cluster.local/ns/payments/sa/invoices"
	run      = "0123456789abcdef0123456789abcdef"
	session  = "rec_0a0b0c0d0e0f10111213141516171819"
)

// Records returns one of each, in a fixed order.
func Records() []Named {
	var l []Named
	outcomes := []string{
		audit.OutcomeOK, audit.OutcomeDenied, audit.OutcomeError, audit.OutcomeCanceled,
		audit.OutcomeRevoked, audit.OutcomeLeak, audit.OutcomeUnknown,
	}
	for _, p := range protocols() {
		for _, o := range outcomes {
			r := p.Record
			request := *r.Request
			r.Request = &request
			conclude(&r, o)
			l = append(l, Named{p.Name + "-" + strings.ReplaceAll(o, "_", "-"), r})
		}
	}
	l = append(l, odd()...)
	for _, e := range Events() {
		l = append(l, Named{"event-" + strings.ReplaceAll(e.Name, ".", "-") + e.suffix, e.record})
	}
	for _, t := range []string{audit.TypeEpochOpen, audit.TypeEpochEnd, audit.TypeHeartbeat} {
		r := head()
		r.Type = t
		r.Event = &audit.Event{Name: t, Fields: map[string]string{"version": "1.0.0"}}
		l = append(l, Named{strings.ReplaceAll(t, ".", "-"), r})
	}
	return l
}

func head() audit.Record {
	return audit.Record{
		Schema: audit.SchemaVersion, Type: audit.TypeEnd, ID: "rec_5f0c8d1e2b3a49586776859403122130", Epoch: epoch, Sequence: 17,
		BeginEpoch: epoch, BeginSequence: 16, Time: time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC),
	}
}

func request() audit.Record {
	r := head()
	r.Steps = &audit.Steps{Attested: 180, Decided: 240, Begun: 260, Minted: 310, Injected: 320, FirstByte: 24100, Ended: 25300}
	r.Workload = &audit.Workload{ID: workload, Namespace: "payments", ServiceAccount: "invoices", Labels: map[string]string{"team": "payments"}, Node: "node-3", PostureDigest: "9f86d081884c7d65", RunID: run}
	r.Process = &audit.Process{PID: 4242, UID: 1000, Exe: "/usr/bin/python3.12", Digest: "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
	r.Owner, r.OwnerSource = "payments@example.com", "namespace"
	r.Human = &audit.Human{Subject: "248289761001", Issuer: "https://login.example.com", Email: "ada@example.com"}
	r.Actors = []audit.Actor{{Subject: workload, Issuer: "https://attache.example.com"}, {Subject: "spiffe://cluster.local/ns/planning/sa/planner"}}
	r.Task = &audit.Task{ID: "8c1f0d3a5b7e9124", Purpose: "close the books of May", OpenedBy: "orchestrator"}
	r.Request = &audit.Request{
		Door: "transparent", Scheme: "https", Host: "api.example.com", Port: 443, Address: "192.0.2.7:443", Protocol: "http", HTTPVersion: "1.1",
		UserAgent: "python-requests/2.32.3", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
	r.Decision = &audit.Decision{Verdict: "inject", Policy: "payments/invoices", Rule: "read", Version: "sha256:1f6c", Reason: "rule read allows GET"}
	r.Credential = &audit.Use{Handle: Handle, Provider: "invoices", Kind: "bearer", ScopeAsked: []string{"invoices:read"}, ScopeGranted: []string{"invoices:read"}, ScopeSource: "static", Expires: time.Date(2026, 3, 1, 12, 5, 0, 0, time.UTC), TTLSeconds: 300}
	return r
}

func protocols() []Named {
	http := request()
	http.Request.Method, http.Request.Path, http.Request.PathTemplate, http.Request.QueryKeys = "GET", "/v1/invoices/42", "/v1/invoices/{id}", []string{"page"}
	http.Request.Removed = []string{"authorization"}

	grpc := request()
	grpc.Request.Method, grpc.Request.Path, grpc.Request.Protocol, grpc.Request.HTTPVersion = "POST", "/billing.v1.Invoices/ListInvoices", "grpc", "2.0"

	ws := request()
	ws.Request.Method, ws.Request.Path, ws.Request.Protocol = "GET", "/v1/stream", "websocket"

	aws := request()
	aws.Request.Host, aws.Request.Method, aws.Request.Path = "reports.s3.eu-west-1.amazonaws.com", "PUT", "/may.csv"
	aws.Credential = &audit.Use{
		Handle: Handle, Provider: "reports", Kind: "aws-session", ScopeGranted: []string{"s3:PutObject"}, ScopeSource: "derived", Expires: time.Date(2026, 3, 1, 12, 15, 0, 0, time.UTC), TTLSeconds: 900,
		PublicID: "ASIAIOSFODNN7EXAMPLE", Session: "arn:aws:sts::111122223333:assumed-role/reports/" + Handle,
		AWS: &audit.AWSUse{Service: "s3", Operation: "PutObject", Region: "eu-west-1", Account: "111122223333", Actions: []string{"s3:PutObject"}, Resources: []string{"arn:aws:s3:::reports/may.csv"}, Scope: "request"},
	}

	tls := request()
	tls.Request.Protocol, tls.Request.TraceID, tls.Request.UserAgent, tls.Request.HTTPVersion = "tls", "", "", ""
	tls.Decision = &audit.Decision{Verdict: "passthrough", Policy: "payments/mirror", Rule: "mirror"}
	tls.Credential = nil

	sql := request()
	sql.Request = &audit.Request{Door: "transparent", Host: "ledger.payments.svc", Port: 5432, Address: "10.0.0.7:5432", Protocol: "postgresql"}
	sql.SQL = &audit.SQL{
		Engine: "postgresql", Session: session, Database: "ledger", User: "agent_invoices", Operation: "select",
		Statement: "SELECT total FROM invoices WHERE id = ?", Fingerprint: "sha256:9f86d081884c7d65", Tables: []string{"invoices"}, Rows: 1, Application: "attache " + Handle,
	}
	sql.Credential = &audit.Use{Handle: Handle, Provider: "ledger", Kind: "password", Session: "attache " + Handle}

	ssh := request()
	ssh.Request = &audit.Request{Door: "transparent", Host: "build.example.com", Port: 22, Address: "192.0.2.9:22", Protocol: "ssh"}
	ssh.SSH = &audit.SSH{
		Session: session, Operation: "exec", User: "deploy", Command: "systemctl status billing", KeyID: Handle, Serial: "8675309",
		Fingerprint: "SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg", Principals: []string{"deploy"}, HostKey: "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", ExitStatus: "0",
	}
	ssh.Credential = &audit.Use{Handle: Handle, Provider: "build", Kind: "ssh-certificate", PublicID: "8675309", Session: Handle}
	return []Named{{"http", http}, {"grpc", grpc}, {"websocket", ws}, {"aws", aws}, {"tls", tls}, {"sql", sql}, {"ssh", ssh}}
}

// conclude gives r the outcome o as the pipeline would write it.
func conclude(r *audit.Record, o string) {
	res := &audit.Result{Outcome: o}
	switch o {
	case audit.OutcomeOK:
		res.Status, res.BytesUp, res.BytesDown = 200, 12, 1024
		if r.Request.Protocol == "tls" || r.SQL != nil || r.SSH != nil {
			res.Status = 0
		}
		if r.Request.Protocol == "grpc" {
			res.GRPCStatus = "0"
		}
		res.UpstreamRequestID = "req_011CQ"
	case audit.OutcomeDenied:
		res.Status, res.ErrorKind = 403, "policy_denied"
		d := *r.Decision
		d.Verdict, d.Code, d.Reason, d.Rule = "deny", "policy_denied", "no rule allows it", ""
		r.Decision, r.BeginEpoch, r.BeginSequence, r.Credential = &d, "", 0, nil
		r.Steps = &audit.Steps{Decided: 240, Ended: 300}
		r.Request.Address = ""
	case audit.OutcomeError:
		res.Status, res.ErrorKind = 504, "upstream_timeout"
	case audit.OutcomeCanceled:
		res.BytesUp = 12
	case audit.OutcomeRevoked:
		res.Status, res.ErrorKind, res.BytesDown = 200, "task_ended", 512
	case audit.OutcomeLeak:
		res.Status, res.ErrorKind, res.Sealed = 502, "leak_blocked", 1
	case audit.OutcomeUnknown:
		res.ErrorKind, r.Steps = "killed", nil
	}
	r.Result = res
}

// odd are records at the edges of the schema.
func odd() []Named {
	begin := request()
	begin.Type, begin.BeginEpoch, begin.BeginSequence, begin.Steps, begin.Credential = audit.TypeBegin, "", 0, nil, nil
	begin.Request.Method, begin.Request.Path = "POST", "/v1/invoices"

	nobody := head()
	nobody.Request = &audit.Request{Door: "connect", Host: "api.example.com", Port: 443, Method: "GET", Path: "/"}
	nobody.Decision = &audit.Decision{Verdict: "deny", Code: "unattested", Reason: "the caller is not known"}
	nobody.Result = &audit.Result{Outcome: audit.OutcomeDenied, Status: 403, ErrorKind: "unattested"}

	end := head() // of a begin that nobody has any more
	end.Result = &audit.Result{Outcome: audit.OutcomeUnknown, ErrorKind: "killed"}

	masked := request()
	masked.Request.Method, masked.Request.Path = "DELETE", "/v1/invoices/42"
	masked.Result = &audit.Result{Outcome: audit.OutcomeOK, Status: 204, Masked: 2}
	masked.Unsafe, masked.Truncated = []string{"same-user"}, true
	masked.Decision.WouldDeny = true

	odd := request()
	odd.Request.Method, odd.Request.Path = "BREW", "/pot"
	odd.Human.Email, odd.Workload, odd.Process = "not an address", nil, nil
	odd.Credential.Static, odd.Credential.Expires = true, time.Time{}
	odd.Result = &audit.Result{Outcome: audit.OutcomeOK, Status: 418}

	login := request()
	login.Request = &audit.Request{Host: "build.example.com", Port: 22, Protocol: "ssh"}
	login.SSH = &audit.SSH{Operation: "login", User: "deploy", KeyID: Handle, Serial: "8675309"}
	login.Result = &audit.Result{Outcome: audit.OutcomeOK}

	redis := request()
	redis.Request = &audit.Request{Host: "cache.payments.svc", Port: 6379, Protocol: "redis"}
	redis.SQL = &audit.SQL{Engine: "redis", Operation: "connect", User: "agent", Code: "NOPERM"}
	redis.Result = &audit.Result{Outcome: audit.OutcomeError, ErrorKind: "refused"}
	return []Named{
		{"begin", begin}, {"nobody", nobody}, {"end-alone", end}, {"http-masked", masked}, {"http-odd", odd}, {"ssh-login", login},
		{"redis-connect", redis}, {"zero", audit.Record{}},
	}
}
