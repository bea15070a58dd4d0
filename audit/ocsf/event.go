package ocsf

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// ofEvent maps what is not a request, by its name. docs/audit-events.md has the
// table.
func ofEvent(r *audit.Record) []Object {
	f := r.Event.Fields
	switch r.Event.Name {
	case audit.EventCredentialMinted:
		return []Object{minted(r), granted(r)}
	case audit.EventCredentialRevoked, audit.EventRevocation, audit.EventRevokeOrdered:
		return []Object{revoked(r)}
	case audit.EventTaskOpened, audit.EventLoginOK:
		return []Object{session(r, 1, "Logon", true)}
	case audit.EventTaskRefused, audit.EventLoginFailed:
		return []Object{session(r, 1, "Logon", false)}
	case audit.EventTaskClosed, audit.EventLogout:
		return []Object{session(r, 2, "Logoff", true)}
	case audit.EventIdentityIssued:
		return []Object{session(r, 3, "Authentication Ticket", true)}
	case audit.EventIdentityDenied, audit.EventBrokerDenied:
		return []Object{session(r, 3, "Authentication Ticket", false)}
	case audit.EventPolicyChanged, audit.EventProviderChanged, audit.EventConfigChanged, audit.EventPolicyBundle,
		audit.EventPolicyLoaded, audit.EventPolicyRejected, audit.EventChangeRequested, audit.EventNamespaceChanged,
		audit.EventKeyCreated, audit.EventKeyRotated, audit.EventKeyRetired:
		return []Object{managed(r)}
	case audit.EventInjectionDone, audit.EventInjectionSkipped, audit.EventInjectionOptedOut, audit.EventInjectionDenied, audit.EventGuardDenied:
		return []Object{admitted(r)}
	case audit.EventAuditQuery, audit.EventAuditExport, audit.EventAccessRejected:
		return []Object{reviewed(r)}
	case audit.EventProducerLost, audit.EventProducerGap, audit.EventProducerForged, audit.EventProducerRejected,
		audit.EventCheckpointFailed, audit.EventShipRejected, audit.EventDropped, audit.EventRemoved, audit.EventDamaged, audit.EventTailCut:
		e := told(r, appError, 1, "General Error")
		severity := severityHigh
		if r.Event.Name == audit.EventTailCut {
			severity = severityMedium
		}
		judge(e, 2, 0, 19, severity)
		return []Object{e}
	case "relay.sent", "relay.ended", "relay.denied":
		return []Object{relayed(r)}
	default:
		e := told(r, baseEvent, other, cmp.Or(r.Event.Name, "unknown"))
		judge(e, 1, 0, 0, severityInfo)
		put(e, "status_detail", f["reason"])
		return []Object{e}
	}
}

// told is the base of an event, its fields and what it is about.
func told(r *audit.Record, c class, activity int, name string, profiles ...string) Object {
	e := base(r, c, activity, name, profiles...)
	un := unmapped(e)
	if len(r.Event.Fields) > 0 {
		un["fields"] = r.Event.Fields
	}
	parts := []string{r.Event.Name}
	keys := make([]string, 0, len(r.Event.Fields))
	for k := range r.Event.Fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if v := r.Event.Fields[k]; len(v) <= 128 {
			parts = append(parts, k+"="+v)
		}
	}
	e["message"] = strings.Join(parts, " ")
	return e
}

