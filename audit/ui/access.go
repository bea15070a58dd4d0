package ui

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Role is what a person may do with the records of some namespaces.
type Role string

// The roles. Each of auditor and revoker includes viewer.
const (
	Viewer  Role = "viewer"  // read records and what is counted from them
	Auditor Role = "auditor" // also export them
	Revoker Role = "revoker" // also revoke credentials and tasks
)

// AllNamespaces in a Grant stands for every namespace, and for records that
// have none, such as the control plane's own.
const AllNamespaces = "*"

// Grant gives a role to groups and people.
type Grant struct {
	Role       Role     `json:"role"`
	Namespaces []string `json:"namespaces"` // at least one; or just AllNamespaces
	Groups     []string `json:"groups,omitempty"`
	Subjects   []string `json:"subjects,omitempty"` // sub claim
	Emails     []string `json:"emails,omitempty"`   // only where the issuer verified it
}

// validate returns the first mistake, naming the place.
func (g *Grant) validate(at string) error {
	switch g.Role {
	case Viewer, Auditor, Revoker:
	default:
		return fmt.Errorf("%s.role: is %q; must be viewer, auditor or revoker", at, g.Role)
	}
	if len(g.Namespaces) == 0 {
		return fmt.Errorf("%s.namespaces: is empty; name namespaces, or %q for all", at, AllNamespaces)
	}
	if len(g.Groups)+len(g.Subjects)+len(g.Emails) == 0 {
		return fmt.Errorf("%s: names nobody; give groups, subjects or emails", at)
	}
	for _, l := range [][]string{g.Namespaces, g.Groups, g.Subjects, g.Emails} {
		if slices.Contains(l, "") {
			return fmt.Errorf("%s: has an empty name", at)
		}
	}
	return nil
}

// Person is who is logged in.
type Person struct {
	Subject string
	Issuer  string
	Email   string // verified; may be empty
	Groups  []string
}

// Name for people.
func (p *Person) Name() string {
	if p.Email != "" {
		return p.Email
	}
	return p.Subject
}

// Scope is a set of namespaces. The zero Scope is empty: it sees nothing.
type Scope struct {
	All        bool
	Namespaces []string // sorted; without All
}

// Empty reports whether nothing is in s.
func (s Scope) Empty() bool { return !s.All && len(s.Namespaces) == 0 }

// Has reports whether a record of namespace ns is in s. Records without a
// namespace are only in the Scope of all.
func (s Scope) Has(ns string) bool {
	return s.All || ns != "" && slices.Contains(s.Namespaces, ns)
}

// String is for people.
func (s Scope) String() string {
	switch {
	case s.All:
		return "all namespaces"
	case s.Empty():
		return "no namespace"
	default:
		return strings.Join(s.Namespaces, ", ")
	}
}

// scopeOf returns where p has role, by grants.
func scopeOf(grants []Grant, p *Person, role Role) Scope {
	var s Scope
	for _, g := range grants {
		if g.Role != role && role != Viewer || !g.names(p) {
			continue
		}
		for _, n := range g.Namespaces {
			if n == AllNamespaces {
				return Scope{All: true}
			}
			s.Namespaces = append(s.Namespaces, n)
		}
	}
	slices.Sort(s.Namespaces)
	s.Namespaces = slices.Compact(s.Namespaces)
	return s
}

func (g *Grant) names(p *Person) bool {
	if slices.Contains(g.Subjects, p.Subject) || p.Email != "" && slices.Contains(g.Emails, p.Email) {
		return true
	}
	return slices.ContainsFunc(p.Groups, func(n string) bool { return slices.Contains(g.Groups, n) })
}

// session is one logged-in browser.
type session struct {
	ID     string
	Person Person
	Began  time.Time
	Seen   time.Time
}

// visit is what a handler knows of the one who asks.
type visit struct {
	session *session
	view    Scope // may read
	audit   Scope // may export
	revoke  Scope
}

type visitKey struct{}

func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	return v
}

// errNoAccess is matched where a person is known and has no role.
var errNoAccess = errors.New("no role in any namespace")
