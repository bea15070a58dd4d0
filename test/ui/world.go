package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/test/servers"
)

// yesterday at an hour, UTC.
func yesterday(hour int) time.Time {
	return time.Now().UTC().Truncate(24 * time.Hour).Add(time.Duration(hour-24) * time.Hour)
}

// payments are what the invoicing agent did with the payments bucket yesterday,
// and what it was refused.
func payments(namespace string) []audit.Record {
	var l []audit.Record
	people := []string{"ana", "bob", "carla"}
	for i := range 60 {
		at := yesterday(8 + i%9).Add(time.Duration(i) * 37 * time.Second)
		who := people[i%len(people)]
		handle := "cred_" + hex.EncodeToString([]byte(namespace+who))
		r := audit.Record{
			Type: audit.TypeEnd, ID: fmt.Sprintf("rec_%s%02x", hex.EncodeToString([]byte(namespace)), i), Time: at,
			Steps:    &audit.Steps{Attested: 140 + int64(i), Decided: 210, Begun: 260, Minted: 41_000, Injected: 41_050, FirstByte: 58_000 + 100*int64(i), Ended: 61_000 + 140*int64(i)},
			Workload: &audit.Workload{ID: "spiffe://example.org/ns/" + namespace + "/sa/invoices", Namespace: namespace, ServiceAccount: "invoices", Labels: map[string]string{"team": namespace}, Node: "node-2", RunID: "0123456789abcdef0123456789abcdef"},
			Process:  &audit.Process{PID: 4242, Exe: "/usr/bin/python3.12"}, Owner: namespace + "@example.com", OwnerSource: "namespace",
			Human:    &audit.Human{Subject: who, Issuer: "https://login.example.com", Email: who + "@example.com"},
			Task:     &audit.Task{ID: "task-" + namespace + "-" + who, Purpose: "close the books of May", OpenedBy: "launcher"},
			Request:  &audit.Request{Door: "aws", Scheme: "https", Host: "s3.eu-west-1.amazonaws.com", Port: 443, Method: "GET", Path: fmt.Sprintf("/payments/2026/may-%02d.csv", i), Protocol: "http", HTTPVersion: "1.1"},
			Decision: &audit.Decision{Verdict: "inject", Policy: namespace + "/invoices", Rule: "read-payments", Version: "sha256:1f6c" + hex.EncodeToString([]byte(namespace)), Reason: "rule read-payments allows GET"},
			Credential: &audit.Use{Handle: handle, Provider: "payments-bucket", Kind: "aws-session", TTLSeconds: 12 * 3600, Cached: i >= len(people), Expires: yesterday(20),
				AWS: &audit.AWSUse{Service: "s3", Operation: "GetObject", Region: "eu-west-1", Account: "111122223333", Actions: []string{"s3:GetObject"}, Resources: []string{fmt.Sprintf("arn:aws:s3:::payments/2026/may-%02d.csv", i)}, Scope: "request"}},
			Result: &audit.Result{Outcome: audit.OutcomeOK, Status: 200, BytesDown: 18_000 + int64(i)*512, UpstreamRequestID: fmt.Sprintf("7XQ9%02dK2M1", i)},
		}
		switch {
		case i%11 == 10:
			r.Request.Method, r.Credential, r.Steps = "DELETE", nil, &audit.Steps{Decided: 230, Ended: 280}
			r.Request.Door = "connect"
			r.Decision = &audit.Decision{Verdict: "deny", Version: r.Decision.Version, Reason: "no rule allows DELETE of /payments/2026; ask " + namespace + "@example.com", Code: "denied"}
			r.Result = &audit.Result{Outcome: audit.OutcomeDenied, Status: 403}
		case i%13 == 12:
			r.Result = &audit.Result{Outcome: audit.OutcomeError, Status: 502, ErrorKind: "upstream_timeout"}
		case i == 0:
			r.Credential.AWS.Operation, r.Credential.AWS.Resources, r.Credential.AWS.Actions = "ListBucket", []string{"arn:aws:s3:::payments"}, []string{"s3:ListBucket"}
		}
		l = append(l, r)
	}
	for _, who := range people {
		handle := "cred_" + hex.EncodeToString([]byte(namespace+who))
		w := &audit.Workload{ID: "spiffe://example.org/ns/" + namespace + "/sa/invoices", Namespace: namespace}
		l = append(l,
			audit.Record{Type: audit.TypeEvent, ID: audit.NewID(), Time: yesterday(8).Add(41 * time.Millisecond), Workload: w, Event: &audit.Event{Name: audit.EventCredentialMinted, Fields: map[string]string{"handle": handle, "provider": "payments-bucket", "kind": "aws-session"}}},
			audit.Record{Type: audit.TypeEvent, ID: audit.NewID(), Time: yesterday(18), Workload: w, Event: &audit.Event{Name: audit.EventCredentialRevoked, Fields: map[string]string{"handle": handle, "provider": "payments-bucket", "result": "revoked at the issuer", "reason": "the task was closed"}}})
	}
	l[len(l)-1].Event.Fields["handle"] = "cred_00" // carla's lives on
	return append(l, hostile(namespace))
}

