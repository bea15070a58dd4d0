package v1alpha1

import "encoding/json"

// AccessPolicy says which workloads may make which calls with which
// credential.
type AccessPolicy struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta       `json:"metadata"`
	Spec     AccessPolicySpec `json:"spec"`
}

// AccessPolicySpec is the body of an AccessPolicy.
type AccessPolicySpec struct {
	// Mode is enforce (default) or audit: record what would be denied and let
	// it pass without a credential.
	// +kubebuilder:validation:Enum=enforce;audit
	Mode string `json:"mode,omitempty"`
	// TargetRefs attach the policy to namespaces or service accounts: a workload
	// must be in one of them. Empty means all of the policy's namespace, or of the
	// cluster.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []TargetRef `json:"targetRefs,omitempty"`
	// Workloads the policy speaks of; empty means all.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Workloads []WorkloadSelector `json:"workloads,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Destinations []Destination `json:"destinations,omitempty"`
	// +kubebuilder:validation:MaxItems=1024
	// +listType=map
	// +listMapKey=name
	Rules []Rule `json:"rules"`
}

// WorkloadSelector matches a workload when every given field does.
// +kubebuilder:validation:XValidation:rule="has(self.spiffeID) || has(self.namespaces) || has(self.serviceAccounts) || has(self.matchLabels)",message="selects nothing in particular; give a field, or leave spec.workloads out to speak of all"
type WorkloadSelector struct {
	// SPIFFEID is exact, or a prefix that ends in "/*".
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^spiffe://`
	SPIFFEID string `json:"spiffeID,omitempty"`
	// Namespaces and ServiceAccounts match when the workload's is listed.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Namespaces []string `json:"namespaces,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
	// MatchLabels matches when the workload has each of these labels.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
}

// AgentCredentials says what happens to credentials that the agent itself put
// on the request.
type AgentCredentials string

// AnswerCredentials says what happens to credentials in an answer.
type AnswerCredentials string

// Durability is what a begin record survives before the call is sent.
type Durability string

// Values of the enumerations above; the first is the default.
const (
	AgentCredentialsStrip AgentCredentials = "strip"
	AgentCredentialsPass  AgentCredentials = "pass"

	AnswersSeal AnswerCredentials = "seal"
	AnswersPass AnswerCredentials = "pass"

	DurabilityProcess   Durability = "process"
	DurabilityPower     Durability = "power"
	DurabilityCollector Durability = "collector"
)

// Rule actions.
const (
	ActionAllow       = "allow"
	ActionDeny        = "deny"
	ActionPassthrough = "passthrough"
)

