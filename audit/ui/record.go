package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

type recordData struct {
	ID       string
	R        *audit.Record
	Row      row
	Lead     lead
	Story    []step
	Facts    []facts
	Chain    []chainLine
	Far      []farSide
	Versions []docView
	Related  []row
	Raw      []rawLine
	Denied   string // address of the page that explains
	Handle   string
	Unsafe   []string
	Cut      bool
}

// lead is the sentence that says it all.
type lead struct {
	Agent, AgentURL, Human, HumanURL, Did, Verb, Rule, RuleURL, Task, Author string
	Denied                                                                   bool
}

// step is one line of the story.
type step struct {
	Word  string
	Time  time.Time // zero: known only that it was
	Text  string
	Small string
	URL   string
	Class string
}

type facts struct {
	Title string
	Rows  []fact
}

type fact struct {
	Key, Value, URL string
	Claimed         bool
}

type rawLine struct {
	Name string
	JSON string
}

func (s *Server) record(w http.ResponseWriter, r *http.Request, v *visit) error {
	id := r.PathValue("id")
	if err := s.looked(r, v, term("id", id)); err != nil {
		return err
	}
	ctx := r.Context()
	x, refs, err := s.find(ctx, v.view, id)
	if err != nil {
		return err
	}
	rec := &x.Record
	d := recordData{ID: rec.ID, R: rec, Row: rowOf(rec), Handle: rowOf(rec).Handle, Unsafe: rec.Unsafe, Cut: rec.Truncated}
	if rec.Decision != nil {
		if d.Versions, err = s.versionOf(ctx, v.view, rec.Decision); err != nil {
			return err
		}
	}
	var rel []store.Row
	if d.Handle != "" {
		p, err := s.related(ctx, v.view, d.Handle)
		if err != nil {
			return err
		}
		rel = p.Rows
	}
	d.Lead = leadOf(rec, d.Versions)
	d.Story = storyOf(rec, rel)
	d.Facts = factsOf(rec)
	d.Far = farSides(rec)
	for i := range rel {
		if rel[i].ID != id && len(d.Related) < 20 {
			d.Related = append(d.Related, rowOf(&rel[i].Record))
		}
	}
	if rec.Decision != nil && rec.Decision.Verdict == "deny" {
		d.Denied = "/denied?id=" + queryEscape(id)
	}
	if d.Chain, d.Raw, err = s.linesOf(ctx, v.view, rec, refs); err != nil {
		return err
	}
	s.pages.render(w, r, v, http.StatusOK, "record", d)
	return nil
}

func leadOf(r *audit.Record, versions []docView) lead {
	l := lead{Human: humanName(r.Human), Denied: r.Decision != nil && r.Decision.Verdict == "deny"}
	row := rowOf(r)
	l.Agent, l.AgentURL, l.HumanURL, l.Rule, l.RuleURL, l.Task = row.Agent, row.AgentURL, row.HumanURL, row.Rule, row.RuleURL, row.Task
	l.Did = strings.TrimSpace(row.Method + " " + first(row.What, row.Detail))
	l.Verb = "asked for"
	for _, d := range versions {
		if d.Author != "" && r.Decision != nil && (r.Decision.Policy == d.Namespace+"/"+d.Name || r.Decision.Policy == "cluster:"+d.Name) {
			l.Author = d.Author
		}
	}
	return l
}

// storyOf tells attested → decided → minted → used → answered → revoked, each
// with its time. What came before or after, by other records of the same
// credential, is told too.
func storyOf(r *audit.Record, related []store.Row) []step {
	if r.Event != nil {
		return eventStory(r)
	}
	st := r.Steps
	if st == nil {
		st = &audit.Steps{}
	}
	at := func(us int64) time.Time {
		if us == 0 {
			return time.Time{}
		}
		return r.Time.Add(time.Duration(us) * time.Microsecond)
	}
	var l []step
	l = append(l, step{Word: "asked", Time: r.Time, Text: strings.TrimSpace(rowOf(r).Method + " " + first(rowOf(r).Detail, rowOf(r).What)), Small: doorOf(r)})
	if w := r.Workload; w != nil {
		text, small := w.ID, ""
		if p := r.Process; p != nil && p.Exe != "" {
			small = "process " + strconv.Itoa(p.PID) + ", " + p.Exe
		}
		if st.Attested > 0 {
			small = join(small, "in "+micros(st.Attested)+" when the connection was accepted")
		}
		l = append(l, step{Word: "attested", Text: text, Small: small, URL: agentURL(w.ID, "")})
	}
	if d := r.Decision; d != nil {
		x := step{Word: "decided", Time: at(st.Decided), Text: verdictOf(d).Text, Small: d.Reason, URL: policyURL(d.Policy)}
		if n := ruleName(d); n != "" {
			x.Text += " by " + n
		}
		if d.Verdict == "deny" {
			x.Class = "bad"
		}
		l = append(l, x)
	}
	if st.Begun > 0 || r.BeginSequence != 0 {
		l = append(l, step{Word: "recorded", Time: at(st.Begun), Text: "the intent, before anything was sent"})
	}
	l = append(l, mintStep(r, at(st.Minted), related)...)
	if st.Injected > 0 {
		l = append(l, step{Word: "used", Time: at(st.Injected), Text: "the credential was put on the request", Small: addressOf(r)})
	}
	l = append(l, answerSteps(r, at(st.FirstByte), at(st.Ended))...)
	return append(l, revokeSteps(r, related)...)
}

