// Package api loads the documents of package v1alpha1 from files and finds
// every mistake in them, each with its file, line and column.
package api

import (
	"fmt"

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

// Ref names a field of a document: kind, name, and a path such as
// spec.rules[2].when.
type Ref struct{ Kind, Namespace, Name, Field string }

// Problem is one mistake. Text says what is wrong and what would be right.
// Checks outside this package give a Ref; [Bundle.Locate] fills in Position.
type Problem struct {
	Position Position `json:"position"`
	Ref      Ref      `json:"-"`
	Text     string   `json:"text"`
}

// Error implements error as "file:line:column: text".
func (p Problem) Error() string {
	if p.Position.File == "" {
		return fmt.Sprintf("%s %s: %s: %s", p.Ref.Kind, p.Ref.Name, p.Ref.Field, p.Text)
	}
	return p.Position.String() + ": " + p.Text
}

// Bundle is a consistent set of documents.
type Bundle struct {
	Config    v1alpha1.AttacheConfig // defaults filled in
	Providers []v1alpha1.CredentialProvider
	Policies  []v1alpha1.AccessPolicy
	// Generations holds a digest of each provider's spec, by name, the
	// contents of the files it names included.
	Generations map[string]string
	// Version is a digest of every document.
	Version string

	positions map[Ref]Position
}

// Locate returns where a field stands, or its nearest parent that is written
// down.
func (b *Bundle) Locate(r Ref) Position { return b.positions[r] }
