package audit

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Spread says how the values of a key are spread over records. An index is
// built by it.
type Spread int

// Spreads.
const (
	Rare  Spread = iota // seldom asked for; found by reading records
	Few                 // few different values among many records
	Names               // most records have values of their own, asked for whole
	Texts               // most records have values of their own, asked for in part
)

// Key is a word of the query language.
type Key struct {
	Name    string
	Aliases []string
	Spread  Spread
	// Values returns what the key looks at in a record. It is nil for since and
	// until.
	Values func(*Record) []string
}

// Keys returns the keys of the query language, sorted by name.
func Keys() []Key {
	few := func(name string, values func(*Record) []string, aliases ...string) Key {
		return Key{name, aliases, Few, values}
	}
	l := []Key{
		few("actor", actors),
		few("agent", agents),
		few("bucket", buckets),
		few("by", onChange(func(c *Change) []string {
			return fromPtr(c.By, func(p *Principal) []string { return []string{p.Username} })
		}), "author"),
		few("code", onDecision(func(d *Decision) []string { return []string{d.Code} })),
		few("database", onSQL(func(q *SQL) []string { return []string{q.Database} })),
		few("document", onChange(func(c *Change) []string { return []string{c.Kind, c.Name, c.Namespace + "/" + c.Name} })),
		few("door", onRequest(func(q *Request) []string { return []string{q.Door} })),
		few("epoch", func(r *Record) []string { return []string{r.Epoch, r.BeginEpoch} }),
		few("error", onResult(func(s *Result) []string { return []string{s.ErrorKind} })),
		few("event", onEvent(func(e *Event) []string { return []string{e.Name} })),
		few("exe", func(r *Record) []string {
			return fromPtr(r.Process, func(p *Process) []string { return []string{p.Exe} })
		}),
		few("host", onRequest(func(q *Request) []string { return []string{q.Host} }), "dest", "destination"),
		few("human", func(r *Record) []string {
			return fromPtr(r.Human, func(h *Human) []string { return []string{h.Subject, h.Email} })
		}, "user", "person"),
		few("kind", onUse(func(u *Use) []string { return []string{u.Kind} })),
		few("label", onWorkload(labels)),
		few("method", onRequest(func(q *Request) []string { return []string{q.Method} })),
		few("namespace", Namespaces, "ns"),
		few("operation", operations, "op"),
		few("outcome", onResult(func(s *Result) []string { return []string{s.Outcome} })),
		few("owner", func(r *Record) []string { return []string{r.Owner} }),
		few("policy", onDecision(func(d *Decision) []string { return []string{d.Policy} })),
		few("protocol", onRequest(func(q *Request) []string { return []string{q.Protocol} })),
		few("provider", onUse(func(u *Use) []string { return []string{u.Provider} })),
		few("rule", onDecision(func(d *Decision) []string { return []string{d.Rule} })),
		few("run", onWorkload(func(w *Workload) []string { return []string{w.RunID} })),
		few("scope", onUse(func(u *Use) []string { return append(slices.Clone(u.ScopeGranted), u.ScopeAsked...) })),
		few("service", onAWS(func(a *AWSUse) []string { return []string{a.Service} })),
		few("status", onResult(func(s *Result) []string { return []string{strconv.Itoa(s.Status)} })),
		few("table", onSQL(func(q *SQL) []string { return q.Tables })),
		few("template", onRequest(func(q *Request) []string { return []string{q.PathTemplate} })),
		few("type", func(r *Record) []string { return []string{r.kind(), "all"} }),
		few("verdict", onDecision(func(d *Decision) []string { return []string{d.Verdict} })),
		few("version", onDecision(func(d *Decision) []string { return []string{d.Version} })),
		few("workload", onWorkload(func(w *Workload) []string { return []string{w.ID} })),

		{"handle", nil, Names, handles},
		{"id", nil, Names, func(r *Record) []string { return []string{r.ID} }},
		{"task", nil, Names, tasks},
		{"trace", nil, Names, onRequest(func(q *Request) []string { return []string{q.TraceID} })},
		{"upstream", nil, Names, onResult(func(s *Result) []string { return []string{s.UpstreamRequestID} })},

		{"path", nil, Texts, onRequest(func(q *Request) []string { return []string{q.Path, q.PathTemplate} })},
		{"resource", nil, Texts, onAWS(func(a *AWSUse) []string { return slices.Clone(a.Resources) })},

		{"command", nil, Rare, func(r *Record) []string {
			return fromPtr(r.SSH, func(s *SSH) []string { return []string{s.Command} })
		}},
		{"purpose", nil, Rare, func(r *Record) []string {
			return fromPtr(r.Task, func(t *Task) []string { return []string{t.Purpose} })
		}},
		{"statement", nil, Rare, onSQL(func(q *SQL) []string { return []string{q.Statement} })},

		{Name: "since"}, {Name: "until"},
	}
	slices.SortFunc(l, func(a, b Key) int { return cmp.Compare(a.Name, b.Name) })
	return l
}

