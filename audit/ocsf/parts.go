package ocsf

import (
	"cmp"
	"net"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Severities.
const (
	severityInfo   = 1
	severityLow    = 2
	severityMedium = 3
	severityHigh   = 4
)

// Captions of the identifiers that events use.
//
//nolint:gochecknoglobals // constant tables
var (
	severities   = map[int]string{severityInfo: "Informational", severityLow: "Low", severityMedium: "Medium", severityHigh: "High"}
	statuses     = map[int]string{0: "Unknown", 1: "Success", 2: "Failure"}
	actions      = map[int]string{0: "Unknown", 1: "Allowed", 2: "Denied", 4: "Modified"}
	dispositions = map[int]string{0: "Unknown", 1: "Allowed", 2: "Blocked", 11: "Corrected", 19: "Alert", 24: "Access Revoked", 26: "Unauthorized", 27: "Error"}
)

// judge says how it went: status, what the control did, and how bad it is.
func judge(e Object, status, action, disposition, severity int) {
	e["status_id"], e["status"] = status, statuses[status]
	e["action_id"], e["action"] = action, actions[action]
	e["disposition_id"], e["disposition"] = disposition, dispositions[disposition]
	e["severity_id"], e["severity"] = severity, severities[severity]
	if severity >= severityHigh || disposition == 19 {
		e["is_alert"] = true
	}
}

// result tells the outcome of a request.
func result(e Object, r *audit.Record) {
	res := r.Result
	if res == nil {
		res = &audit.Result{Outcome: audit.OutcomeOpen}
	}
	modified := res.Sealed > 0 || res.Masked > 0
	switch res.Outcome {
	case audit.OutcomeOK:
		status := 1
		if res.Status >= 400 {
			status = 2
		}
		if modified {
			judge(e, status, 4, 11, severityInfo)
		} else {
			judge(e, status, 1, 1, severityInfo)
		}
	case audit.OutcomeDenied:
		judge(e, 2, 2, 2, severityLow)
	case audit.OutcomeError:
		judge(e, 2, 1, 27, severityLow)
	case audit.OutcomeCanceled:
		judge(e, 2, 1, 1, severityInfo)
	case audit.OutcomeRevoked:
		judge(e, 2, 2, 24, severityLow)
	case audit.OutcomeLeak:
		judge(e, 2, 2, 2, severityHigh)
	default: // unknown, open
		judge(e, 0, 0, 0, severityMedium)
		if res.Outcome == audit.OutcomeOpen || r.Type == audit.TypeBegin {
			e["severity_id"], e["severity"] = severityInfo, severities[severityInfo]
		}
	}
	if res.Status != 0 {
		e["status_code"] = strconv.Itoa(res.Status)
	}
	put(e, "status_detail", detail(r))
	un := unmapped(e)
	put(un, "outcome", res.Outcome)
	put(un, "upstream_request_id", res.UpstreamRequestID)
	putNumber(un, "sealed", int64(res.Sealed))
	putNumber(un, "masked", int64(res.Masked))
	if s := r.Steps; s != nil {
		un["steps"] = s
		if s.Ended > 0 && !r.Time.IsZero() {
			end := r.Time.Add(time.Duration(s.Ended) * time.Microsecond)
			e["start_time"], e["end_time"], e["duration"] = millis(r.Time), millis(end), millis(end)-millis(r.Time)
		}
	}
}

func detail(r *audit.Record) string {
	if r.Result != nil && r.Result.ErrorKind != "" {
		return r.Result.ErrorKind
	}
	if r.Decision != nil {
		return cmp.Or(r.Decision.Code, r.Decision.Reason)
	}
	return ""
}

// decision tells policy and rule.
func decision(e Object, d *audit.Decision) {
	if d == nil {
		return
	}
	if d.Policy != "" {
		p := Object{"name": d.Policy, "type": "AccessPolicy", "is_applied": true}
		put(p, "version", d.Version)
		e["policy"] = p
	}
	if d.Rule != "" {
		rule := Object{"name": d.Rule}
		put(rule, "version", d.Version)
		put(rule, "desc", d.Reason)
		e["firewall_rule"] = rule
	}
	un := unmapped(e)
	put(un, "verdict", d.Verdict)
	if d.WouldDeny {
		un["would_deny"] = true
	}
}

// actor is who called: the human is the user, the agent the application.
func actor(e Object, r *audit.Record) Object {
	a := Object{}
	if h := r.Human; h != nil {
		a["user"] = human(h)
		if h.Issuer != "" {
			a["idp"] = Object{"uid": h.Issuer, "name": h.Issuer, "issuer": h.Issuer}
		}
	}
	un := unmapped(e)
	if w := r.Workload; w != nil {
		put(a, "app_uid", w.ID)
		put(a, "app_name", cmp.Or(w.ServiceAccount, w.ID))
		if w.RunID != "" {
			a["session"] = Object{"uid": w.RunID}
		}
		put(un, "posture", w.PostureDigest)
	}
	if p := r.Process; p != nil && p.PID > 0 {
		a["process"] = process(p)
	}
	if d := r.Decision; d != nil && d.Verdict != "" {
		o := Object{"decision": d.Verdict}
		if d.Policy != "" {
			o["policy"] = Object{"name": d.Policy}
		}
		a["authorizations"] = []Object{o}
	}
	if len(a) == 0 || (a["user"] == nil && a["app_uid"] == nil && a["process"] == nil && a["session"] == nil) {
		a["app_name"] = "unknown"
	}
	if len(r.Actors) > 0 {
		un["actors"] = r.Actors
	}
	if t := r.Task; t != nil {
		un["task"] = t
	}
	put(un, "owner_source", r.OwnerSource)
	return a
}

func human(h *audit.Human) Object {
	u := Object{"type_id": 1, "type": "User"}
	put(u, "uid", h.Subject)
	put(u, "name", cmp.Or(h.Email, h.Subject))
	put(u, "email_addr", email(h.Email))
	put(u, "domain", h.Issuer)
	if h.Subject == "" && h.Email == "" {
		u["name"] = "unknown"
	}
	return u
}

// email is s where the schema takes it for an address.
func email(s string) string {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || !strings.Contains(domain, ".") {
		return ""
	}
	for _, c := range domain {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return ""
		}
	}
	for _, c := range local {
		if c > 0x7e || !strings.ContainsRune("!#$%&'*+-/=?^_`{|}~.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", c) {
			return ""
		}
	}
	return s
}

