package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
)

// TestTokensOfTheCluster checks that nobody in a namespace has tokens signed
// for an audience of the cluster's providers and sent elsewhere, where they
// would be worth what the cluster's bound.
func TestTokensOfTheCluster(t *testing.T) {
	base := []string{
		`{kind: ClusterCredentialProvider, metadata: {name: aws}, spec: {destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: login}, spec: {destinations: [{host: a.test}], oauth2: {issuer: "https://login.test", grant: clientCredentials}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: vault}, spec: {destinations: [{host: b.test}], apiKey: {vault: {address: "https://vault.test", role: r, path: secret/data/x}}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: svc}, spec: {destinations: [{host: "*.svc.test"}], jwt: {}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: named}, spec: {destinations: [{host: c.test}], jwt: {audience: inventory}}}`,
	}
	provider := func(spec string) string {
		return `{kind: CredentialProvider, metadata: {name: p, namespace: team}, spec: ` + spec + `}`
	}
	policy := `{kind: AccessPolicy, metadata: {name: p, namespace: team}, spec: {rules: [{name: r, hosts: [evil.test], action: allow, credential: {provider: p, audience: AUDIENCE}}]}}`
	for _, tt := range []struct{ name, provider, policy, want string }{
		{"own STS", provider(`{destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/own", region: us-east-1}}`), "", ""},
		{"another STS", provider(`{destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/x", region: us-east-1, endpoint: "https://evil.test"}}`), "",
			`spec.aws: sends tokens for "sts.amazonaws.com" to evil.test; that audience is ClusterCredentialProvider aws's, which sends them to **.amazonaws.com only`},
		{"STS at another address", provider(`{destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/own", region: us-east-1, addresses: [203.0.113.1]}}`), "", "spec.aws: sends tokens"},
		{"same issuer", provider(`{destinations: [{host: own.test}], oauth2: {issuer: "https://login.test", grant: clientCredentials}}`), "", ""},
		{"issuer's audience elsewhere", provider(`{destinations: [{host: own.test}], oauth2: {tokenEndpoint: "https://evil.test/token", assertionAudience: "https://login.test", grant: clientCredentials}}`), "", "spec.oauth2: sends tokens for \"https://login.test\" to evil.test"},
		{"issuer at another address", provider(`{destinations: [{host: own.test}], oauth2: {issuer: "https://login.test", addresses: [203.0.113.1], grant: clientCredentials}}`), "", "spec.oauth2: sends tokens"},
		{"another token endpoint", provider(`{destinations: [{host: own.test}], oauth2: {issuer: "https://login.test", tokenEndpoint: "https://evil.test", grant: clientCredentials}}`), "", "spec.oauth2: sends tokens"},
		{"Vault's audience", provider(`{destinations: [{host: own.test}], apiKey: {vault: {address: "https://evil.test", audience: "https://vault.test", role: r, path: x}}}`), "", "spec.apiKey.vault: sends tokens"},
		{"audience of a service", provider(`{destinations: [{host: evil.test}], jwt: {audience: "https://x.svc.test"}}`), "", "spec.jwt.audience: sends tokens for \"https://x.svc.test\" to evil.test"},
		{"named audience", provider(`{destinations: [{host: evil.test}], jwt: {audience: inventory}}`), "", "spec.jwt.audience: sends tokens"},
		{"a service itself", provider(`{destinations: [{host: x.svc.test}], jwt: {}}`), "", ""},
		{"a service at another address", provider(`{destinations: [{host: x.svc.test, addresses: [203.0.113.1]}], jwt: {}}`), "", "spec.destinations[0]: sends tokens for \"https://x.svc.test\""},
		{"a wider pattern", provider(`{destinations: [{host: "**.test", addresses: [203.0.113.1]}], jwt: {}}`), "", "spec.destinations[0]: sends tokens"},
		{"another service", provider(`{destinations: [{host: own.test}], jwt: {audience: "https://other.test"}}`), "", ""},
		{"audience of a rule", provider(`{destinations: [{host: evil.test}], jwt: {}}`), strings.ReplaceAll(policy, "AUDIENCE", "inventory"), `spec.rules[0].credential.audience: is "inventory", the audience of ClusterCredentialProvider named, whose tokens go to c.test only`},
		{"own audience of a rule", provider(`{destinations: [{host: evil.test}], jwt: {}}`), strings.ReplaceAll(policy, "AUDIENCE", "own"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs := append(append([]string{}, base...), tt.provider)
			bad := api.Ref{Kind: "CredentialProvider", Namespace: "team", Name: "p"}
			if tt.policy != "" {
				docs = append(docs, tt.policy)
				bad.Kind = "AccessPolicy"
			}
			c, s := forPod(t, cluster(t, docs...), agent())
			found := c.Problems()[bad]
			switch {
			case tt.want == "" && len(c.Problems()) > 0:
				t.Errorf("got %v", c.Problems())
			case tt.want != "" && (len(found) == 0 || !strings.HasPrefix(found[0].Text, tt.want) || found[0].Reason != api.ReasonConflicted || len(c.Problems()) != 1):
				t.Errorf("got %v\nwant %s", c.Problems(), tt.want)
			}
			if tt.want != "" && len(s.Audiences) > 0 {
				t.Errorf("the issuer would sign tokens for %v", s.Audiences)
			}
		})
	}
}