// person is who did it: the principal of a change, whom the event names, or the
// human of the task.
func person(r *audit.Record) Object {
	f := r.Event.Fields
	switch {
	case r.Change != nil && r.Change.By != nil:
		by := r.Change.By
		u := Object{"name": cmp.Or(by.Username, "unknown")}
		put(u, "uid", by.UID)
		put(u, "email_addr", email(by.Username))
		if len(by.Groups) > 0 {
			groups := make([]Object, len(by.Groups))
			for i, g := range by.Groups {
				groups[i] = Object{"name": cmp.Or(g, "unknown")}
			}
			u["groups"] = groups
		}
		u["type_id"], u["type"] = 1, "User"
		if strings.HasPrefix(by.Username, "system:") {
			u["type_id"], u["type"] = 4, "Service"
		}
		return u
	case r.Human != nil:
		return human(r.Human)
	case f["subject"] != "":
		u := Object{"uid": f["subject"], "name": cmp.Or(f["by"], f["subject"]), "type_id": 1, "type": "User"}
		put(u, "email_addr", email(f["by"]))
		put(u, "domain", cmp.Or(f["issuer"], f["subject_issuer"]))
		return u
	case f["by"] != "":
		u := Object{"name": f["by"], "type_id": 0, "type": "Unknown"}
		put(u, "email_addr", email(f["by"]))
		return u
	}
	return nil
}

// agent is the workload as a user: the one who gets a credential.
func agent(r *audit.Record) Object {
	id := r.Event.Fields["workload"]
	if r.Workload != nil {
		id = cmp.Or(r.Workload.ID, id)
	}
	if id == "" {
		return nil
	}
	return Object{"uid": id, "name": id, "type_id": 4, "type": "Service"}
}

// subject is the one the event is about, and never nothing.
func subject(users ...Object) Object {
	for _, u := range users {
		if u != nil {
			return u
		}
	}
	return Object{"name": "unknown", "type_id": 0, "type": "Unknown"}
}

// by says who acted: the person, if any, by the agent, if any.
func by(e Object, r *audit.Record) {
	a := actor(e, r)
	if p := person(r); p != nil {
		a["user"] = p
	}
	if id := r.Event.Fields["workload"]; id != "" && a["app_uid"] == nil {
		a["app_uid"] = id
	}
	if a["app_name"] == "unknown" && (a["user"] != nil || a["app_uid"] != nil) {
		delete(a, "app_name")
	}
	e["actor"] = a
}

// use is the credential that an event of a sidecar, or of the broker, is about.
func use(r *audit.Record) audit.Use {
	f := r.Event.Fields
	var u audit.Use
	if r.Credential != nil {
		u = *r.Credential
	}
	u.Handle, u.Provider, u.Kind = cmp.Or(u.Handle, f["handle"]), cmp.Or(u.Provider, f["provider"]), cmp.Or(u.Kind, f["kind"])
	u.PublicID, u.Session = cmp.Or(u.PublicID, f["public_id"]), cmp.Or(u.Session, f["role"])
	if u.ScopeGranted == nil {
		u.ScopeGranted = strings.Fields(f["scope"])
	}
	if t, err := time.Parse(time.RFC3339, f["expires"]); err == nil && u.Expires.IsZero() {
		u.Expires = t
	}
	if n, err := strconv.ParseInt(f["ttl_s"], 10, 64); err == nil && u.TTLSeconds == 0 {
		u.TTLSeconds = n
	}
	return u
}

// minted tells the minting of a credential as a request for a service ticket:
// the agent proved who it is to the issuer, and got a credential for a service.
func minted(r *audit.Record) Object {
	e := told(r, auth, 4, "Service Ticket Request")
	u := use(r)
	by(e, r)
	e["user"] = subject(agent(r), person(r))
	protocol, name := 99, cmp.Or(u.Kind, "unknown")
	if u.Kind == "bearer" || u.Kind == "dpop" {
		protocol, name = 6, "OAUTH 2.0"
	}
	e["auth_protocol_id"], e["auth_protocol"] = protocol, name
	e["service"] = Object{"name": cmp.Or(u.Provider, "unknown")}
	tok := Object{"uid": cmp.Or(u.Handle, "unknown"), "type_id": 99, "type": cmp.Or(u.Kind, "credential"), "is_renewable": false, "created_time": millis(r.Time)}
	if !u.Expires.IsZero() {
		tok["expiration_time"] = millis(u.Expires)
	}
	e["authentication_token"] = tok
	e["session"] = sessionOf(r, &u)
	if d := target(r.Event.Fields["destination"]); d != nil {
		e["dst_endpoint"] = d
	}
	e["is_remote"] = true
	used(e, &u)
	judge(e, 1, 1, 1, severityInfo)
	return e
}

