package ocsf

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// ofRequest maps HTTP, gRPC, WebSocket and AWS to API Activity: it alone has an
// operation and resources, which is what reviewers ask for. HTTP Activity (4002)
// is about traffic.
func ofRequest(r *audit.Record) Object {
	q := r.Request
	if q == nil {
		q = &audit.Request{}
	}
	activity, name, operation := operationOf(r, q)
	e := base(r, api, activity, name)
	e["actor"] = actor(e, r)
	e["src_endpoint"], e["dst_endpoint"] = source(r), destination(q)
	call := Object{"operation": operation, "request": Object{"uid": cmp.Or(r.ID, "unknown")}}
	if service := cmp.Or(awsService(r), grpcService(q), q.Host); service != "" {
		call["service"] = Object{"name": service}
	}
	if t := token(r.Credential); t != nil {
		call["token"] = t
	}
	if res := r.Result; res != nil && (res.Status != 0 || res.ErrorKind != "") {
		answer := Object{}
		putNumber(answer, "code", int64(res.Status))
		put(answer, "error", res.ErrorKind)
		if res.GRPCStatus != "" {
			answer["message"] = "grpc-status " + res.GRPCStatus
		}
		call["response"] = answer
	}
	e["api"] = call
	httpParts(e, r, q)
	e["resources"] = resources(r, q)
	inCloud(e, r.Credential)
	decision(e, r.Decision)
	used(e, r.Credential)
	result(e, r)
	trace(e, r)
	e["message"] = message(r, operation, q.Host)
	un := unmapped(e)
	put(un, "door", q.Door)
	if len(q.QueryKeys) > 0 {
		un["query_keys"] = q.QueryKeys
	}
	if len(q.Removed) > 0 {
		un["removed"] = q.Removed
	}
	return e
}

// operationOf tells what was asked for: the operation of AWS, the method of a
// gRPC service, or the HTTP method on the template of the path.
func operationOf(r *audit.Record, q *audit.Request) (activity int, name, operation string) {
	if u := r.Credential; u != nil && u.AWS != nil && u.AWS.Operation != "" {
		a := byVerb(u.AWS.Operation)
		return a, crud[a], u.AWS.Operation
	}
	switch q.Protocol {
	case "grpc":
		a := byVerb(path.Base(q.Path))
		return a, crud[a], cmp.Or(strings.TrimPrefix(q.Path, "/"), "unknown")
	case "websocket":
		return other, "Connect", cmp.Or(strings.TrimSpace("WEBSOCKET "+cmp.Or(q.PathTemplate, q.Path)), "unknown")
	}
	a := byMethod(q.Method)
	return a, crud[a], cmp.Or(strings.TrimSpace(q.Method+" "+cmp.Or(q.PathTemplate, q.Path)), "unknown")
}

// inCloud adds the profile of calls to a cloud.
func inCloud(e Object, u *audit.Use) {
	if u == nil || u.AWS == nil {
		return
	}
	c := Object{"provider": "AWS"}
	put(c, "region", u.AWS.Region)
	if u.AWS.Account != "" {
		c["account"] = Object{"uid": u.AWS.Account}
	}
	e["cloud"] = c
	profile(e, "cloud")
}

func awsService(r *audit.Record) string {
	if r.Credential != nil && r.Credential.AWS != nil {
		return r.Credential.AWS.Service
	}
	return ""
}

func grpcService(q *audit.Request) string {
	if q.Protocol != "grpc" || strings.Count(q.Path, "/") < 2 {
		return ""
	}
	return strings.TrimPrefix(path.Dir(q.Path), "/")
}

// knownMethods are those of the schema's enumeration; others stand in the
// operation only.
//
//nolint:gochecknoglobals // a constant list
var knownMethods = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

func httpParts(e Object, r *audit.Record, q *audit.Request) {
	h := Object{"uid": cmp.Or(r.ID, "unknown")}
	if slices.Contains(knownMethods, q.Method) {
		h["http_method"] = q.Method
	}
	put(h, "user_agent", q.UserAgent)
	put(h, "version", strings.TrimPrefix(q.HTTPVersion, "HTTP/"))
	if q.Path != "" {
		u := Object{"path": q.Path}
		put(u, "scheme", q.Scheme)
		put(u, "hostname", q.Host)
		if q.Port > 0 && q.Port <= 65535 {
			u["port"] = q.Port
		}
		h["url"] = u
	}
	if res := r.Result; res != nil {
		putNumber(h, "body_length", res.BytesUp)
		if res.Status != 0 {
			a := Object{"code": res.Status, "body_length": res.BytesDown}
			if s := r.Steps; s != nil && s.FirstByte > 0 {
				a["latency"] = s.FirstByte / 1000
			}
			e["http_response"] = a
		}
	}
	e["http_request"] = h
}

// resources are what the call was about: the ARNs that AWS would check, or the
// address.
func resources(r *audit.Record, q *audit.Request) []Object {
	if u := r.Credential; u != nil && u.AWS != nil && len(u.AWS.Resources) > 0 {
		l := make([]Object, 0, len(u.AWS.Resources))
		for _, arn := range u.AWS.Resources {
			o := Object{"uid": cmp.Or(arn, "unknown"), "name": cmp.Or(arn, "unknown"), "type": cmp.Or(u.AWS.Service, "aws"), "role_id": 1, "role": "Target"}
			put(o, "region", u.AWS.Region)
			l = append(l, o)
		}
		return l
	}
	host := cmp.Or(q.Host, "unknown")
	uid := host
	if q.Port > 0 {
		uid += ":" + strconv.Itoa(q.Port)
	}
	if q.Scheme != "" {
		uid = q.Scheme + "://" + uid
	}
	return []Object{{"uid": uid + q.Path, "name": host + cmp.Or(q.PathTemplate, q.Path), "type": "url", "hostname": host, "role_id": 1, "role": "Target"}}
}

// message is the event in a line for people.
func message(r *audit.Record, operation, host string) string {
	outcome := audit.OutcomeOpen
	if r.Result != nil {
		outcome = r.Result.Outcome
	}
	m := operation
	if host != "" {
		m += " at " + host
	}
	m += ": " + outcome
	if r.Decision != nil && r.Decision.Reason != "" {
		m += " (" + r.Decision.Reason + ")"
	}
	return m
}
