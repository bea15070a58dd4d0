package main

import (
	"bytes"
	"os"
	"path/filepath"
	"text/template"

	"github.com/attache-dev/attache/test/compat/upstream"
)

// documents is the configuration of every run: what an operator would write,
// with the upstreams' names pinned to where they listen here.
const documents = `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: compat}
spec:
  workload: {name: compat, owner: compat-team}
  identity: {issuerURL: {{.IssuerURL}}, sshAgent: {{.Set.SSHAgent}}}
---
# Access tokens that resource servers verify offline.
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: tokens}
spec:
  destinations:
{{- range .Bearer}}
  - {host: {{.Host}}, addresses: ["{{.Addr}}"], caFile: {{$.Set.CA}}}
{{- end}}
  oauth2:
    issuer: {{.IDP}}
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    grant: clientCredentials
    scopes: ["compat:use"]
  baseURLs:
  - {env: API_BASE_URL, host: {{.API}}}
  - {env: API_SECURE_BASE_URL, host: {{.API}}, scheme: https}
  - {env: MCP_BASE_URL, host: {{.MCP}}}
  - {env: MCP_SECURE_BASE_URL, host: {{.MCP}}, scheme: https}
  - {env: INDEX_BASE_URL, host: {{.PyPI}}}
  - {env: INDEX_SECURE_BASE_URL, host: {{.PyPI}}, scheme: https}
  - {env: REGISTRY_BASE_URL, host: {{.NPM}}}
  - {env: REGISTRY_SECURE_BASE_URL, host: {{.NPM}}, scheme: https}
  - {env: CRATES_BASE_URL, host: {{.Crates}}}
  - {env: CRATES_SECURE_BASE_URL, host: {{.Crates}}, scheme: https}
  - {env: GRPC_BASE_URL, host: {{.GRPC}}}
  - {env: GRPC_SECURE_BASE_URL, host: {{.GRPC}}, scheme: https}
  - {env: GRPC_DENIED_BASE_URL, host: {{.GRPCDenied}}}
  - {env: GRPC_SECURE_DENIED_BASE_URL, host: {{.GRPCDenied}}, scheme: https}
---
# Opaque tokens for git, introspected by the server, sent as a password.
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: git}
spec:
  destinations:
  - {host: {{.Git}}, addresses: ["{{.Set.Addr}}"], caFile: {{.Set.CA}}}
  oauth2:
    issuer: {{.IDP}}
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    grant: clientCredentials
    scopes: ["compat:use"]
    resources: [https://{{.Git}}]
  inject: {as: basic, username: x-access-token}
  baseURLs:
  - {env: REPOSITORY_BASE_URL, host: {{.Git}}}
  - {env: REPOSITORY_SECURE_BASE_URL, host: {{.Git}}, scheme: https}
---
# Unencrypted http, for clients' absolute-form requests.
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: cleartext}
spec:
  unsafeCleartext: true
  destinations:
{{- range .Cleartext}}
  - {host: {{.Host}}, scheme: http, addresses: ["{{.Addr}}"]}
{{- end}}
  oauth2:
    issuer: {{.IDP}}
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    grant: clientCredentials
    scopes: ["compat:use"]
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: cleartext-git}
spec:
  unsafeCleartext: true
  destinations:
  - {host: {{.PlainGit}}, scheme: http, addresses: ["{{.Set.Plain}}"]}
  oauth2:
    issuer: {{.IDP}}
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    grant: clientCredentials
    scopes: ["compat:use"]
    resources: [https://{{.PlainGit}}]
  inject: {as: basic, username: x-access-token}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: anthropic}
spec:
  preset: anthropic
  destinations:
  - {host: api.anthropic.com, addresses: ["{{.Set.Addr}}"], caFile: {{.Set.CA}}}
  baseURLs:
  - {env: ANTHROPIC_BASE_URL, host: api.anthropic.com}
  - {env: ANTHROPIC_SECURE_BASE_URL, host: api.anthropic.com, scheme: https}
  oauth2:
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    extra: {federation_rule_id: {{.FederationRule}}, organization_id: {{.Organization}}, service_account_id: {{.AnthropicAccount}}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: openai}
spec:
  preset: openai
  destinations:
  - {host: api.openai.com, addresses: ["{{.Set.Addr}}"], caFile: {{.Set.CA}}}
  baseURLs:
  - {env: OPENAI_BASE_URL, host: api.openai.com, path: /v1}
  - {env: OPENAI_SECURE_BASE_URL, host: api.openai.com, path: /v1, scheme: https}
  oauth2:
    addresses: ["{{.Set.Addr}}"]
    caFile: {{.Set.CA}}
    extra: {identity_provider_id: {{.IdentityProvider}}, service_account_id: {{.OpenAIAccount}}}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: compat}
spec:
  destinations:
  - {host: {{.Canary}}, addresses: ["{{.Set.Addr}}"], caFile: {{.Set.CA}}}
  rules:
{{- range .Bearer}}
  - {name: {{.Name}}, hosts: [{{.Host}}], action: allow, credential: {provider: tokens, resources: [https://{{.Host}}]}}
{{- end}}
  - {name: git, hosts: [{{.Git}}], action: allow, credential: {provider: git}}
{{- range .Cleartext}}
  - {name: {{.Name}}, hosts: [{{.Host}}], action: allow, credential: {provider: cleartext, resources: [https://{{.Host}}]}}
{{- end}}
  - {name: cleartext-git, hosts: [{{.PlainGit}}], action: allow, credential: {provider: cleartext-git}}
  - {name: anthropic, hosts: [api.anthropic.com], action: allow, credential: {provider: anthropic}}
  - {name: openai, hosts: [api.openai.com], action: allow, credential: {provider: openai}}
  - {name: canary, hosts: [{{.Canary}}], action: allow}
  - {name: denied-calls, hosts: [{{.API}}, {{.PlainAPI}}, {{.MCP}}, {{.PlainMCP}}], paths: ["/denied/**"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-grpc, hosts: [{{.GRPCDenied}}], paths: ["/**"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-repository, hosts: [{{.Git}}, {{.PlainGit}}], paths: ["/denied.git/**"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-python, hosts: [{{.PyPI}}, {{.PlainPyPI}}], paths: ["/simple/denied-pkg/**"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-npm, hosts: [{{.NPM}}, {{.PlainNPM}}], paths: ["/denied-pkg/**"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-crate, hosts: [{{.Crates}}, {{.PlainCrates}}], paths: ["/index/de/ni/denied-pkg"], action: deny, reason: "{{.Reason}}"}
  - {name: denied-models, hosts: [api.anthropic.com, api.openai.com], paths: ["/v1/models/**"], action: deny, reason: "{{.Reason}}"}
`

