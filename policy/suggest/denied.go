package suggest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/replay"
)

// ForDenied writes a policy that opens the one call that a record was denied:
// that agent, host, port, method and path. It is a proposal to look at, never
// put in force by itself. b holds the present documents, and may be nil; if one of
// its providers is for that host, the rule asks for its credential.
//
// Errors match [ErrNothing] and say why no rule of a namespace would help.
func ForDenied(b *api.Bundle, r *audit.Record) ([]byte, error) {
	was, why := replay.Was(r)
	q, unknown := replay.Of(r)
	switch {
	case was.Opens():
		return nil, fmt.Errorf("%w: the call was not denied", ErrNothing)
	case why != "":
		return nil, fmt.Errorf("%w: %s; no rule changes that", ErrNothing, why)
	case unknown != "":
		return nil, fmt.Errorf("%w: %s", ErrNothing, unknown)
	case strings.HasPrefix(was.Policy, "cluster:"):
		return nil, fmt.Errorf("%w: guard rail %s of policy %s denies it, which no rule of a namespace opens; ask its owner", ErrNothing, was.Rule, was.Policy)
	case q.Protocol == policy.TLS || q.Method == "":
		return nil, fmt.Errorf("%w: the connection was refused before a request was seen; a rule for it would have to open the whole host", ErrNothing)
	case !strings.HasPrefix(q.Path, "/"):
		return nil, fmt.Errorf("%w: no template names the path", ErrNothing)
	}
	t := &tree{literal: true}
	u := &use{record: *r, was: was, count: 1, first: r.Time, last: r.Time}
	t.add(q.Path, u)
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(q.Method+"-"+q.Host), "-"), "-._")
	rule := v1alpha1.Rule{
		Name: cmp.Or(strings.Trim(name[:min(len(name), maxName)], "-._"), "rule"), Hosts: []string{q.Host}, Ports: []int{q.Port}, Methods: []string{q.Method},
		Paths: []string{t.leaves()[0].template}, Protocols: []string{cmp.Or(q.Protocol, policy.HTTP)}, Action: v1alpha1.ActionAllow,
	}
	var notes []string
	if p := providerFor(b, q); p != "" {
		rule.Credential = &v1alpha1.CredentialRef{Provider: p}
		notes = append(notes, "With a credential of provider "+p+", which is for this host. Leave that out if the call needs none.")
	} else {
		notes = append(notes, "Without a credential: no provider is for this host.")
	}
	if r.Human != nil {
		rule.When = "human.present"
		if b != nil && rule.Credential != nil && relayed(b, rule.Credential.Provider) {
			rule.When = ""
		}
	}
	if was.Rule != "" {
		notes = append(notes, fmt.Sprintf("Rule %s of policy %s denied it. Of equally specific rules a denial wins: change that one if this does not help.", was.Rule, was.Policy))
	}
	d := &draft{b: &Builder{opts: Options{Bundle: b}}, agent: r.Workload.ID, rules: []*ruleDraft{{Rule: rule, uses: []*use{u}}}}
	if err := d.opensAlone(u); err != nil {
		return nil, err
	}
	p := d.policy()
	p.Metadata.Name = "allow-" + strings.Trim(strings.ToLower(strings.ReplaceAll(rule.Name, "_", "-")), "-.")
	doc, err := documentYAML(p)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	for _, n := range notes {
		fmt.Fprintf(&out, "# %s\n", audit.Safe(n))
	}
	out.Write(doc)
	return []byte(out.String()), nil
}

// maxPath is the longest template that a document may have.
const maxPath = 1024

// opensAlone looks whether the draft, in force alone, opens a call.
func (d *draft) opensAlone(u *use) error {
	if len(d.rules[0].Paths[0]) > maxPath {
		return fmt.Errorf("%w: the path is longer than a rule may name", ErrNothing)
	}
	lost, err := d.check()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNothing, err)
	}
	if why, denied := lost[u]; denied {
		return fmt.Errorf("%w: %s", ErrNothing, why)
	}
	return nil
}

// providerFor is the first provider whose credentials may go where q goes, for
// the workload of q.
func providerFor(b *api.Bundle, q *policy.Recorded) string {
	if b == nil {
		return ""
	}
	scheme := cmp.Or(q.Scheme, "https")
	for i := range b.Providers {
		p := &b.Providers[i]
		if p.Kind == v1alpha1.KindClusterCredentialProvider && !api.Granted(b.Grants[p.Metadata.Name], q.Workload.Namespace, nil) {
			continue
		}
		if slices.ContainsFunc(p.Spec.Destinations, func(d v1alpha1.Destination) bool {
			port := d.Port
			if port == 0 {
				port = map[string]int{"https": 443, "http": 80}[cmp.Or(d.Scheme, "https")]
			}
			return cmp.Or(d.Scheme, "https") == scheme && port == q.Port && policy.HostMatches(d.Host, q.Host)
		}) {
			return p.Metadata.Name
		}
	}
	return ""
}

func relayed(b *api.Bundle, provider string) bool {
	return slices.ContainsFunc(b.Providers, func(p v1alpha1.CredentialProvider) bool { return p.Metadata.Name == provider && api.ByRelay(&p.Spec) })
}
