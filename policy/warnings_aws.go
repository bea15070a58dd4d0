package policy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy/awsscope"
)

// warnAWS lists IAM policies with conditions that cannot be judged here, rules
// whose sessions nothing bounds but the role, and issuers that STS cannot
// trust.
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
		if text := unreadableKeys(&b.Config.Spec.Identity, p.Spec.AWS); text != "" {
			ref.Field = "spec.aws"
			warn(ref, "%s", text)
		}
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

// unreadableKeys says why STS could not verify the workload's token: it reads the
// issuer's keys at the issuer's URL.
func unreadableKeys(i *v1alpha1.IdentityConfig, a *v1alpha1.AWS) string {
	const proof = "the workload proves itself by a token of the embedded issuer, "
	switch {
	case i.Source != api.SourceEmbedded || a.TokenFile != "" || a.RolesAnywhere != nil || i.Listen != "":
		return ""
	case i.IssuerURL == "":
		return proof + "whose keys STS can read nowhere; set identity.issuerURL or identity.listen of AttacheConfig (docs/providers/aws.md)"
	case i.SSHAgent == "":
		return proof + "which makes new keys in every run, so that what is published at identity.issuerURL is of no use; set identity.sshAgent or identity.listen of AttacheConfig (docs/identity.md)"
	}
	return ""
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
