package golden

import "github.com/attache-dev/attache/audit"

// Event is a record of an event.
type Event struct {
	Name   string // of the event
	suffix string
	record audit.Record
}

// Events returns one record of each event that audit names, and of some a
// second that differs.
func Events() []Event {
	credential := map[string]string{
		"handle": Handle, "provider": "invoices", "kind": "bearer", "scope": "invoices:read", "scope_asked": "invoices:read", "ttl_s": "300",
		"expires": "2026-03-01T12:05:00Z", "workload": workload, "run": run, "task": "8c1f0d3a5b7e9124", "subject": "https://login.example.com 248289761001", "destination": "https://api.example.com:443",
	}
	with := func(m map[string]string, pairs ...string) map[string]string {
		out := map[string]string{}
		for k, v := range m {
			out[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	fields := func(pairs ...string) map[string]string { return with(nil, pairs...) }
	task := fields("task", "8c1f0d3a5b7e9124", "purpose", "close the books of May", "opened_by", "orchestrator", "workload", workload, "run", run,
		"expires", "2026-03-01T13:00:00Z", "subject", "248289761001", "subject_issuer", "https://login.example.com")
	by := &audit.Principal{Username: "ada@example.com", UID: "7c9e6679-7425-40de-944b-e07fc1f90ae7", Groups: []string{"system:authenticated"}}
	change := func(kind, op, beneficiary string) *audit.Change {
		c := &audit.Change{
			Kind: kind, Namespace: "payments", Name: "invoices", Operation: op, By: by, VersionBefore: "sha256:1f6c", VersionAfter: "sha256:8b0d",
			Diff: "-  verdict: deny\n+  verdict: inject\n", Text: "kind: " + kind + "\n", Beneficiary: beneficiary,
		}
		if op == "delete" {
			c.VersionAfter, c.Diff, c.Text = "", "", ""
		}
		return c
	}
	producer := fields("producer", "1f0d3a5b-7e91-4247-8c1f-0d3a5b7e9124", "producer_kind", "sidecar", "epoch", epoch, "from", "18", "to", "21", "reason", "the pod is gone")
	review := fields("by", "ada@example.com", "subject", "248289761001", "issuer", "https://login.example.com", "query", "owner:ada verdict:deny", "page", "/search")

	ev := func(name, suffix string, f map[string]string, c *audit.Change) Event {
		r := head()
		r.Type, r.BeginEpoch, r.BeginSequence = audit.TypeEvent, "", 0
		r.Event, r.Change = &audit.Event{Name: name, Fields: f}, c
		return Event{name, suffix, r}
	}
	broker := ev(audit.EventCredentialMinted, "-broker", fields("by", "broker", "result", "minted", "pod", "invoices-0", "namespace", "payments", "destination", "https://api.example.com:443"), nil)
	broker.record.Workload = &audit.Workload{ID: workload, Namespace: "payments"}
	broker.record.Credential = &audit.Use{Handle: Handle, Provider: "reports", Kind: "aws-session", PublicID: "ASIAIOSFODNN7EXAMPLE", TTLSeconds: 900}
	identity := func(name string) Event {
		e := ev(name, "", fields("kind", "x509", "pod", "invoices-0", "namespace", "payments", "serial", "8675309", "expires", "2026-03-01T13:00:00Z", "reason", "the pod is not bound to this node"), nil)
		e.record.Workload = &audit.Workload{ID: workload, Namespace: "payments", Node: "node-3"}
		return e
	}
	guard := ev(audit.EventGuardDenied, "", fields("request", "uid-1", "policy", "attache-guard-exec", "verb", "connect", "resource", "pods", "subresource", "exec", "namespace", "payments", "name", "invoices-0", "by", "ada@example.com", "reason", "no exec into the sidecar"),
		&audit.Change{Kind: "pods", Namespace: "payments", Name: "invoices-0", Operation: "connect", By: by})
	pod := fields("request", "uid-1", "namespace", "payments", "name", "invoices-", "service_account", "invoices", "controller", "ReplicaSet/invoices", "by", "system:serviceaccount:kube-system:replicaset-controller", "mode", "enforce", "reason", "the namespace asks for it")

	relay := func(name, suffix string, pairs ...string) Event {
		e := ev(name, suffix, fields(append([]string{"pod", "invoices-0", "namespace", "payments", "destination", "https://api.example.com:443", "method", "POST", "path", "/v1/invoices",
			"record", "rec_5f0c8d1e2b3a49586776859403122130", "policy", "payments/invoices", "rule", "write"}, pairs...)...), nil)
		e.record.Workload = &audit.Workload{ID: workload, Namespace: "payments"}
		e.record.Credential = &audit.Use{Handle: Handle, Provider: "invoices"}
		return e
	}
	return []Event{
		relay("relay.sent", ""),
		relay("relay.ended", "", "outcome", audit.OutcomeOK, "status", "201", "bytes_up", "12", "bytes_down", "1024"),
		relay("relay.ended", "-error", "outcome", audit.OutcomeError, "code", "upstream_timeout"),
		relay("relay.denied", "", "code", "policy_denied", "reason", "no rule allows it"),
		ev(audit.EventTaskOpened, "", task, nil),
		ev(audit.EventTaskClosed, "", with(task, "reason", "closed by the orchestrator"), nil),
		ev(audit.EventTaskRefused, "", fields("workload", workload, "code", "token_expired", "reason", "the human's token is expired"), nil),
		ev(audit.EventCredentialMinted, "", credential, nil),
		broker,
		ev(audit.EventCredentialRevoked, "", with(credential, "result", "revoked"), nil),
		ev(audit.EventCredentialRevoked, "-unsupported", with(credential, "result", "unsupported"), nil),
		ev(audit.EventBrokerDenied, "", fields("pod", "invoices-0", "namespace", "payments", "reason", "no rule"), nil),
		ev(audit.EventRevocation, "", fields("id", "rv-1", "reason", "stolen laptop", "credentials", "3"), nil),
		ev(audit.EventRevokeOrdered, "", with(review, "handle", Handle, "reason", "stolen laptop"), nil),
		ev(audit.EventPolicyLoaded, "", fields("version", "sha256:8b0d", "policies", "3"), nil),
		ev(audit.EventPolicyRejected, "", fields("error", "policy.yaml:3: unknown field"), nil),
		ev(audit.EventPolicyChanged, "", nil, change("AccessPolicy", "create", "")),
		ev(audit.EventPolicyChanged, "-by-beneficiary", nil, change("AccessPolicy", "update", workload)),
		ev(audit.EventPolicyChanged, "-deleted", nil, change("ClusterAccessPolicy", "delete", "")),
		ev(audit.EventProviderChanged, "", nil, change("CredentialProvider", "update", "")),
		ev(audit.EventConfigChanged, "", nil, change("AttacheConfig", "update", "")),
		ev(audit.EventNamespaceChanged, "", nil, change("Namespace", "update", "")),
		ev(audit.EventChangeRequested, "", fields("request", "uid-1"), change("AccessPolicy", "update", "")),
		ev(audit.EventPolicyBundle, "", fields("version", "sha256:8b0d", "documents", "AccessPolicy payments/invoices 3 sha256:8b0d"), nil),
		ev(audit.EventInjectionDone, "", pod, nil),
		ev(audit.EventInjectionSkipped, "", pod, nil),
		ev(audit.EventInjectionOptedOut, "", pod, nil),
		ev(audit.EventInjectionDenied, "", pod, nil),
		guard,
		ev(audit.EventKeyCreated, "", fields("key_id", "k1", "kind", "jwt"), nil),
		ev(audit.EventKeyRotated, "", fields("key_id", "k2", "kind", "jwt"), nil),
		ev(audit.EventKeyRetired, "", fields("key_id", "k1", "kind", "jwt"), nil),
		identity(audit.EventIdentityIssued),
		identity(audit.EventIdentityDenied),
		ev(audit.EventLoginOK, "", review, nil),
		ev(audit.EventLoginFailed, "", fields("reason", "the token is expired", "remote", "192.0.2.1:4711"), nil),
		ev(audit.EventLogout, "", review, nil),
		ev(audit.EventAuditQuery, "", review, nil),
		ev(audit.EventAuditExport, "", with(review, "format", "ocsf", "rows", "12"), nil),
		ev(audit.EventAccessRejected, "", with(review, "reason", "not entitled to the namespace"), nil),
		ev(audit.EventProducerLost, "", producer, nil),
		ev(audit.EventProducerReturned, "", producer, nil),
		ev(audit.EventProducerGap, "", producer, nil),
		ev(audit.EventProducerForged, "", producer, nil),
		ev(audit.EventProducerRejected, "", producer, nil),
		ev(audit.EventCheckpointMade, "", fields("number", "7", "size", "3", "root", "q1N5"), nil),
		ev(audit.EventCheckpointFailed, "", fields("number", "7", "sink", "s3", "error", "access denied"), nil),
		ev(audit.EventShipRejected, "", fields("sink", "otlp", "lines", "3", "reason", "too large"), nil),
		ev(audit.EventRetained, "", fields("before", "2026-01-01T00:00:00Z", "lines", "100"), nil),
		ev(audit.EventDropped, "", fields("segment", "1", "records", "512"), nil),
		ev(audit.EventRemoved, "", fields("segments", "1,2"), nil),
		ev(audit.EventDamaged, "", fields("segment", "0000000001.jsonl", "offset", "4096", "lines", "2"), nil),
		ev(audit.EventShipped, "", fields("segments", "1-7"), nil),
		ev(audit.EventTailCut, "", fields("offset", "4096", "bytes", "17"), nil),
	}
}