// TestNamespacesNarrow checks that a policy of a namespace asks a provider of
// the cluster for no more than that gives.
func TestNamespacesNarrow(t *testing.T) {
	grant := `allowedNamespaces: {names: [team]}`
	base := []string{
		`{kind: ClusterCredentialProvider, metadata: {name: aws}, spec: {` + grant + `, destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1, policy: {Version: "2012-10-17", Statement: [{Effect: Allow, Action: "s3:GetObject", Resource: "arn:aws:s3:::a/*"}]}}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: login}, spec: {` + grant + `, ttl: 2m, destinations: [{host: a.test}], oauth2: {issuer: "https://login.test", grant: clientCredentials, scopes: [read, list], audience: api, resources: ["https://a.test"]}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: open}, spec: {` + grant + `, destinations: [{host: a.test}], oauth2: {issuer: "https://login.test", grant: clientCredentials}}}`,
		`{kind: ClusterCredentialProvider, metadata: {name: svc}, spec: {` + grant + `, destinations: [{host: a.test}], jwt: {}}}`,
	}
	for _, tt := range []struct{ name, host, credential, want string }{
		{"nothing", "a.test", `{provider: login}`, ""},
		{"less", "a.test", `{provider: login, scope: [read], audience: api, resources: ["https://a.test"], ttl: 1m}`, ""},
		{"more scope", "a.test", `{provider: login, scope: [read, admin]}`, `spec.rules[0].credential.scope: has "admin", but ClusterCredentialProvider "login" gives read, list only`},
		{"another audience", "a.test", `{provider: login, audience: admin}`, `spec.rules[0].credential.audience: has "admin"`},
		{"another resource", "a.test", `{provider: login, resources: ["https://b.test"]}`, `spec.rules[0].credential.resources: has "https://b.test"`},
		{"longer", "a.test", `{provider: login, ttl: 3m}`, `spec.rules[0].credential.ttl: is 3m0s`},
		{"unbounded", "a.test", `{provider: open, scope: [any], audience: x}`, ""},
		{"audience of a token", "a.test", `{provider: svc, audience: "https://b.test"}`, `spec.rules[0].credential.audience: is "https://b.test"`},
		{"role", "s3.eu-west-1.amazonaws.com", `{provider: aws, role: "arn:aws:iam::123456789012:role/admin"}`, "spec.rules[0].credential.role: replaces the role"},
		{"session policy", "s3.eu-west-1.amazonaws.com", `{provider: aws, aws: {policy: {Version: "2012-10-17", Statement: [{Effect: Allow, Action: "s3:*", Resource: "*"}]}}}`, "spec.rules[0].credential.aws.policy: stands in place"},
		{"granularity", "s3.eu-west-1.amazonaws.com", `{provider: aws, aws: {granularity: prefix}}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := `{rules: [{name: r, hosts: ["` + tt.host + `"], action: allow, credential: ` + tt.credential + `}]}}`
			own := `{kind: AccessPolicy, metadata: {name: p, namespace: team}, spec: ` + rules
			c, s := forPod(t, cluster(t, append(append([]string{}, base...), own)...), agent())
			found := c.Problems()[api.Ref{Kind: "AccessPolicy", Namespace: "team", Name: "p"}]
			switch {
			case tt.want == "" && len(c.Problems()) > 0:
				t.Errorf("got %v", c.Problems())
			case tt.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0].Text, tt.want) || found[0].Reason != api.ReasonScopeNotAllowed || len(s.Bundle.Unresolved) != 1):
				t.Errorf("got %v, %v\nwant %s", c.Problems(), s.Bundle.Unresolved, tt.want)
			}
			if slices.Contains(s.Audiences, "https://b.test") {
				t.Errorf("the issuer would sign tokens for %v", s.Audiences)
			}
			// The operator of the cluster may ask for anything.
			rails := `{kind: ClusterAccessPolicy, metadata: {name: p}, spec: ` + rules
			if c, _ := forPod(t, cluster(t, append(append([]string{}, base...), rails)...), agent()); len(c.Problems()) > 0 {
				t.Errorf("in a ClusterAccessPolicy: %v", c.Problems())
			}
		})
	}
}
