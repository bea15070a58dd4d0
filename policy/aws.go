package policy

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy/awsscope"
)

// providerPolicy is the most that sessions of an aws provider may do: its own
// policy, or all that its role may.
func (c *compiler) providerPolicy(p *v1alpha1.CredentialProvider) *awsscope.Policy {
	all := awsscope.AllowAll()
	if len(p.Spec.AWS.Policy) == 0 {
		return &all
	}
	own, err := awsscope.ParsePolicy(p.Spec.AWS.Policy)
	if err != nil {
		c.reportProvider(p, "spec.aws.policy", "%v", err)
		return &all // the set does not compile; go on for the other mistakes
	}
	return &own
}

// checkEndpoints refuses custom endpoints for services that no scope is derived
// for: no call to them would ever be allowed.
func (c *compiler) checkEndpoints(p *v1alpha1.CredentialProvider) {
	for i, e := range p.Spec.AWS.Endpoints {
		if !awsscope.Signs(e.Service) {
			c.reportProvider(p, fmt.Sprintf("spec.aws.endpoints[%d].service", i), "is %q, which is the signing name of no service of the table (docs/aws-scope.md)", e.Service)
		}
	}
}

func (c *compiler) reportProvider(p *v1alpha1.CredentialProvider, field, format string, args ...any) {
	ref := api.Ref{Kind: v1alpha1.KindCredentialProvider, Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, Field: field}
	c.problems = append(c.problems, api.Problem{Position: c.bundle.Locate(ref), Ref: ref, Text: fmt.Sprintf(format, args...)})
}

// grantAWS says how far sessions for a rule are cut. Their scope is derived
// from each request, but for those that may do all of the static policy.
func (c *compiler) grantAWS(r *rule, doc *v1alpha1.AWSScope, g *Grant) {
	if doc == nil {
		doc = &v1alpha1.AWSScope{}
	}
	field := r.field + ".credential.aws"
	a := &AWSGrant{
		Granularity: cmp.Or(c.granularity(r, field+".granularity", doc.Granularity), awsscope.GranularityRequest),
		Static:      *r.provider.aws,
	}
	if doc.OnTooLarge != onTooLargeDeny {
		a.OnTooLarge = c.granularity(r, field+".onTooLarge", doc.OnTooLarge)
	}
	if len(doc.Policy) > 0 {
		own, err := awsscope.ParsePolicy(doc.Policy)
		if err != nil {
			c.report(r.policy, field+".policy", "%v", err)
		}
		a.Static = own
	}
	g.AWS = a
	if a.Granularity != awsscope.GranularitySession {
		g.ScopeSource = "derived"
	}
}

// MayHandOut refuses a call to AWS whose answer is a secret, unless the rule
// names it. Where it is not known what of the answer is secret, nothing could be
// sealed, so that the rule must also say that the agent may have it. The error
// is for the agent's developer.
func (d *Decision) MayHandOut(call awsscope.Call) error {
	what := call.Service + ":" + call.Operation
	switch {
	case !call.HandsOutCredentials:
		return nil
	case !d.CredentialCall:
		return fmt.Errorf("%s hands out credentials, which the rule does not name; to allow it the rule needs credentialCall: true", what)
	case d.Answers != v1alpha1.AnswersPass && len(call.Secrets) == 0:
		return fmt.Errorf("the answer of %s holds a secret that cannot be sealed; for the agent to have it the rule needs answerCredentials: pass", what)
	}
	return nil
}

// SessionPolicy derives the session policy for a call, and says by which
// granularity. [iampolicy.OpenEnd] stands in it for the session's end, so that
// the text is a cache key; whoever mints replaces it. Errors match those of
// awsscope: [awsscope.ErrNotAllowed], [awsscope.ErrTooLarge], ….
func (g *AWSGrant) SessionPolicy(call awsscope.Call, noEscapes bool) (text string, used awsscope.Granularity, err error) {
	o := awsscope.Options{NoEscapes: noEscapes, NotAfter: openEnd}
	text, err = awsscope.Derive(call, g.Static, g.Granularity, o)
	if g.OnTooLarge == "" || !errors.Is(err, awsscope.ErrTooLarge) {
		return text, g.Granularity, err
	}
	text, err2 := awsscope.Derive(call, g.Static, g.OnTooLarge, o)
	if err2 != nil {
		return "", g.OnTooLarge, fmt.Errorf("%w; by granularity %s: %w", err, g.OnTooLarge, err2)
	}
	return text, g.OnTooLarge, nil
}

// openEnd is the time that [iampolicy.OpenEnd] spells.
var openEnd = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)

// onTooLargeDeny is the default of onTooLarge.
const onTooLargeDeny = "deny"

func (c *compiler) granularity(r *rule, field, value string) awsscope.Granularity {
	g := awsscope.Granularity(value)
	switch g {
	case "", awsscope.GranularityRequest, awsscope.GranularityPrefix, awsscope.GranularityTask, awsscope.GranularitySession:
	default:
		c.report(r.policy, field, "is %q; must be request, prefix, task or session", value)
	}
	return g
}