// hostile is a record whose texts try to be something else.
func hostile(namespace string) audit.Record {
	evil := `"><img src=x onerror="document.title='owned'"><script>document.title='owned'</script>` + "\u202e\u200b"
	return audit.Record{
		Type: audit.TypeEnd, ID: "rec_e11" + hex.EncodeToString([]byte(namespace)), Time: yesterday(20 - 72), // not among those of yesterday, which the pictures show
		Workload: &audit.Workload{ID: "spiffe://example.org/ns/" + namespace + "/sa/" + evil, Namespace: namespace},
		Owner:    evil, Human: &audit.Human{Subject: evil, Issuer: evil, Email: evil}, Task: &audit.Task{ID: evil, Purpose: evil, OpenedBy: "agent"},
		Request:  &audit.Request{Host: "evil.example.com", Method: "GET", Path: "/" + evil, UserAgent: evil, Protocol: "http"},
		Decision: &audit.Decision{Verdict: "deny", Reason: evil, Code: "denied"}, Result: &audit.Result{Outcome: audit.OutcomeDenied, Status: 403},
	}
}

// policies are the changes that let the agent in, with who made them.
func policies(namespace string) []audit.Record {
	text := "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: invoices, namespace: " + namespace + "}\nspec:\n  rules:\n  - name: read-payments\n    hosts: [s3.eu-west-1.amazonaws.com]\n    methods: [GET]\n    paths: [/payments/**]\n    action: allow\n    credential: {provider: payments-bucket}\n"
	c := audit.Change{Kind: "AccessPolicy", Namespace: namespace, Name: "invoices", Operation: "update", VersionBefore: "sha256:00", VersionAfter: "sha256:d0" + hex.EncodeToString([]byte(namespace)), By: &audit.Principal{Username: "dora@example.com", Groups: []string{namespace + "-admins"}},
		Diff: "--- before\n+++ after\n@@ -8,3 +8,3 @@\n     methods: [GET]\n-    paths: [/payments/2025/**]\n+    paths: [/payments/**]\n     action: allow\n", Text: text}
	return []audit.Record{
		{Type: audit.TypeEvent, ID: "rec_c1" + hex.EncodeToString([]byte(namespace)), Time: yesterday(7), Event: &audit.Event{Name: audit.EventPolicyChanged}, Change: &c},
		{Type: audit.TypeEvent, ID: "rec_c2" + hex.EncodeToString([]byte(namespace)), Time: yesterday(7), Event: &audit.Event{Name: audit.EventPolicyBundle, Fields: map[string]string{
			"version": "sha256:1f6c" + hex.EncodeToString([]byte(namespace)), "documents": "AccessPolicy " + namespace + "/invoices 3 " + c.VersionAfter}}},
	}
}

// seed writes the invoicing agent's records to a spool.
func seed(dir string) error {
	_, err := spool(dir, payments("payments"))
	return err
}

