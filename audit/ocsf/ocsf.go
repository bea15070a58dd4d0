// Package ocsf tells an audit record as events of the Open Cybersecurity Schema
// Framework (OCSF), release 1.8.0. One record is one event; the minting of a
// credential is two: who asked for it (Authentication) and what it may do
// (Authorize Session). Tests hold every event to the published schema.
package ocsf

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Version of the schema that the events follow.
const Version = "1.8.0"

// Object is an OCSF event or object.
type Object = map[string]any

// class is an event class with its category.
type class struct {
	uid, category int
	name          string
}

//nolint:gochecknoglobals // constant tables
var (
	baseEvent     = class{0, 0, "Base Event"}
	entity        = class{3004, 3, "Entity Management"}
	auth          = class{3002, 3, "Authentication"}
	authorize     = class{3003, 3, "Authorize Session"}
	userAccess    = class{3005, 3, "User Access Management"}
	network       = class{4001, 4, "Network Activity"}
	sshActivity   = class{4007, 4, "SSH Activity"}
	lifecycle     = class{6002, 6, "Application Lifecycle"}
	api           = class{6003, 6, "API Activity"}
	datastore     = class{6005, 6, "Datastore Activity"}
	appError      = class{6008, 6, "Application Error"}
	categoryNames = map[int]string{0: "Uncategorized", 3: "Identity & Access Management", 4: "Network Activity", 6: "Application Activity"}
)

// Unmapped are the attributes that an event may have under unmapped: what 1.8.0
// has no place for.
//
//nolint:gochecknoglobals // a constant table
var Unmapped = []string{
	"actors",           // the chain of agents
	"begin",            // epoch and sequence of the begin line
	"command",          // of an SSH session
	"credential",       // kind, provider, handle, scopes, public id of a credential that was used
	"door",             // how the request came in
	"epoch",            // of the producer
	"fields",           // of an event
	"outcome",          // our word for it
	"owner_source",     // where the owner was read
	"posture",          // digest over what was attested
	"query_keys",       // names of parameters
	"removed",          // credentials taken off the request
	"sealed", "masked", // of the answer
	"session",             // record that opened an SSH or database session
	"steps",               // when each step was reached
	"task",                // id, purpose, who opened it
	"unsafe",              // unsafe flags in force
	"upstream_request_id", // the far side's own id
	"verdict",             // of policy
	"would_deny",          // a policy in audit mode would have refused
}

// Events maps r. It never fails: what the schema requires and r lacks is said to
// be unknown.
func Events(r *audit.Record) []Object {
	l := events(r)
	for _, e := range l {
		tidy(e)
	}
	return l
}

func events(r *audit.Record) []Object {
	switch {
	case r.Type == audit.TypeEpochOpen || r.Type == audit.TypeEpochEnd || r.Type == audit.TypeHeartbeat:
		return []Object{ofEpoch(r)}
	case r.Event != nil:
		return ofEvent(r)
	case r.SQL != nil:
		return []Object{ofStatement(r)}
	case r.SSH != nil:
		return []Object{ofSSH(r)}
	case r.Request != nil && r.Request.Protocol == "tls":
		return []Object{ofTunnel(r)}
	default:
		return []Object{ofRequest(r)}
	}
}

// AppendJSON appends r's events to b, one a line.
func AppendJSON(b []byte, r *audit.Record) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	for _, ev := range Events(r) {
		if err := e.Encode(ev); err != nil { // maps of strings and numbers
			return b, fmt.Errorf("ocsf: encode record %s: %w", r.ID, err)
		}
	}
	return buf.Bytes(), nil
}

// base is what every event has. Profiles beside security_control are given.
func base(r *audit.Record, c class, activity int, name string, profiles ...string) Object {
	id := cmp.Or(r.ID, fmt.Sprintf("%s/%d", r.Epoch, r.Sequence))
	meta := Object{
		"version":  Version,
		"uid":      id,
		"profiles": append([]string{"security_control"}, profiles...),
		"product":  Object{"name": "Attaché", "vendor_name": "Attaché", "uid": "attache"},
		"log_name": "attache.audit", "log_version": cmp.Or(r.Schema, audit.SchemaVersion),
		"original_time": r.Time.UTC().Format(time.RFC3339Nano),
	}
	if r.Sequence != 0 && r.Sequence < 1<<53 {
		meta["sequence"] = r.Sequence
	}
	if corr := correlation(r); corr != "" {
		meta["correlation_uid"] = corr
	}
	if r.Truncated {
		meta["is_truncated"] = true
	}
	if r.Event != nil {
		meta["event_code"] = r.Event.Name
	} else if r.Decision != nil && r.Decision.Code != "" {
		meta["event_code"] = r.Decision.Code
	}
	if w := r.Workload; w != nil && w.Node != "" {
		meta["reporter"] = Object{"hostname": w.Node}
	}
	e := Object{
		"class_uid": c.uid, "class_name": c.name, "category_uid": c.category, "category_name": categoryNames[c.category],
		"activity_id": activity, "activity_name": name, "type_uid": c.uid*100 + activity, "type_name": c.name + ": " + name,
		"severity_id": severityInfo, "severity": "Informational",
		"time": millis(r.Time), "metadata": meta,
	}
	if r.Time.IsZero() {
		e["time"] = int64(0)
	}
	un := Object{}
	put(un, "epoch", r.Epoch)
	if r.BeginSequence != 0 {
		un["begin"] = Object{"epoch": r.BeginEpoch, "sequence": r.BeginSequence}
	}
	if len(r.Unsafe) > 0 {
		un["unsafe"] = r.Unsafe
	}
	e["unmapped"] = un
	return e
}

// correlation joins issuance, uses and revocation of a credential; without one,
// the requests of a task.
func correlation(r *audit.Record) string {
	if r.Credential != nil && r.Credential.Handle != "" {
		return r.Credential.Handle
	}
	if r.Event != nil {
		if h := cmp.Or(r.Event.Fields["handle"], r.Event.Fields["task"]); h != "" {
			return h
		}
	}
	if r.SQL != nil && r.SQL.Session != "" {
		return r.SQL.Session
	}
	if r.SSH != nil && r.SSH.Session != "" {
		return r.SSH.Session
	}
	if r.Task != nil {
		return r.Task.ID
	}
	return ""
}

// put sets key unless v is empty.
func put(o Object, key, v string) {
	if v != "" {
		o[key] = v
	}
}

func putNumber(o Object, key string, v int64) {
	if v != 0 {
		o[key] = v
	}
}

// unmapped is the object for what the schema has no place for.
func unmapped(e Object) Object {
	return e["unmapped"].(Object) //nolint:forcetypeassert // made by base
}

// tidy takes empty texts and objects off, which the schema does not want.
func tidy(o Object) {
	for k, v := range o {
		switch x := v.(type) {
		case string:
			if x == "" {
				delete(o, k)
			}
		case Object:
			if tidy(x); len(x) == 0 {
				delete(o, k)
			}
		case []Object:
			for _, y := range x {
				tidy(y)
			}
		}
	}
}

func millis(t time.Time) int64 { return t.UnixMilli() }