// Rule matches requests and says what happens to them. Every given field must
// match.
// +kubebuilder:validation:XValidation:rule="!has(self.credential) || self.action == 'allow'",message="credential has no place in a rule that does not allow"
// +kubebuilder:validation:XValidation:rule="!has(self.credential) || !has(self.agentCredential) || self.agentCredential != 'pass'",message="agentCredential pass stands beside a credential of ours, which takes its place"
// +kubebuilder:validation:XValidation:rule="self.action != 'passthrough' || !(has(self.methods) || has(self.paths) || has(self.headers) || has(self.query) || has(self.protocols) || has(self.agentCredential) || has(self.answerCredentials) || has(self.allowCrossSite) || has(self.echoRisk) || has(self.rawPaths) || has(self.credentialCall) || has(self.openTask))",message="action passthrough sees no request: methods, paths, headers, query, protocols and what is done to a request have no place beside it"
type Rule struct {
	// Name is unique in its policy and stands in every record.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$`
	Name string `json:"name"`
	// Hosts are exact names, "*.x" (one label), "**.x" (one or more), "*" (any).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Hosts []string `json:"hosts"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int `json:"ports,omitempty"` // default: 443 and 80
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	Methods []string `json:"methods,omitempty"` // default: any
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Paths []string `json:"paths,omitempty"` // templates; default: any
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Headers []ValueMatch `json:"headers,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Query []ValueMatch `json:"query,omitempty"`
	// Protocols are http, grpc, websocket; default any.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:items:Enum=http;grpc;websocket
	Protocols []string `json:"protocols,omitempty"`
	// When is a CEL expression over request, workload, task, human and time.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	When string `json:"when,omitempty"`
	// Action is allow, deny or passthrough.
	// +kubebuilder:validation:Enum=allow;deny;passthrough
	Action string `json:"action"`
	// Credential is put on allowed requests.
	Credential *CredentialRef `json:"credential,omitempty"`
	// Reason is shown with a deny: why, and how to ask for access.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`

	// AgentCredential is strip (default) or pass: the fate of credentials that
	// the agent itself put on the request.
	// +kubebuilder:validation:Enum=strip;pass
	AgentCredential AgentCredentials `json:"agentCredential,omitempty"`
	// AnswerCredentials is seal (default) or pass: the fate of credentials in
	// the answer.
	// +kubebuilder:validation:Enum=seal;pass
	AnswerCredentials AnswerCredentials `json:"answerCredentials,omitempty"`
	// AllowCrossSite lets browser requests from other sites carry the credential.
	AllowCrossSite bool `json:"allowCrossSite,omitempty"`
	// EchoRisk marks answers that may repeat the request; Range is dropped.
	EchoRisk bool `json:"echoRisk,omitempty"`
	// RawPaths says that the protocol owns encoded slashes and dot segments. A
	// credential of an aws provider implies it.
	RawPaths bool `json:"rawPaths,omitempty"`
	// CredentialCall allows a call whose purpose is to hand out credentials.
	CredentialCall bool `json:"credentialCall,omitempty"`
	// OpenTask lets the agent open tasks by itself.
	OpenTask bool `json:"openTask,omitempty"`
	// MaxStream ends a streaming answer after this time; default: task end.
	MaxStream Duration `json:"maxStream,omitempty"`
	// Durability is what a begin record survives before the call is sent:
	// process (kill -9), power (synced) or collector (acknowledged by the
	// collector). Default: audit.durability.
	// +kubebuilder:validation:Enum=process;power;collector
	Durability Durability `json:"durability,omitempty"`
}

// ValueMatch matches a header or query parameter. With neither Exact nor
// Prefix it asks only that it is present; Absent asks the opposite.
// +kubebuilder:validation:XValidation:rule="(has(self.exact) ? 1 : 0) + (has(self.prefix) ? 1 : 0) + (has(self.absent) && self.absent ? 1 : 0) <= 1",message="give one of exact, prefix and absent"
type ValueMatch struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"` // of the header (any case) or parameter
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Exact string `json:"exact,omitempty"` // the whole value
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Prefix string `json:"prefix,omitempty"` // its beginning
	Absent bool   `json:"absent,omitempty"` // must not be there
}

// CredentialRef asks a provider for a credential.
type CredentialRef struct {
	// Provider names a CredentialProvider that lists the rule's hosts.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Provider string `json:"provider"`
	// Scope, Audience and Resources replace the provider's own.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Scope []string `json:"scope,omitempty"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Audience string `json:"audience,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	Resources []string `json:"resources,omitempty"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Role string `json:"role,omitempty"` // replaces the provider's; for providers that know roles
	// AWS says how far sessions of an aws provider are cut.
	AWS *AWSScope `json:"aws,omitempty"`
	// AuthorizationDetails is a list of mappings, each with a type (RFC 9396).
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	AuthorizationDetails json.RawMessage `json:"authorizationDetails,omitempty"`
	TTL                  Duration        `json:"ttl,omitempty"` // default: the provider's
}

// AWSScope says what one session of an aws provider may do.
type AWSScope struct {
	// Granularity is request (default: the call's actions on its resources),
	// prefix (S3: below its keys' prefixes), task (what Policy allows of the
	// call's service) or session (what Policy allows).
	// +kubebuilder:validation:Enum=request;prefix;task;session
	Granularity string `json:"granularity,omitempty"`
	// Policy is the IAM policy that no session exceeds, in place of the
	// provider's. Default: the provider's.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Policy json.RawMessage `json:"policy,omitempty"`
	// OnTooLarge is deny (default), or another granularity to use where the
	// session policy would exceed the limit of STS.
	// +kubebuilder:validation:Enum=deny;request;prefix;task;session
	OnTooLarge string `json:"onTooLarge,omitempty"`
}