// spool writes records to a spool and returns its lines.
func spool(dir string, records []audit.Record) (lines []audit.Line, err error) {
	s, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	for i := range records {
		err = errors.Join(err, s.Write(&records[i]))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	for _, name := range segments {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for text := range bytes.Lines(b) {
			l, err := audit.ParseLine(text)
			if err != nil {
				return nil, err
			}
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// startCluster serves the page as the control plane does: over TLS, behind an
// OpenID provider, with people of two namespaces.
func startCluster(ctx context.Context, dir string) (address string, end func(), err error) {
	db, err := store.Open(ctx, "sqlite:"+filepath.Join(dir, "cluster.db"), store.Options{})
	if err != nil {
		return "", nil, err
	}
	for _, ns := range []string{"payments", "support"} {
		if err := fill(ctx, db, store.Producer{ID: "pod-" + ns, Kind: "sidecar", Namespace: ns, Pod: "invoices-7d4f9-" + ns}, filepath.Join(dir, ns), payments(ns)); err != nil {
			return "", nil, err
		}
		if err := fill(ctx, db, store.Producer{ID: "control/" + ns, Kind: "control"}, filepath.Join(dir, "control-"+ns), policies(ns)); err != nil {
			return "", nil, err
		}
	}
	cert := filepath.Join(dir, "page")
	authority, err := servers.NewAuthority("review page", filepath.Join(dir, "ca.pem"))
	if err != nil {
		return "", nil, err
	}
	if err := authority.Issue(cert+".pem", cert+".key", "127.0.0.1"); err != nil {
		return "", nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = "https://" + ln.Addr().String()
	op, err := servers.StartOIDC(ctx, servers.OIDCOptions{
		Clients: []map[string]any{{"client_id": "page", "client_secret": "page-secret", "redirect_uris": []string{address + "/login/finish"},
			"response_types": []string{"code"}, "grant_types": []string{"authorization_code"}, "token_endpoint_auth_method": "client_secret_basic"}},
		People: map[string]map[string]any{
			"ada": {"email": "ada@example.com", "email_verified": true, "groups": []string{"security"}},
			"vic": {"email": "vic@example.com", "email_verified": true, "groups": []string{"payments"}},
			"zoe": {"email": "zoe@example.com", "email_verified": true, "groups": []string{"kitchen"}},
		},
	})
	if err != nil {
		return "", nil, err
	}
	pw := secret.New("page-secret")
	page, err := ui.New(ui.Config{
		Store: db, Hosts: []string{ln.Addr().String()}, Record: func(context.Context, *audit.Record) error { return nil },
		Revoke: func(_ context.Context, o ui.Order) (string, error) {
			return "A Revocation was created for " + o.Handle + o.Task + ".", nil
		},
		Policies: ui.Policies{Reach: reach},
		OIDC: &ui.OIDC{Issuer: op.URL, ClientID: "page", ClientSecret: &pw, URL: address, Grants: []ui.Grant{
			{Role: ui.Auditor, Namespaces: []string{ui.AllNamespaces}, Groups: []string{"security"}},
			{Role: ui.Revoker, Namespaces: []string{ui.AllNamespaces}, Groups: []string{"security"}},
			{Role: ui.Viewer, Namespaces: []string{"payments"}, Groups: []string{"payments"}},
		}},
	})
	if err != nil {
		return "", nil, err
	}
	// Chromium breaks its first connection off, to ask whether the certificate is
	// welcome; nobody wants to read that.
	srv := &http.Server{Handler: page, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go func() { _ = srv.ServeTLS(ln, cert+".pem", cert+".key") }()
	return address, func() {
		_ = srv.Close()
		op.Close()
		_ = db.Close()
	}, nil
}

// reach stands for the control plane's policies.
func reach(_ context.Context, w *audit.Workload) ([]ui.Reach, error) {
	p := w.Namespace + "/invoices"
	return []ui.Reach{
		{Policy: p, Rule: "read-payments", Action: "allow", Hosts: []string{"s3.eu-west-1.amazonaws.com"}, Methods: []string{"GET"}, Paths: []string{"/payments/**"}, Provider: "payments-bucket"},
		{Policy: p, Rule: "write-ledger", Action: "allow", Hosts: []string{"ledger.example.com"}, Methods: []string{"POST"}, Paths: []string{"/v1/entries"}, Provider: "ledger"},
	}, nil
}

func fill(ctx context.Context, db *store.DB, p store.Producer, dir string, records []audit.Record) error {
	lines, err := spool(dir, records)
	if err != nil {
		return err
	}
	_, err = db.Append(ctx, p, lines)
	return err
}