func eventStory(r *audit.Record) []step {
	l := []step{{Word: "happened", Time: r.Time, Text: r.Event.Name}}
	for _, f := range fieldsOf(r.Event.Fields) {
		l = append(l, step{Word: f.Key, Text: f.Value, Class: "idle"})
	}
	return l
}

func mintStep(r *audit.Record, t time.Time, related []store.Row) []step {
	u := r.Credential
	if u == nil || u.Handle == "" {
		return nil
	}
	x := step{Word: "minted", Time: t, Text: u.Kind + " of " + u.Provider, URL: "/credential/" + pathEscape(u.Handle)}
	if len(u.ScopeGranted) > 0 {
		x.Text += ", scope " + strings.Join(u.ScopeGranted, " ")
	}
	if u.TTLSeconds > 0 {
		x.Small = "for " + spell(time.Duration(u.TTLSeconds)*time.Second)
	}
	if u.Static {
		x.Small = join(x.Small, "a vendor's own key, not minted")
	}
	if u.Cached {
		x.Small = join(x.Small, "for an earlier request, from the cache")
		for i := range related {
			if e := related[i].Event; e != nil && e.Name == audit.EventCredentialMinted {
				x.Time = related[i].Time
			}
		}
	}
	return []step{x}
}

func answerSteps(r *audit.Record, firstByte, ended time.Time) []step {
	var l []step
	res := r.Result
	if !firstByte.IsZero() {
		text := "the first byte came"
		if res != nil && res.Status != 0 {
			text = "status " + strconv.Itoa(res.Status)
		}
		l = append(l, step{Word: "answered", Time: firstByte, Text: text, Small: answerNote(res)})
	}
	switch {
	case res == nil || res.Outcome == audit.OutcomeOpen:
		l = append(l, step{Word: "open", Text: "not ended yet", Class: "idle"})
	default:
		x := step{Word: "ended", Time: ended, Text: res.Outcome, Small: byteCount(res.BytesUp) + " up, " + byteCount(res.BytesDown) + " down"}
		if res.ErrorKind != "" {
			x.Text += ": " + res.ErrorKind
		}
		if c := outcomeWord(res.Outcome).Class; c == "bad" || c == "warn" {
			x.Class = "bad"
		}
		l = append(l, x)
	}
	return l
}

func answerNote(res *audit.Result) string {
	if res == nil {
		return ""
	}
	var s string
	if res.GRPCStatus != "" {
		s = join(s, "gRPC status "+res.GRPCStatus)
	}
	if res.Retried {
		s = join(s, "sent again after a stale credential was refused")
	}
	if res.Sealed > 0 {
		s = join(s, plural(res.Sealed, "credential")+" sealed")
	}
	if res.Masked > 0 {
		s = join(s, plural(res.Masked, "echo")+" of our credential masked")
	}
	return s
}

// revokeSteps tells the end of the credential: a revocation, or its expiry.
func revokeSteps(r *audit.Record, related []store.Row) []step {
	var l []step
	for i := range related {
		e := related[i].Event
		if e == nil || e.Name != audit.EventCredentialRevoked {
			continue
		}
		l = append(l, step{Word: "revoked", Time: related[i].Time, Text: first(e.Fields["result"], "at the issuer"), Small: e.Fields["reason"], URL: "/record/" + pathEscape(related[i].ID)})
	}
	if u := r.Credential; len(l) == 0 && u != nil && u.Handle != "" && !u.Expires.IsZero() {
		l = append(l, step{Word: "expires", Time: u.Expires, Text: "no revocation is recorded", Class: "idle"})
	}
	return l
}

func doorOf(r *audit.Record) string {
	if r.Request == nil || r.Request.Door == "" {
		return ""
	}
	return join("by the door "+r.Request.Door, r.Request.Protocol)
}

func addressOf(r *audit.Record) string {
	if r.Request == nil || r.Request.Address == "" {
		return ""
	}
	return "to " + r.Request.Address
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

// linesOf returns where the lines of a record stand, whether the chain holds
// around them, and their text as it was written. A record may name any line as
// its begin: one of another record is none of it, and is not shown.
func (s *Server) linesOf(ctx context.Context, scope Scope, rec *audit.Record, refs []store.Ref) ([]chainLine, []rawLine, error) {
	var chainLines []chainLine
	var raw []rawLine
	for _, ref := range refs {
		c, l, err := s.checkLine(ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		if own := ref.Epoch == rec.Epoch && ref.Sequence == rec.Sequence; !own && l.JSON != nil {
			x, err := l.Record()
			if err != nil || x.ID != rec.ID || len(audit.Namespaces(&x)) > 0 && !store.Visible(&x, scope.names()) {
				continue
			}
		}
		if c.Covered, err = s.covered(ctx, ref, rec.Time); err != nil {
			return nil, nil, err
		}
		chainLines = append(chainLines, c)
		if l.JSON != nil {
			var b bytes.Buffer
			if json.Indent(&b, l.JSON, "", "  ") != nil {
				b.Reset()
				b.Write(l.JSON)
			}
			raw = append(raw, rawLine{c.Type + ", line " + count(ref.Sequence), b.String()})
		}
	}
	return chainLines, raw, nil
}