// granted tells what the credential may do.
func granted(r *audit.Record) Object {
	e := told(r, authorize, 1, "Assign Privileges")
	m := e["metadata"].(Object)                  //nolint:forcetypeassert // made by base
	m["uid"] = m["uid"].(string) + "/privileges" //nolint:forcetypeassert // made by base
	u := use(r)
	by(e, r)
	e["user"] = subject(agent(r), person(r))
	e["privileges"] = privileges(&u)
	e["session"] = sessionOf(r, &u)
	if d := target(r.Event.Fields["destination"]); d != nil {
		e["dst_endpoint"] = d
	}
	used(e, &u)
	judge(e, 1, 1, 1, severityInfo)
	return e
}

// revoked tells the end of a credential as a revocation of privileges. It fails
// where the issuer would not, or cannot, end it: a log-off, the other class that
// offers itself, would claim that the session is gone.
func revoked(r *audit.Record) Object {
	e := told(r, userAccess, 2, "Revoke Privileges")
	f := r.Event.Fields
	u := use(r)
	by(e, r)
	e["user"] = subject(agent(r), person(r))
	e["privileges"] = privileges(&u)
	name := cmp.Or(u.Handle, f["id"], "unknown")
	e["resources"] = []Object{{"uid": name, "name": name, "type": cmp.Or(u.Kind, "credential"), "role_id": 1, "role": "Target"}}
	used(e, &u)
	put(e, "status_detail", cmp.Or(f["reason"], f["result"]))
	if r.Event.Name == audit.EventCredentialRevoked && f["result"] != "" && f["result"] != "revoked" {
		judge(e, 2, 2, 24, severityLow)
		e["status_code"] = f["result"]
	} else {
		judge(e, 1, 2, 24, severityInfo)
	}
	return e
}

// privileges are the scopes; without any, that it was not said.
func privileges(u *audit.Use) []string {
	if len(u.ScopeGranted) == 0 {
		return []string{"not stated by the issuer"}
	}
	return u.ScopeGranted
}

func sessionOf(r *audit.Record, u *audit.Use) Object {
	s := Object{"uid": cmp.Or(u.Handle, "unknown"), "created_time": millis(r.Time), "is_remote": true}
	put(s, "issuer", u.Provider)
	put(s, "uid_alt", u.Session)
	put(s, "credential_uid", u.PublicID)
	if !u.Expires.IsZero() {
		s["expiration_time"] = millis(u.Expires)
	}
	return s
}

// target reads scheme://host:port.
func target(s string) Object {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		rest = s
	}
	if rest == "" {
		return nil
	}
	name, port, ok := cutPort(rest)
	o := Object{"hostname": name}
	if n, err := strconv.Atoi(port); ok && err == nil && n >= 0 && n <= 65535 {
		o["port"] = n
	}
	return o
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || strings.HasSuffix(s, "]") {
		return strings.Trim(s, "[]"), "", false
	}
	return strings.Trim(s[:i], "[]"), s[i+1:], true
}

// session tells tasks, log-ins at the review page and identity documents.
func session(r *audit.Record, activity int, name string, ok bool) Object {
	e := told(r, auth, activity, name)
	f := r.Event.Fields
	by(e, r)
	service, uid := "attache review page", ""
	switch {
	case strings.HasPrefix(r.Event.Name, "task."):
		service, uid = "attache tasks", f["task"]
		e["user"] = subject(person(r), agent(r))
	case strings.HasPrefix(r.Event.Name, "identity."), r.Event.Name == audit.EventBrokerDenied:
		service, uid = "attache identities", cmp.Or(f["serial"], f["jti"])
		e["user"] = subject(agent(r), person(r))
	default:
		e["user"] = subject(person(r))
		e["auth_protocol_id"], e["auth_protocol"] = 4, "OpenID"
	}
	e["service"] = Object{"name": service}
	if uid != "" {
		s := Object{"uid": uid}
		if t, err := time.Parse(time.RFC3339, f["expires"]); err == nil {
			s["expiration_time"] = millis(t)
		}
		e["session"] = s
	}
	put(e, "status_detail", cmp.Or(f["reason"], f["code"], f["error"]))
	if ok {
		judge(e, 1, 1, 1, severityInfo)
	} else {
		judge(e, 2, 2, 2, severityLow)
	}
	return e
}