// keyTable returns the keys by name and by alias.
func keyTable() map[string]Key {
	m := map[string]Key{}
	for _, k := range Keys() {
		m[k.Name] = k
		for _, a := range k.Aliases {
			m[a] = k
		}
	}
	return m
}

// FilterKeys returns the words that a query takes before a colon, aliases
// included, sorted.
func FilterKeys() []string { return slices.Sorted(maps.Keys(keyTable())) }

// QueryTerm returns the text of a term for ParseFilter that asks for a value of
// a key. What a query cannot say (a quote) becomes a star.
func QueryTerm(key, value string) string {
	return key + `:"` + strings.ReplaceAll(value, `"`, "*") + `"`
}

func fromPtr[T any](p *T, f func(*T) []string) []string {
	if p == nil {
		return nil
	}
	return f(p)
}

func onWorkload(f func(*Workload) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Workload, f) }
}

func onRequest(f func(*Request) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Request, f) }
}

func onDecision(f func(*Decision) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Decision, f) }
}

func onUse(f func(*Use) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Credential, f) }
}

func onAWS(f func(*AWSUse) []string) func(*Record) []string {
	return onUse(func(u *Use) []string { return fromPtr(u.AWS, f) })
}

func onResult(f func(*Result) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Result, f) }
}

func onEvent(f func(*Event) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Event, f) }
}

func onChange(f func(*Change) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Change, f) }
}

func onSQL(f func(*SQL) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.SQL, f) }
}

// labels returns key=value, sorted.
func labels(w *Workload) []string {
	var l []string
	for _, k := range sortedKeys(w.Labels) {
		l = append(l, k+"="+w.Labels[k])
	}
	return l
}

// agents are the names by which people call a workload: the last part of its
// SPIFFE ID, its service account and the ID itself.
func agents(r *Record) []string {
	if r.Workload == nil {
		return nil
	}
	w := r.Workload
	l := []string{w.ID[strings.LastIndexByte(w.ID, '/')+1:]}
	for _, s := range []string{w.ServiceAccount, w.ID} {
		if s != "" && !slices.Contains(l, s) {
			l = append(l, s)
		}
	}
	return l
}

func actors(r *Record) []string {
	var l []string
	for _, a := range r.Actors {
		l = append(l, a.Subject)
	}
	return l
}

// buckets are those of the S3 resources of a call: arn:PARTITION:s3:::BUCKET/KEY.
func buckets(r *Record) []string {
	if r.Credential == nil || r.Credential.AWS == nil {
		return nil
	}
	var l []string
	for _, res := range r.Credential.AWS.Resources {
		f := strings.SplitN(res, ":", 6)
		if len(f) < 6 || f[0] != "arn" || f[2] != "s3" {
			continue
		}
		if name, _, _ := strings.Cut(f[5], "/"); !slices.Contains(l, name) {
			l = append(l, name)
		}
	}
	return l
}

// Namespaces are those that a record is about: who may see one of them may see
// the record.
func Namespaces(r *Record) []string {
	l := onWorkload(func(w *Workload) []string { return []string{w.Namespace} })(r)
	if r.Change != nil && r.Change.Namespace != "" {
		l = append(l, r.Change.Namespace)
	}
	if r.Event != nil && r.Event.Fields["namespace"] != "" {
		l = append(l, r.Event.Fields["namespace"])
	}
	return l
}

// operations are what is done, in the words of the far side's protocol.
func operations(r *Record) []string {
	l := onAWS(func(a *AWSUse) []string { return []string{a.Operation} })(r)
	if r.SQL != nil {
		l = append(l, r.SQL.Operation)
	}
	if r.SSH != nil {
		l = append(l, r.SSH.Operation)
	}
	if r.Change != nil {
		l = append(l, r.Change.Operation)
	}
	return l
}

// handles finds the issuance, the use and the revocation of a credential.
func handles(r *Record) []string {
	var l []string
	if r.Credential != nil && r.Credential.Handle != "" {
		l = append(l, r.Credential.Handle)
	}
	if r.Event != nil {
		l = append(l, r.Event.Fields["handle"])
	}
	return l
}

// tasks finds the opening, the requests and the closing of a task.
func tasks(r *Record) []string {
	l := fromPtr(r.Task, func(t *Task) []string { return []string{t.ID} })
	if r.Event != nil && r.Event.Fields["task"] != "" {
		l = append(l, r.Event.Fields["task"])
	}
	return l
}

// kind is the word for a record's type in queries.
func (r *Record) kind() string {
	switch r.Type {
	case TypeBegin, TypeEnd:
		return "request"
	case TypeEpochOpen, TypeEpochEnd:
		return "epoch"
	default:
		return r.Type
	}
}
