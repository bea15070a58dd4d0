package ocsf

import (
	"cmp"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// Activities of Datastore Activity.
const (
	dsRead    = 1
	dsUpdate  = 2
	dsConnect = 3
	dsQuery   = 4
	dsCreate  = 6
	dsDelete  = 7
	dsList    = 8
)

//nolint:gochecknoglobals // constant tables
var (
	datastoreNames = map[int]string{dsRead: "Read", dsUpdate: "Update", dsConnect: "Connect", dsQuery: "Query", dsCreate: "Create", dsDelete: "Delete", dsList: "List", other: "Other"}
	statements     = map[string]int{
		"connect": dsConnect, "auth": dsConnect, "select": dsQuery, "with": dsQuery, "table": dsQuery, "values": dsQuery,
		"get": dsRead, "mget": dsRead, "hget": dsRead, "hgetall": dsRead, "fetch": dsRead, "copy": dsRead,
		"insert": dsCreate, "create": dsCreate, "set": dsUpdate, "hset": dsUpdate, "merge": dsUpdate, "update": dsUpdate, "replace": dsUpdate,
		"alter": dsUpdate, "truncate": dsDelete, "delete": dsDelete, "drop": dsDelete, "del": dsDelete, "show": dsList, "keys": dsList, "scan": dsList,
	}
	networkNames = map[int]string{1: "Open", 2: "Close", 3: "Reset", 4: "Fail", 5: "Refuse", 6: "Traffic"}
)

// ofStatement maps a statement to Datastore Activity.
func ofStatement(r *audit.Record) Object {
	q := r.SQL
	activity, ok := statements[strings.ToLower(q.Operation)]
	if !ok {
		activity = other
	}
	e := base(r, datastore, activity, datastoreNames[activity])
	e["actor"] = actor(e, r)
	dst := destination(r.Request)
	put(dst, "svc_name", q.Engine)
	e["src_endpoint"], e["dst_endpoint"] = source(r), dst
	kind, kindName := 1, "Relational"
	if q.Engine == "redis" {
		kind, kindName = 6, "NoSQL"
	}
	e["database"] = Object{"name": cmp.Or(q.Database, "unknown"), "type_id": kind, "type": kindName}
	e["type_id"], e["type"] = 1, "Database"
	if len(q.Tables) > 0 {
		e["table"] = Object{"name": q.Tables[0]}
		e["type_id"], e["type"] = 3, "Table"
	}
	if q.Statement != "" {
		info := Object{"query_string": q.Statement, "name": cmp.Or(q.Operation, "statement")}
		put(info, "uid", q.Fingerprint)
		e["query_info"] = info
	}
	decision(e, r.Decision)
	used(e, r.Credential)
	result(e, r)
	put(e, "status_code", q.Code)
	put(unmapped(e), "session", q.Session)
	e["message"] = message(r, cmp.Or(q.Operation, "statement")+" on "+cmp.Or(q.Database, "unknown"), host(r))
	return e
}

// ofSSH maps a login, a command or a forwarding to SSH Activity.
func ofSSH(r *audit.Record) Object {
	h := r.SSH
	activity := 6
	if h.Operation == "login" {
		activity = 1
	}
	activity = ended(r, activity)
	e := base(r, sshActivity, activity, networkNames[activity], "host")
	e["actor"] = actor(e, r)
	dst := destination(r.Request)
	put(dst, "svc_name", "ssh")
	e["src_endpoint"], e["dst_endpoint"] = source(r), dst
	e["auth_type_id"], e["auth_type"] = 1, "Certificate Based"
	connection(e, r, cmp.Or(h.Session, r.ID))
	decision(e, r.Decision)
	used(e, r.Credential)
	result(e, r)
	put(e, "status_code", h.ExitStatus)
	un := unmapped(e)
	put(un, "session", h.Session)
	c := Object{"operation": h.Operation}
	for key, v := range map[string]string{
		"user": h.User, "command": h.Command, "subsystem": h.Subsystem, "forward": h.Forward,
		"key_id": h.KeyID, "serial": h.Serial, "fingerprint": h.Fingerprint, "host_key": h.HostKey,
	} {
		put(c, key, v)
	}
	un["command"] = c
	e["message"] = message(r, strings.TrimSpace("ssh "+h.Operation+" "+cmp.Or(h.Command, h.Subsystem, h.Forward)), host(r))
	return e
}

// ofTunnel maps a connection whose content we do not see to Network Activity.
func ofTunnel(r *audit.Record) Object {
	activity := ended(r, 1)
	if r.Result != nil && r.Result.Outcome == audit.OutcomeOK {
		activity = 6 // whole, with its counts
	}
	e := base(r, network, activity, networkNames[activity], "host")
	e["actor"] = actor(e, r)
	e["src_endpoint"], e["dst_endpoint"] = source(r), destination(r.Request)
	e["app_protocol_name"] = "tls"
	connection(e, r, r.ID)
	decision(e, r.Decision)
	used(e, r.Credential)
	result(e, r)
	put(unmapped(e), "door", r.Request.Door)
	e["message"] = message(r, "TLS connection", host(r))
	return e
}

// ended is the activity that tells how a connection ended, or the one given.
func ended(r *audit.Record, activity int) int {
	if r.Result == nil {
		return activity
	}
	switch r.Result.Outcome {
	case audit.OutcomeDenied, audit.OutcomeLeak:
		return 5
	case audit.OutcomeError:
		return 4
	case audit.OutcomeRevoked:
		return 3
	default:
		return activity
	}
}

func connection(e Object, r *audit.Record, uid string) {
	c := Object{"direction_id": 2, "direction": "Outbound", "protocol_name": "tcp", "protocol_num": 6}
	put(c, "uid", uid)
	e["connection_info"] = c
	if res := r.Result; res != nil && (res.BytesUp > 0 || res.BytesDown > 0) {
		e["traffic"] = Object{"bytes_out": res.BytesUp, "bytes_in": res.BytesDown, "bytes": res.BytesUp + res.BytesDown}
	}
}

func host(r *audit.Record) string {
	if r.Request == nil {
		return ""
	}
	return r.Request.Host
}
