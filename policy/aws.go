package policy

import (
	"cmp"
	"encoding/json"

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
	own, err := parseIAM(p.Spec.AWS.Policy)
	if err != nil {
		ref := api.Ref{Kind: v1alpha1.KindCredentialProvider, Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, Field: "spec.aws.policy"}
		c.problems = append(c.problems, api.Problem{Position: c.bundle.Locate(ref), Ref: ref, Text: err.Error()})
		return &all // the set does not compile; go on for the other mistakes
	}
	return &own
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
		own, err := parseIAM(doc.Policy)
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

func parseIAM(doc json.RawMessage) (awsscope.Policy, error) { return awsscope.ParsePolicy(doc) }
