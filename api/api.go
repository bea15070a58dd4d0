// Package api loads the documents of package v1alpha1 from files and finds
// every mistake in them, each with its file, line and column.
package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Position is a place in a file. Line and Column count from 1.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

// String formats p as file:line:column.
func (p Position) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// Ref names a field of a document: kind, namespace and name as the document
// writes them, and a path such as spec.rules[2].when. An empty Field is the
// document itself.
type Ref struct{ Kind, Namespace, Name, Field string }

// Problem is one mistake. Text says what is wrong and what would be right.
// Checks outside this package give a Ref; [Bundle.Locate] fills in Position.
type Problem struct {
	Position Position `json:"position"`
	Ref      Ref      `json:"-"`
	Text     string   `json:"text"`
	Reason   Reason   `json:"-"`
}

// Reason is the kind of a mistake, as a status condition of an object in a
// cluster names it. The empty Reason is [ReasonInvalid].
type Reason string

// Reasons. Those after ReasonConflicted speak of what a rule refers to: the
// object itself is good, and only that rule is not in force.
const (
	ReasonInvalid               Reason = "Invalid"
	ReasonConflicted            Reason = "Conflicted"            // with an older object
	ReasonProviderNotFound      Reason = "ProviderNotFound"      // or it is not accepted
	ReasonRefNotPermitted       Reason = "RefNotPermitted"       // by allowedNamespaces
	ReasonDestinationNotAllowed Reason = "DestinationNotAllowed" // by the provider's destinations
	ReasonScopeNotAllowed       Reason = "ScopeNotAllowed"       // by a provider of the cluster
)

// Unresolved reports whether the mistake is in what a rule refers to.
func (r Reason) Unresolved() bool {
	return r == ReasonProviderNotFound || r == ReasonRefNotPermitted || r == ReasonDestinationNotAllowed || r == ReasonScopeNotAllowed
}

// Error implements error as "file:line:column: text".
func (p Problem) Error() string {
	if p.Position.File == "" {
		return fmt.Sprintf("%s %s: %s: %s", p.Ref.Kind, p.Ref.Name, p.Ref.Field, p.Text)
	}
	return p.Position.String() + ": " + p.Text
}

// Problems is every mistake found, in the order of the files.
type Problems []Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a [Problem].
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.Position.File, b.Position.File),
			cmp.Compare(a.Position.Line, b.Position.Line),
			cmp.Compare(a.Position.Column, b.Position.Column),
			cmp.Compare(a.Text, b.Text),
		)
	})
}

// Bundle is a consistent set of documents. It is immutable once loaded.
type Bundle struct {
	Config v1alpha1.AttacheConfig // defaults filled in
	// Providers and Policies hold those of a cluster too, told by their Kind.
	Providers []v1alpha1.CredentialProvider
	Policies  []v1alpha1.AccessPolicy
	// Grants are the allowedNamespaces of each ClusterCredentialProvider, by
	// name; nil is none.
	Grants map[string]*v1alpha1.NamespaceGrant
	// Place is what the documents were loaded for.
	Place Place
	// Unresolved lists what is wrong with references of rules in the documents
	// of a pod ([PlacePod]). Such rules deny what they match.
	Unresolved Problems
	// Generations holds a digest of each provider's spec, by name, the
	// contents of the certificate files it names included (never a key's).
	Generations map[string]string
	// Version is a digest of every document.
	Version string

	positions map[Ref]Position
	files     []string // certificate files that documents name
}

// Locate returns where a field stands, or its nearest parent that is written
// down. It is the zero Position if the document is not in the bundle.
func (b *Bundle) Locate(r Ref) Position { return locate(b.positions, r) }

// Located fills in the positions of problems that other packages found in b
// and sorts them. An error that holds no Problem is returned as it is.
func (b *Bundle) Located(err error) error {
	var found Problems
	if errs, ok := errors.AsType[Problems](err); ok {
		found = slices.Clone(errs)
	} else if one, ok := errors.AsType[Problem](err); ok {
		found = Problems{one}
	} else {
		return err
	}
	for i := range found {
		if found[i].Position.File == "" {
			found[i].Position = b.Locate(found[i].Ref)
		}
	}
	found.sort()
	return found
}

func locate(positions map[Ref]Position, r Ref) Position {
	for {
		if p, ok := positions[r]; ok {
			return p
		}
		if r.Field == "" {
			return Position{}
		}
		r.Field = r.Field[:max(0, strings.LastIndexAny(r.Field, ".["))]
	}
}
