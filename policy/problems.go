package policy

import (
	"fmt"
	"strings"

	"github.com/attache-dev/attache/api"
)

// Problems is every mistake that [Compile] found, in the order of the
// documents. errors.As finds the single [api.Problem] values.
type Problems []api.Problem

// Error lists the problems, one a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems as errors.
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i, problem := range p {
		errs[i] = problem
	}
	return errs
}

// report adds a problem about a field of the policy that is being compiled.
func (c *compiler) report(p *policy, field, format string, args ...any) {
	ref := p.ref
	ref.Field = field
	c.problems = append(c.problems, api.Problem{
		Position: c.bundle.Locate(ref),
		Ref:      ref,
		Text:     fmt.Sprintf(format, args...),
	})
}
