package v1alpha1

import "encoding/json"

// AWS mints sessions of an IAM role at AWS STS, cut to each request.
// +kubebuilder:validation:XValidation:rule="!has(self.rolesAnywhere) || !(has(self.audience) || has(self.tokenFile))",message="audience and tokenFile are for a web identity token; rolesAnywhere takes the X.509-SVID"
// +kubebuilder:validation:XValidation:rule="!has(self.tokenFile) || !has(self.audience)",message="audience is that of the own token; the one in tokenFile has its own"
// +kubebuilder:validation:XValidation:rule="!has(self.endpoint) || !(has(self.fips) || has(self.dualStack))",message="fips and dualStack choose among the own endpoints of AWS; remove them or endpoint"
type AWS struct {
	// RoleARN of the role whose sessions sign the requests. It may hold
	// ${workload.name}, ${workload.namespace}, ${workload.serviceAccount},
	// ${workload.labels.KEY}, ${task.purpose}, ${human.subject} and
	// ${human.email}.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	RoleARN string `json:"roleARN"`
	// Region of the STS endpoint. FIPS and DualStack choose its variants.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Region    string `json:"region"`
	FIPS      bool   `json:"fips,omitempty"`
	DualStack bool   `json:"dualStack,omitempty"`
	// Endpoint is the https URL of another STS, such as MinIO's.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Endpoint string `json:"endpoint,omitempty"`
	// CAFile, CABundle and Addresses apply to the STS endpoint.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CAFile string `json:"caFile,omitempty"`
	// +kubebuilder:validation:MaxLength=262144
	CABundle string `json:"caBundle,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	Addresses []string `json:"addresses,omitempty"`
	// Audience of the web identity token. Default sts.amazonaws.com.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Audience string `json:"audience,omitempty"`
	// TokenFile is a projected service-account token, read anew for each
	// session. Default: the workload's JWT-SVID.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	TokenFile string `json:"tokenFile,omitempty"`
	// RolesAnywhere takes the workload's X.509-SVID in place of a token.
	RolesAnywhere *AWSRolesAnywhere `json:"rolesAnywhere,omitempty"`
	// Chain assumes a second role with the session of the first.
	Chain *AWSChain `json:"chain,omitempty"`
	// Duration of a session at AWS, 15m to 12h. Default 15m. The ttl, where it
	// is shorter, also ends the session at AWS, by aws:CurrentTime.
	Duration Duration `json:"duration,omitempty"`
	// Policy is an IAM policy that no session exceeds where the rule names
	// none. Default: whatever the role allows.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Policy json.RawMessage `json:"policy,omitempty"`
	// Endpoints are servers other than AWS's own that speak its protocols.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Endpoints []AWSEndpoint `json:"endpoints,omitempty"`
	// PartitionKeys names the partition key of DynamoDB tables, by table.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=1024
	PartitionKeys map[string]string `json:"partitionKeys,omitempty"`
	// NoEscapes says that the server does not honour ${*}, ${?} and ${$} in
	// policies: calls that need one are denied. Default: true where roleARN is
	// MinIO's.
	NoEscapes *bool `json:"noEscapes,omitempty"`
	// Revocation ends sessions at the issuer. Default: Attaché forgets them,
	// and they end by themselves.
	Revocation *AWSRevocation `json:"revocation,omitempty"`
	// CallsPerSecond bounds the calls to STS. Default 20.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	CallsPerSecond int `json:"callsPerSecond,omitempty"`
	// Timeout of one call to STS. Default 10s.
	Timeout Duration `json:"timeout,omitempty"`
	// Doors are how the agent's SDK finds its placeholder keys: env (default),
	// container (the container credentials endpoint), imds (IMDSv2) and
	// webIdentity (AWS_ROLE_ARN and a token file, STS answered by Attaché).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:items:Enum=env;container;imds;webIdentity
	Doors []string `json:"doors,omitempty"`
}

// AWSRolesAnywhere is IAM Roles Anywhere: sessions for X.509-SVIDs.
type AWSRolesAnywhere struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	TrustAnchorARN string `json:"trustAnchorARN"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	ProfileARN string `json:"profileARN"`
	// Endpoint is the https URL of another server. CAFile, CABundle and
	// Addresses of the provider apply to it too.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Endpoint string `json:"endpoint,omitempty"`
}

// AWSChain is AssumeRole by the session of the first role. Values of Tags and
// SourceIdentity may hold what RoleARN may.
type AWSChain struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	RoleARN string `json:"roleARN"`
	// Duration is 15m to 1h. Default 15m.
	Duration Duration `json:"duration,omitempty"`
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=1224
	ExternalID string `json:"externalID,omitempty"`
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=50
	Tags map[string]string `json:"tags,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	TransitiveTags []string `json:"transitiveTags,omitempty"` // keys of Tags
	// SourceIdentity defaults to the human owner where a task has one; "none"
	// sets none.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	SourceIdentity string `json:"sourceIdentity,omitempty"`
}

// AWSEndpoint is a server that speaks a service's protocol.
type AWSEndpoint struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host"` // one of the destinations' hosts
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int `json:"port,omitempty"` // default 443
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service"` // signing name, such as s3
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Region string `json:"region,omitempty"` // default: the provider's
	// VirtualHost says that BUCKET.Host is served too (S3).
	VirtualHost bool `json:"virtualHost,omitempty"`
}

// AWSRevocation ends sessions where the issuer can.
type AWSRevocation struct {
	// Kind is iamDeny (a Deny by aws:TokenIssueTime for the role session, put on
	// the role; not with rolesAnywhere) or minio (MinIO's revoke-tokens, with
	// endpoint and without chain).
	// +kubebuilder:validation:Enum=iamDeny;minio
	Kind string `json:"kind"`
	// RoleARN is assumed for iamDeny; it needs iam:PutRolePolicy,
	// iam:GetRolePolicy and iam:DeleteRolePolicy on the sessions' role.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	RoleARN string `json:"roleARN,omitempty"`
	// Endpoint of IAM, if not AWS's own.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Endpoint string `json:"endpoint,omitempty"`
}
