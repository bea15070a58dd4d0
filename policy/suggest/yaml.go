package suggest

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// YAML is the policy as a document, with what it is made of as comments.
func (s *Suggestion) YAML(loc *time.Location) ([]byte, error) {
	var b strings.Builder
	note := func(format string, args ...any) {
		fmt.Fprintf(&b, "# %s\n", strings.Join(strings.Fields(audit.Safe(fmt.Sprintf(format, args...))), " "))
	}
	at := func(t time.Time) string { return t.In(loc).Format(time.DateTime) }
	note("What %s was seen to use, and no more: %s from %s to %s.", s.Agent, requests(s.Requests), at(s.First), at(s.Last))
	note("Try it before it is in force: attache policy replay DIR.")
	for _, r := range s.Rules {
		from := "no rule that is there now"
		if r.From != "" {
			from = r.From
		}
		note("rule %s: %s, last at %s, from %s", r.Name, requests(r.Count), at(r.Last), from)
	}
	for _, u := range s.Unused {
		note("never used: %s", u)
	}
	for _, l := range s.Left {
		note("left out, %s: %s, such as %s", requests(l.Count), l.Why, strings.Join(l.Examples, ", "))
	}
	doc, err := documentYAML(s.Policy)
	if err != nil {
		return nil, err
	}
	b.Write(doc)
	return []byte(b.String()), nil
}

func requests(n int) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}

// String says what was not used.
func (u Unused) String() string {
	s := fmt.Sprintf("rule %s of policy %s", u.Rule, u.Policy)
	if u.Whole {
		return s
	}
	for _, part := range []struct {
		name string
		list []string
	}{{"host", u.Hosts}, {"method", u.Methods}, {"path", u.Paths}} {
		if len(part.list) > 0 {
			s += fmt.Sprintf("; its %s %s", part.name, strings.Join(part.list, ", "))
		}
	}
	return s
}

// documentYAML writes a policy by its JSON tags, in the order of its fields.
func documentYAML(p v1alpha1.AccessPolicy) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write the policy: %w", err)
	}
	var n yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("write the policy: %w", err)
	}
	block(&n)
	out, err := yaml.Marshal(&n)
	if err != nil {
		return nil, fmt.Errorf("write the policy: %w", err)
	}
	return out, nil
}

// block turns JSON's style into that of documents.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}