// reason is what the denying rules say; clients that show bodies show it.
const reason = "compat keeps this from agents, ask compat-team"

type bearerHost struct{ Name, Host, Addr string }

// writeConfig writes the documents into dir.
func writeConfig(dir string, s *upstream.Set) error {
	var bearer, cleartext []bearerHost
	for name, host := range map[string]string{"api": upstream.APIHost, "mcp": upstream.MCPHost, "python-index": upstream.PyPIHost,
		"npm-registry": upstream.NPMHost, "crates": upstream.CratesHost} {
		bearer = append(bearer, bearerHost{name, host, s.Addr})
		cleartext = append(cleartext, bearerHost{"cleartext-" + name, upstream.PlainName(host), s.Plain})
	}
	bearer = append(bearer, bearerHost{"grpc", upstream.GRPCHost, s.GRPC}, bearerHost{"grpc-denied", upstream.GRPCDeniedHost, s.GRPC})
	var b bytes.Buffer
	t := template.Must(template.New("").Option("missingkey=error").Parse(documents))
	if err := t.Execute(&b, map[string]any{
		"Set": s, "Bearer": bearer, "Cleartext": cleartext, "Reason": reason, "IssuerURL": upstream.IssuerURL, "IDP": upstream.IDP,
		"API": upstream.APIHost, "MCP": upstream.MCPHost, "PyPI": upstream.PyPIHost, "NPM": upstream.NPMHost, "Git": upstream.GitHost,
		"PlainMCP": upstream.PlainName(upstream.MCPHost), "PlainPyPI": upstream.PlainName(upstream.PyPIHost), "PlainNPM": upstream.PlainName(upstream.NPMHost),
		"PlainGit": upstream.PlainName(upstream.GitHost), "PlainCrates": upstream.PlainName(upstream.CratesHost),
		"PlainAPI": upstream.PlainName(upstream.APIHost), "Canary": upstream.CanaryHost, "Crates": upstream.CratesHost, "GRPC": upstream.GRPCHost, "GRPCDenied": upstream.GRPCDeniedHost,
		"FederationRule": upstream.FederationRule, "Organization": upstream.Organization, "AnthropicAccount": upstream.AnthropicAccount,
		"IdentityProvider": upstream.IdentityProvider, "OpenAIAccount": upstream.OpenAIAccount,
	}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "compat.yaml"), b.Bytes(), 0o600)
}
