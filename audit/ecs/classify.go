package ecs

import (
	"cmp"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// class is the categorisation fields of ECS.
type class struct {
	kind     string
	category []string
	types    []string
	action   string
	outcome  string
}

func classify(r *audit.Record) class {
	switch {
	case r.Type == audit.TypeEpochOpen || r.Type == audit.TypeEpochEnd || r.Type == audit.TypeHeartbeat:
		return class{kind: "state", category: []string{"process"}, types: []string{"info"}, action: r.Type, outcome: "success"}
	case r.Event != nil:
		return ofEvent(r)
	}
	c := class{kind: "event", category: []string{"api", "web"}, types: []string{"access"}}
	switch {
	case r.SQL != nil:
		c.category, c.action = []string{"database"}, r.SQL.Operation
	case r.SSH != nil:
		c.category, c.types, c.action = []string{"session"}, []string{"info"}, r.SSH.Operation
		if r.SSH.Operation == "login" {
			c.types = []string{"start"}
		}
	case r.Request != nil && r.Request.Protocol == "tls":
		c.category, c.types = []string{"network"}, []string{"connection"}
	}
	if q := r.Request; q != nil && c.action == "" {
		c.action = q.Method
	}
	if u := r.Credential; u != nil && u.AWS != nil && u.AWS.Operation != "" {
		c.action = u.AWS.Service + ":" + u.AWS.Operation
	}
	if r.Decision != nil {
		switch r.Decision.Verdict {
		case "deny":
			c.types = append(c.types, "denied")
		case "allow", "inject", "passthrough":
			c.types = append(c.types, "allowed")
		}
	}
	c.outcome = outcome(r.Result)
	return c
}

// outcome is ECS's word: unknown where nobody saw the end.
func outcome(res *audit.Result) string {
	if res == nil {
		return "unknown"
	}
	switch res.Outcome {
	case audit.OutcomeOK:
		if res.Status >= 400 {
			return "failure"
		}
		return "success"
	case audit.OutcomeUnknown, audit.OutcomeOpen:
		return "unknown"
	default:
		return "failure"
	}
}

// ofEvent classifies by the event's name.
func ofEvent(r *audit.Record) class {
	e := r.Event
	c := class{kind: "event", action: e.Name, outcome: "success"}
	set := func(category, typ string) { c.category, c.types = []string{category}, []string{typ} }
	family, what, _ := strings.Cut(e.Name, ".")
	switch family {
	case "credential", "revocation", "revoke", "key", "identity", "broker":
		set("iam", map[string]string{"minted": "creation", "created": "creation", "issued": "creation", "revoked": "deletion", "retired": "deletion"}[what])
		c.types[0] = cmp.Or(c.types[0], "change")
	case "policy", "provider", "config", "namespace", "change":
		set("configuration", "change")
		if ch := r.Change; ch != nil {
			c.types[0] = cmp.Or(map[string]string{"create": "creation", "delete": "deletion"}[ch.Operation], "change")
		}
	case "login", "logout":
		set("authentication", "start")
		if family == "logout" {
			c.types[0] = "end"
		}
	case "task":
		set("session", map[string]string{"opened": "start", "closed": "end"}[what])
		c.types[0] = cmp.Or(c.types[0], "info")
	case "injection", "guard", "access":
		set("configuration", "access")
		if family == "guard" {
			set("api", "denied")
		}
	case "audit":
		set("database", "access")
	case "relay":
		set("api", "access")
		if what == "denied" {
			c.types[0], c.outcome = "denied", "failure"
		} else if o := e.Fields["outcome"]; o != "" && o != audit.OutcomeOK {
			c.outcome = "failure"
		}
	default: // producers, checkpoints, spools, shipping
		set("process", "info")
	}
	if failed(e) {
		c.outcome = "failure"
	}
	if alerts[e.Name] || (r.Change != nil && r.Change.Beneficiary != "") {
		c.kind = "alert"
	}
	return c
}

// failed reports whether the event tells that something did not come about.
func failed(e *audit.Event) bool {
	switch e.Name {
	case audit.EventTaskRefused, audit.EventPolicyRejected, audit.EventInjectionDenied, audit.EventGuardDenied, audit.EventIdentityDenied, audit.EventBrokerDenied,
		audit.EventLoginFailed, audit.EventAccessRejected, audit.EventProducerRejected, audit.EventCheckpointFailed, audit.EventShipRejected:
		return true
	case audit.EventCredentialRevoked:
		return e.Fields["result"] != "" && e.Fields["result"] != "revoked"
	default:
		return false
	}
}

// alerts are the events that somebody should look at.
//
//nolint:gochecknoglobals // a constant set
var alerts = map[string]bool{
	audit.EventProducerLost: true, audit.EventProducerGap: true, audit.EventProducerForged: true, audit.EventProducerRejected: true,
	audit.EventCheckpointFailed: true, audit.EventShipRejected: true, audit.EventDropped: true, audit.EventRemoved: true, audit.EventDamaged: true,
}
