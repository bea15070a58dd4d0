package trail

import (
	"context"
	"strconv"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/relay"
)

// Identity records an identity document that was issued, or a refusal. It fits
// issuer.Config.Record: what cannot be recorded is not issued.
func (t *Trail) Identity(ctx context.Context, e issuer.Event) error {
	if t == nil || e.Outcome == "later" { // comes again by itself
		return nil
	}
	name := audit.EventIdentityIssued
	if e.Outcome != "issued" {
		name = audit.EventIdentityDenied
	}
	fields := map[string]string{
		"kind": e.Kind, "reason": e.Reason, "pod": e.Pod, "pod_uid": e.UID, "namespace": e.Namespace,
		"serial": e.Serial, "jti": e.JTI, "audience": e.Audience,
	}
	if !e.Expires.IsZero() {
		fields["expires"] = e.Expires.UTC().Format(time.RFC3339)
	}
	if e.Renewal {
		fields["renewal"] = strconv.FormatBool(true)
	}
	r := event(name, fields)
	r.Time = e.Time
	r.Workload = &audit.Workload{ID: e.ID, Namespace: e.Namespace, Node: e.Node}
	if name == audit.EventIdentityDenied {
		return t.once(ctx, r, name, e.Kind, e.UID, e.Pod, e.Reason)
	}
	return t.Write(ctx, r)
}

// Mint records a credential that the broker gave, or refused. It fits
// broker.Config.Record: what cannot be recorded is not handed out.
func (t *Trail) Mint(ctx context.Context, e broker.Event) error {
	if t == nil {
		return nil
	}
	name := audit.EventCredentialMinted
	if e.Result != "minted" {
		name = EventBrokerDenied
	}
	r := event(name, map[string]string{
		"by": "broker", "result": e.Result, "reason": e.Reason, "pod": e.Pod, "pod_uid": e.PodUID, "namespace": e.Namespace,
		"destination": e.Destination, "method": e.Method, "record": e.Record, "rule": e.Rule, "root": e.Root,
	})
	r.Time, r.Owner = e.Time, e.Owner
	r.Workload = &audit.Workload{ID: e.Workload, Namespace: e.Namespace}
	r.Credential = &audit.Use{Handle: e.Handle, Provider: e.Provider, ScopeGranted: e.Scope, Expires: e.Expires}
	if !e.Expires.IsZero() {
		r.Credential.TTLSeconds = int64(e.Expires.Sub(e.Time).Seconds())
	}
	if name == EventBrokerDenied {
		return t.once(ctx, r, name, e.PodUID, e.Provider, e.Rule, e.Reason)
	}
	return t.Write(ctx, r)
}

// Relayed records a call that the relay put a credential on. It fits
// relay.Config.Record: what cannot be recorded is not sent. The sidecar's own
// record, which it names, says what was asked and what came of it.
func (t *Trail) Relayed(ctx context.Context, e relay.Event) error {
	if t == nil {
		return nil
	}
	name := EventRelay + e.Result
	fields := map[string]string{
		"pod": e.Pod, "pod_uid": e.PodUID, "namespace": e.Namespace, "destination": e.Destination, "method": e.Method, "path": e.Path, "record": e.Record,
		"policy": e.Policy, "rule": e.Rule, "version": e.Version, "root": e.Root, "address": e.Address, "outcome": e.Outcome, "code": e.Code, "reason": e.Reason,
	}
	for k, n := range map[string]int64{"status": int64(e.Status), "unrecorded": int64(e.Unrecorded), "bytes_up": e.BytesUp, "bytes_down": e.BytesDown} {
		if n > 0 {
			fields[k] = strconv.FormatInt(n, 10)
		}
	}
	r := event(name, fields)
	r.Time, r.Owner = e.Time, e.Owner
	r.Workload = &audit.Workload{ID: e.Workload, Namespace: e.Namespace}
	if e.Handle != "" {
		r.Credential = &audit.Use{Handle: e.Handle, Provider: e.Provider}
	}
	if e.Result == "denied" && !e.Counted { // its reason may hold the caller's own words, another each time
		return t.once(ctx, r, name, e.PodUID, e.Provider, e.Rule, e.Code)
	}
	return t.Write(ctx, r)
}