func process(p *audit.Process) Object {
	o := Object{"pid": p.PID, "user": Object{"uid": strconv.FormatUint(uint64(p.UID), 10)}}
	if p.Exe != "" {
		name := path.Base(p.Exe)
		f := Object{"name": name, "path": p.Exe, "type_id": 1, "type": "Regular File"}
		if sum, ok := strings.CutPrefix(p.Digest, "sha256:"); ok {
			f["hashes"] = []Object{{"algorithm_id": 3, "algorithm": "SHA-256", "value": sum}}
		}
		o["name"], o["path"], o["file"] = name, p.Exe, f
	}
	return o
}

// source is where the call came from: the agent.
func source(r *audit.Record) Object {
	o := Object{}
	if w := r.Workload; w != nil {
		put(o, "uid", w.ID)
		put(o, "name", w.ServiceAccount)
		put(o, "instance_uid", w.RunID)
		put(o, "hostname", w.Node)
	}
	if r.Owner != "" {
		o["owner"] = Object{"name": r.Owner}
	}
	if o["uid"] == nil && o["name"] == nil && o["hostname"] == nil && o["instance_uid"] == nil {
		o["name"] = "unknown"
	}
	return o
}

// destination is where it went.
func destination(q *audit.Request) Object {
	o := Object{}
	if q == nil {
		return Object{"name": "unknown"}
	}
	put(o, "hostname", q.Host)
	if q.Port > 0 && q.Port <= 65535 {
		o["port"] = q.Port
	}
	if host, _, err := net.SplitHostPort(q.Address); err == nil {
		if ip := net.ParseIP(host); ip != nil {
			o["ip"] = ip.String()
		}
	}
	if o["hostname"] == nil && o["ip"] == nil {
		o["name"] = "unknown"
	}
	return o
}

// used tells which credential went along, under unmapped: 1.8.0 knows the token
// of an API call only by times and type.
func used(e Object, u *audit.Use) {
	if u == nil {
		return
	}
	o := Object{}
	put(o, "handle", u.Handle)
	put(o, "provider", u.Provider)
	put(o, "kind", u.Kind)
	put(o, "public_id", u.PublicID)
	put(o, "session", u.Session)
	if len(u.ScopeGranted) > 0 {
		o["scope"] = u.ScopeGranted
	}
	if u.Static {
		o["static"] = true
	}
	unmapped(e)["credential"] = o
}

// token is the credential of a call, never its value.
func token(u *audit.Use) Object {
	if u == nil || u.Handle == "" {
		return nil
	}
	o := Object{"uid": u.Handle, "type_id": 7, "type": "API Token"}
	put(o, "name", u.Provider)
	if !u.Expires.IsZero() {
		o["expiration_time"] = millis(u.Expires)
		if u.TTLSeconds > 0 {
			o["created_time"] = millis(u.Expires) - u.TTLSeconds*1000
		}
	}
	return o
}

func trace(e Object, r *audit.Record) {
	if r.Request == nil || r.Request.TraceID == "" {
		return
	}
	e["trace"] = Object{"uid": r.Request.TraceID}
	profile(e, "trace")
}

// profile adds one to those that the event names.
func profile(e Object, name string) {
	m := e["metadata"].(Object)                            //nolint:forcetypeassert // made by base
	m["profiles"] = append(m["profiles"].([]string), name) //nolint:forcetypeassert // made by base
}
