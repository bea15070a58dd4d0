package policy

import (
	"fmt"

	"github.com/attache-dev/attache/api"
)

// Problems is every mistake that [Compile] found, in the order of the
// documents; errors.As finds it, and the first [api.Problem].
type Problems = api.Problems

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
