// Package ecs tells an audit record in the fields of the Elastic Common Schema
// (ECS), which OpenTelemetry collectors and many SIEMs know. What ECS has no
// field for is under labels; nothing else is invented. The whole record stays
// the record: this is its index.
package ecs

import (
	"cmp"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Version of ECS that the fields follow; each of them is in 8.x and in 9.x.
const Version = "8.17.0"

// Attribute is one field.
type Attribute struct {
	Key   string // such as url.domain
	Value any    // string, int64, bool or []string
}

// list collects what is set.
type list []Attribute

func (l *list) text(key, v string) {
	if v != "" {
		*l = append(*l, Attribute{key, v})
	}
}

// more is text for what a section of the record may have said already.
func (l *list) more(key, v string) {
	if !slices.ContainsFunc(*l, func(a Attribute) bool { return a.Key == key }) {
		l.text(key, v)
	}
}

func (l *list) number(key string, v int64) {
	if v != 0 {
		*l = append(*l, Attribute{key, v})
	}
}

func (l *list) texts(key string, v ...string) {
	v = slices.DeleteFunc(slices.Clone(v), func(s string) bool { return s == "" })
	if len(v) > 0 {
		slices.Sort(v)
		*l = append(*l, Attribute{key, slices.Compact(v)})
	}
}

// Attributes returns what r says, in a fixed order, without its time.
func Attributes(r *audit.Record) []Attribute {
	l := make(list, 0, 48)
	l.text("ecs.version", Version)
	l.event(r)
	l.who(r)
	if r.Request != nil {
		l.request(r.Request)
	}
	l.sections(r)
	if d := r.Decision; d != nil {
		l.text("rule.name", d.Rule)
		l.text("rule.ruleset", d.Policy)
		l.text("rule.version", d.Version)
		l.text("labels.verdict", d.Verdict)
		if d.WouldDeny {
			l.text("labels.would_deny", "true")
		}
	}
	if u := r.Credential; u != nil {
		l.credential(u)
	}
	if res := r.Result; res != nil {
		l.number("http.response.status_code", int64(res.Status))
		l.number("http.request.body.bytes", res.BytesUp)
		l.number("http.response.body.bytes", res.BytesDown)
		l.text("error.type", res.ErrorKind)
		l.text("labels.outcome", res.Outcome)
		l.text("labels.grpc_status", res.GRPCStatus)
		l.text("labels.upstream_request_id", res.UpstreamRequestID)
	}
	if e := r.Event; e != nil {
		l.fields(e)
	}
	return l
}

// event says what kind of thing r is.
func (l *list) event(r *audit.Record) {
	l.text("event.id", cmp.Or(r.ID, r.Epoch+"/"+strconv.FormatUint(r.Sequence, 10)))
	l.text("event.module", "attache")
	l.text("event.dataset", "attache.audit")
	l.text("event.provider", "attache")
	if r.Sequence < 1<<63 {
		l.number("event.sequence", int64(r.Sequence))
	}
	k := classify(r)
	l.text("event.kind", k.kind)
	l.texts("event.category", k.category...)
	l.texts("event.type", k.types...)
	l.text("event.action", k.action)
	l.text("event.outcome", k.outcome)
	if r.Decision != nil {
		l.text("event.reason", r.Decision.Reason)
		l.text("event.code", r.Decision.Code)
	}
	if r.Steps != nil {
		l.number("event.duration", r.Steps.Ended*int64(time.Microsecond))
	}
}

// who says who called, for whom.
func (l *list) who(r *audit.Record) {
	if h := r.Human; h != nil {
		l.text("user.id", h.Subject)
		l.text("user.email", h.Email)
		l.text("user.domain", h.Issuer)
	} else if c := r.Change; c != nil && c.By != nil {
		l.text("user.id", c.By.UID)
		l.text("user.name", c.By.Username)
		l.texts("user.roles", c.By.Groups...)
	}
	related := []string{}
	if h := r.Human; h != nil {
		related = append(related, h.Subject, h.Email)
	}
	if w := r.Workload; w != nil {
		related = append(related, w.ID)
		l.text("labels.workload", w.ID)
		l.text("labels.run", w.RunID)
		l.text("labels.posture", w.PostureDigest)
		l.text("orchestrator.namespace", w.Namespace)
		l.text("orchestrator.resource.name", w.ServiceAccount)
		l.text("host.name", w.Node)
	}
	for _, a := range r.Actors {
		related = append(related, a.Subject)
	}
	if len(r.Actors) > 0 {
		chain := make([]string, len(r.Actors))
		for i, a := range r.Actors {
			chain[i] = a.Subject
		}
		l.text("labels.actors", strings.Join(chain, " "))
	}
	l.texts("related.user", related...)
	l.text("labels.owner", r.Owner)
	if t := r.Task; t != nil {
		l.text("labels.task", t.ID)
		l.text("labels.purpose", t.Purpose)
	}
	if p := r.Process; p != nil {
		l.number("process.pid", int64(p.PID))
		l.text("process.executable", p.Exe)
		if p.Exe != "" {
			l.text("process.name", path.Base(p.Exe))
		}
		if sum, ok := strings.CutPrefix(p.Digest, "sha256:"); ok {
			l.text("process.hash.sha256", sum)
		}
		l.text("process.user.id", strconv.FormatUint(uint64(p.UID), 10))
	}
}

func (l *list) request(q *audit.Request) {
	l.text("url.scheme", q.Scheme)
	l.text("url.domain", q.Host)
	l.number("url.port", int64(q.Port))
	l.text("url.path", q.Path)
	l.text("http.request.method", q.Method)
	l.text("http.version", strings.TrimPrefix(q.HTTPVersion, "HTTP/"))
	l.text("user_agent.original", q.UserAgent)
	l.text("trace.id", q.TraceID)
	l.text("network.transport", "tcp")
	l.text("network.protocol", q.Protocol)
	l.text("destination.domain", q.Host)
	l.text("destination.address", cmp.Or(q.Address, q.Host))
	host, _, err := net.SplitHostPort(q.Address)
	if ip := net.ParseIP(host); err == nil && ip != nil {
		l.text("destination.ip", ip.String())
		l.texts("related.ip", ip.String())
	}
	l.number("destination.port", int64(q.Port))
	l.texts("related.hosts", q.Host)
	l.text("labels.door", q.Door)
	l.text("labels.path_template", q.PathTemplate)
}

func (l *list) credential(u *audit.Use) {
	l.text("labels.credential", u.Handle)
	l.text("labels.provider", u.Provider)
	l.text("labels.credential_kind", u.Kind)
	l.text("labels.credential_public_id", u.PublicID)
	l.text("labels.scope", strings.Join(u.ScopeGranted, " "))
	if a := u.AWS; a != nil {
		l.text("cloud.provider", "aws")
		l.text("cloud.account.id", a.Account)
		l.text("cloud.region", a.Region)
		l.text("cloud.service.name", a.Service)
		l.text("labels.resources", strings.Join(a.Resources, " "))
	}
}

// sections are databases, SSH and changes.
func (l *list) sections(r *audit.Record) {
	if q := r.SQL; q != nil {
		l.text("labels.database", q.Database)
		l.text("labels.database_user", q.User)
		l.text("labels.statement", q.Statement)
		l.text("labels.session", q.Session)
	}
	if h := r.SSH; h != nil {
		l.text("labels.ssh_user", h.User)
		l.text("labels.command", h.Command)
		l.text("labels.session", h.Session)
	}
	if c := r.Change; c != nil {
		l.text("labels.document", strings.Join(slices.DeleteFunc([]string{c.Kind, c.Namespace, c.Name}, func(s string) bool { return s == "" }), "/"))
		l.text("labels.version_before", c.VersionBefore)
		l.text("labels.version_after", c.VersionAfter)
		l.text("labels.beneficiary", c.Beneficiary)
	}
}

// fields are those of an event that join it with requests.
func (l *list) fields(e *audit.Event) {
	f := e.Fields
	l.more("labels.credential", f["handle"])
	l.more("labels.provider", f["provider"])
	l.more("labels.workload", f["workload"])
	l.more("labels.run", f["run"])
	l.more("labels.task", f["task"])
	l.more("labels.scope", f["scope"])
	l.more("labels.producer", f["producer"])
	l.more("user.name", f["by"])
	l.more("error.message", cmp.Or(f["error"], f["reason"]))
}

// Document is r as one ECS document: nested objects, with @timestamp.
func Document(r *audit.Record) map[string]any {
	root := map[string]any{"@timestamp": r.Time.UTC().Format(time.RFC3339Nano)}
	for _, a := range Attributes(r) {
		at := root
		key := a.Key
		for {
			head, rest, deeper := strings.Cut(key, ".")
			if !deeper {
				at[head] = a.Value
				break
			}
			next, ok := at[head].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[head] = next
			}
			at, key = next, rest
		}
	}
	return root
}