// managed tells changes of documents and keys.
func managed(r *audit.Record) Object {
	f := r.Event.Fields
	activity, name := 3, "Update"
	if r.Change != nil {
		switch r.Change.Operation {
		case "create":
			activity, name = 1, "Create"
		case "delete":
			activity, name = 4, "Delete"
		}
	}
	ok := true
	switch r.Event.Name {
	case audit.EventKeyCreated:
		activity, name = 1, "Create"
	case audit.EventKeyRetired:
		activity, name = 9, "Disable"
	case audit.EventPolicyLoaded, audit.EventPolicyBundle:
		activity, name = 10, "Activate"
	case audit.EventPolicyRejected:
		activity, name, ok = 10, "Activate", false
	}
	e := told(r, entity, activity, name)
	by(e, r)
	before, after := entities(r)
	e["entity"] = before
	if after != nil {
		e["entity_result"] = after
	}
	put(e, "status_detail", cmp.Or(f["reason"], f["error"]))
	severity := severityInfo
	disposition := 1
	if r.Change != nil && r.Change.Beneficiary != "" {
		severity, disposition = severityHigh, 19
	}
	if ok {
		judge(e, 1, 1, disposition, severity)
	} else {
		judge(e, 2, 2, 2, severityLow)
	}
	return e
}

// entities are the document as it was and as it is.
func entities(r *audit.Record) (before, after Object) {
	f := r.Event.Fields
	c := r.Change
	if c == nil {
		o := Object{"name": cmp.Or(f["name"], f["key"], f["key_id"], f["version"], r.Event.Name)}
		put(o, "uid", cmp.Or(f["key_id"], f["version"]))
		put(o, "version", f["version"])
		o["type_id"], o["type"] = 99, strings.SplitN(r.Event.Name, ".", 2)[0]
		return o, nil
	}
	name := cmp.Or(c.Name, c.Kind)
	if c.Namespace != "" {
		name = c.Namespace + "/" + name
	}
	make := func(version string) Object {
		o := Object{"name": name, "uid": c.Kind + " " + name, "type_id": 99, "type": c.Kind}
		if strings.HasSuffix(c.Kind, "Policy") {
			o["type_id"], o["type"] = 5, "Policy"
		}
		put(o, "version", version)
		return o
	}
	before = make(c.VersionBefore)
	if c.Operation == "delete" {
		return before, nil
	}
	after = make(c.VersionAfter)
	data := Object{}
	put(data, "diff", c.Diff)
	put(data, "text", c.Text)
	put(data, "beneficiary", c.Beneficiary)
	if len(data) > 0 {
		after["data"] = data
	}
	return before, after
}

// admitted tells what the webhook did with a request to the Kubernetes API.
func admitted(r *audit.Record) Object {
	f := r.Event.Fields
	verb, what := cmp.Or(f["verb"], "create"), cmp.Or(f["resource"], "pods")
	if f["subresource"] != "" {
		what += "/" + f["subresource"]
	}
	activity := byVerb(verb)
	if verb == "connect" {
		activity = other
	}
	e := told(r, api, activity, crud[activity])
	by(e, r)
	e["api"] = Object{"operation": verb + " " + what, "service": Object{"name": "kubernetes"}, "request": Object{"uid": cmp.Or(f["request"], r.ID, "unknown")}}
	src := Object{"name": "unknown"}
	if p := person(r); p != nil {
		src["name"] = p["name"]
	}
	e["src_endpoint"] = src
	name := cmp.Or(f["name"], f["controller"], "unknown")
	res := Object{"name": name, "type": what, "role_id": 1, "role": "Target"}
	put(res, "namespace", f["namespace"])
	e["resources"] = []Object{res}
	if f["policy"] != "" {
		e["policy"] = Object{"name": f["policy"], "is_applied": true}
	}
	put(e, "status_detail", f["reason"])
	switch r.Event.Name {
	case audit.EventInjectionDone:
		judge(e, 1, 4, 11, severityInfo)
	case audit.EventInjectionDenied, audit.EventGuardDenied:
		judge(e, 2, 2, 2, severityMedium)
	case audit.EventInjectionOptedOut:
		judge(e, 1, 1, 1, severityMedium)
	default:
		judge(e, 1, 1, 1, severityInfo)
	}
	return e
}

