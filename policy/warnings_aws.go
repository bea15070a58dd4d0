package policy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy/awsscope"
)

// warnAWS lists IAM policies with conditions that cannot be judged here, and
// rules whose sessions nothing bounds but the role.
func warnAWS(b *api.Bundle) []api.Problem {
	var list []api.Problem
	warn := func(ref api.Ref, format string, args ...any) {
		list = append(list, api.Problem{Position: b.Locate(ref), Ref: ref, Text: fmt.Sprintf(format, args...)})
	}
	providers := map[string]*v1alpha1.AWS{}
	for i := range b.Providers {
		p := &b.Providers[i]
		if p.Spec.AWS == nil {
			continue
		}
		providers[p.Metadata.Name] = p.Spec.AWS
		ref := api.Ref{Kind: v1alpha1.KindCredentialProvider, Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, Field: "spec.aws.policy"}
		warnConditions(p.Spec.AWS.Policy, ref, warn)
	}
	for i := range b.Policies {
		doc := &b.Policies[i]
		for j := range doc.Spec.Rules {
			c := doc.Spec.Rules[j].Credential
			if c == nil || c.AWS == nil || providers[c.Provider] == nil {
				continue
			}
			ref := api.Ref{Kind: v1alpha1.KindAccessPolicy, Namespace: doc.Metadata.Namespace, Name: doc.Metadata.Name, Field: fmt.Sprintf("spec.rules[%d].credential.aws.policy", j)}
			warnConditions(c.AWS.Policy, ref, warn)
			bounded := len(c.AWS.Policy) > 0 || len(providers[c.Provider].Policy) > 0
			for _, g := range []struct{ field, value string }{{"granularity", c.AWS.Granularity}, {"onTooLarge", c.AWS.OnTooLarge}} {
				if wide := g.value == string(awsscope.GranularityTask) || g.value == string(awsscope.GranularitySession); wide && !bounded {
					ref.Field = fmt.Sprintf("spec.rules[%d].credential.aws.%s", j, g.field)
					warn(ref, "is %s, but neither the rule nor its provider has a policy: one call of the agent gets a session for all that the role may do%s; give aws.policy",
						g.value, map[bool]string{true: " in that service"}[g.value == string(awsscope.GranularityTask)])
				}
			}
		}
	}
	return list
}

func warnConditions(doc json.RawMessage, ref api.Ref, warn func(api.Ref, string, ...any)) {
	if len(doc) == 0 {
		return
	}
	p, err := awsscope.ParsePolicy(doc)
	if err != nil {
		return // the bundle does not compile
	}
	allows, denies := p.NotUnderstood()
	if len(allows) > 0 {
		warn(ref, "allows nothing by %s: such conditions are not judged here, so that no call is allowed by them (docs/aws-scope.md)", strings.Join(allows, ", "))
	}
	if len(denies) > 0 {
		warn(ref, "refuses every call that it might touch by %s: such conditions are not judged here (docs/aws-scope.md)", strings.Join(denies, ", "))
	}
}