// relayed tells what the relay of the control plane did for a sidecar, whose own
// record of the request it names.
func relayed(r *audit.Record) Object {
	f := r.Event.Fields
	activity := byMethod(f["method"])
	e := told(r, api, activity, crud[activity])
	by(e, r)
	operation := cmp.Or(strings.TrimSpace(f["method"]+" "+f["path"]), "unknown")
	e["api"] = Object{"operation": operation, "request": Object{"uid": cmp.Or(f["record"], r.ID, "unknown")}}
	e["src_endpoint"] = source(r)
	if d := target(f["destination"]); d != nil && d["hostname"] != "" {
		e["dst_endpoint"] = d
	}
	uid := cmp.Or(f["destination"]+f["path"], "unknown")
	e["resources"] = []Object{{"uid": uid, "name": uid, "type": "url", "role_id": 1, "role": "Target"}}
	if f["policy"] != "" {
		e["policy"] = Object{"name": f["policy"], "type": "AccessPolicy", "is_applied": true}
	}
	used(e, r.Credential)
	put(e, "status_code", f["status"])
	put(e, "status_detail", cmp.Or(f["code"], f["reason"]))
	switch {
	case r.Event.Name == "relay.denied":
		judge(e, 2, 2, 2, severityLow)
	case r.Event.Name == "relay.sent":
		judge(e, 0, 1, 1, severityInfo)
	case f["outcome"] == audit.OutcomeOK:
		judge(e, 1, 1, 1, severityInfo)
	default:
		judge(e, 2, 1, 27, severityLow)
	}
	return e
}

// reviewed tells who read the records.
func reviewed(r *audit.Record) Object {
	f := r.Event.Fields
	activity := dsQuery
	if r.Event.Name == audit.EventAuditExport {
		activity = dsRead
	}
	e := told(r, datastore, activity, datastoreNames[activity])
	by(e, r)
	src := Object{"name": "unknown"}
	if p := person(r); p != nil {
		src["name"] = p["name"]
	}
	e["src_endpoint"] = src
	e["database"] = Object{"name": "attache records", "type_id": 99, "type": "Audit records"}
	e["type_id"], e["type"] = 1, "Database"
	if q := f["query"]; q != "" {
		e["query_info"] = Object{"query_string": q, "name": "attache query"}
	}
	put(e, "status_detail", f["reason"])
	if r.Event.Name == audit.EventAccessRejected {
		judge(e, 2, 2, 26, severityMedium)
	} else {
		judge(e, 1, 1, 1, severityInfo)
	}
	return e
}

// ofEpoch maps a producer's start, stop and heartbeat.
func ofEpoch(r *audit.Record) Object {
	c, activity, name := lifecycle, 3, "Start"
	switch r.Type {
	case audit.TypeEpochEnd:
		activity, name = 4, "Stop"
	case audit.TypeHeartbeat:
		c, activity, name = baseEvent, other, "Heartbeat"
	}
	e := base(r, c, activity, name)
	if c == lifecycle {
		e["app"] = Object{"name": "Attaché", "vendor_name": "Attaché", "uid": "attache"}
	}
	if r.Event != nil && len(r.Event.Fields) > 0 {
		unmapped(e)["fields"] = r.Event.Fields
	}
	e["message"] = r.Type
	judge(e, 1, 0, 0, severityInfo)
	return e
}
