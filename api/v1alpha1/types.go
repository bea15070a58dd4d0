// Package v1alpha1 holds the documents that configure Attaché. The same YAML
// works in a folder on a laptop and as custom resources in a cluster.
package v1alpha1

import (
	"encoding/json"
	"fmt"
	"time"
)

// Group and version of every document.
const (
	APIVersion = "attache.dev/v1alpha1"

	KindCredentialProvider = "CredentialProvider"
	KindAccessPolicy       = "AccessPolicy"
	KindAttacheConfig      = "AttacheConfig"
)

// TypeMeta names a document's schema.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// ObjectMeta names a document.
type ObjectMeta struct {
	// Name is unique for its kind and namespace; a provider's in all
	// namespaces, since rules name providers without one.
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"` // default: none
	// Labels and Annotations are the user's own; Attaché ignores them.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Duration is a time.Duration written as Go text ("90s", "5m").
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalJSON implements [json.Marshaler].
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements [json.Unmarshaler].
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is text such as \"90s\" or \"5m\"")
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration; write it as \"90s\" or \"5m\"", s)
	}
	*d = Duration(v)
	return nil
}

// Destination is a place that requests may go to and how it is reached and
// verified. Providers and policies both list destinations; two entries for one
// host and port must not differ.
type Destination struct {
	// Host is an exact name, "*.example.com" (one label) or
	// "**.example.com" (one or more labels).
	Host string `json:"host"`
	// Port defaults to 443, or 80 where Scheme is http.
	Port int `json:"port,omitempty"`
	// Scheme is https (default) or http.
	Scheme string `json:"scheme,omitempty"`
	// Addresses pins the name to these IP addresses, with an optional port
	// ("127.0.0.1" or "127.0.0.1:8443"). Only a pinned name may point at
	// loopback or private space.
	Addresses []string `json:"addresses,omitempty"`
	// CAFile and CABundle add roots (PEM) for this destination alone; with
	// OnlyCA the system's roots do not count.
	CAFile   string `json:"caFile,omitempty"`
	CABundle string `json:"caBundle,omitempty"`
	OnlyCA   bool   `json:"onlyCA,omitempty"`
	// ServerName is verified in the certificate instead of Host.
	ServerName string `json:"serverName,omitempty"`
	// ClientSVID presents the workload's X.509-SVID to the upstream.
	ClientSVID bool `json:"clientSVID,omitempty"`
}

// CredentialProvider says how one kind of credential is minted, where it may
// go, and how it is put on a request.
type CredentialProvider struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta             `json:"metadata"`
	Spec     CredentialProviderSpec `json:"spec"`
}

// CredentialProviderSpec has exactly one of OAuth2, APIKey, JWT, AWS, or a
// Preset that fills them in.
type CredentialProviderSpec struct {
	// Preset is "anthropic" or "openai": their workload identity federation.
	Preset string `json:"preset,omitempty"`
	// Destinations are the only places this provider's credentials may go,
	// whatever a policy says.
	Destinations []Destination `json:"destinations"`
	OAuth2       *OAuth2       `json:"oauth2,omitempty"`
	APIKey       *APIKey       `json:"apiKey,omitempty"`
	JWT          *JWT          `json:"jwt,omitempty"`
	AWS          *AWS          `json:"aws,omitempty"`
	Inject       Injection     `json:"inject,omitempty"`
	// Placeholders are set in the agent's environment, random for each run. An
	// aws provider has two, the access key id and the secret key: by default
	// AWS_ACCESS_KEY_ID (prefix AKIA) and AWS_SECRET_ACCESS_KEY.
	Placeholders []Placeholder `json:"placeholders,omitempty"`
	// BaseURLs open local listeners that stand for a destination.
	BaseURLs []BaseURL `json:"baseURLs,omitempty"`
	// TTL bounds new requests with one credential. Default 5m.
	TTL Duration `json:"ttl,omitempty"`
	// RetryStatus lists statuses that mean a stale credential: the call is
	// repeated once with a fresh one where that is safe. Default [401]. Not for
	// aws, whose error codes say it.
	RetryStatus []int `json:"retryStatus,omitempty"`
	// UnsafeCleartext lets the credential travel over unencrypted http.
	UnsafeCleartext bool `json:"unsafeCleartext,omitempty"`
}

// OAuth2 mints access tokens at an authorization server.
type OAuth2 struct {
	// Issuer is resolved by RFC 8414 or OpenID discovery; TokenEndpoint and
	// RevocationEndpoint name the endpoints directly.
	Issuer             string `json:"issuer,omitempty"`
	TokenEndpoint      string `json:"tokenEndpoint,omitempty"`
	RevocationEndpoint string `json:"revocationEndpoint,omitempty"`
	// CAFile, CABundle and Addresses apply to the server's endpoints.
	CAFile    string   `json:"caFile,omitempty"`
	CABundle  string   `json:"caBundle,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// Grant is clientCredentials, tokenExchange or jwtBearer.
	Grant string `json:"grant"`
	// ClientAuth is privateKeyJWT (default), jwtSVID, jwtSPIFFE or none (the
	// default of jwtBearer, whose assertion is the proof).
	ClientAuth string `json:"clientAuth,omitempty"`
	// ClientID defaults to the workload's SPIFFE ID.
	ClientID string `json:"clientID,omitempty"`
	// AssertionAudience is the aud of the client assertion; default: issuer.
	AssertionAudience string `json:"assertionAudience,omitempty"`
	// Body is form (default) or json.
	Body string `json:"body,omitempty"`
	// Scopes, Audience and Resources are sent where the rule names none.
	Scopes    []string `json:"scopes,omitempty"`
	Audience  string   `json:"audience,omitempty"`
	Resources []string `json:"resources,omitempty"`
	// Subject of a tokenExchange: human (default) or workload.
	Subject string `json:"subject,omitempty"`
	// SubjectTokenType is a URI of RFC 8693 section 3; default: what the
	// token is, …:jwt for the workload's and …:id_token for a human's.
	SubjectTokenType string `json:"subjectTokenType,omitempty"`
	// Actor of a tokenExchange: workload or none (default: workload when
	// Subject is human).
	Actor string `json:"actor,omitempty"`
	// ActorTokenType is a URI of RFC 8693 section 3; default …:jwt.
	ActorTokenType string `json:"actorTokenType,omitempty"`
	// RequireAct refuses a JWT access token without the right act claim.
	RequireAct bool `json:"requireAct,omitempty"`
	// RequestedTokenType is a URI of RFC 8693 section 3; default: the server's.
	RequestedTokenType string `json:"requestedTokenType,omitempty"`
	// Extra are further fields of the token request's body, Headers further
	// headers. Neither may hold a secret.
	Extra   map[string]string `json:"extra,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	// DPoP binds the token to a key of Attaché's (RFC 9449).
	DPoP bool `json:"dpop,omitempty"`
	// Timeout of one call to the server. Default 10s.
	Timeout Duration `json:"timeout,omitempty"`
}

// APIKey reads a vendor's static key from exactly one place.
type APIKey struct {
	// File is read anew for each credential; it must be out of the agent's reach.
	File string `json:"file,omitempty"`
	// Env is a variable of Attaché's own environment, wiped once read.
	Env string `json:"env,omitempty"`
	// Vault reads the key from HashiCorp Vault or OpenBao.
	Vault *VaultKV `json:"vault,omitempty"`
}

// VaultKV reads a field of a KV v2 (or v1) secret with JWT auth from
// HashiCorp Vault or OpenBao.
type VaultKV struct {
	Address   string `json:"address"`             // https URL of the server
	CAFile    string `json:"caFile,omitempty"`    // roots (PEM) for this server alone
	Namespace string `json:"namespace,omitempty"` // X-Vault-Namespace
	AuthMount string `json:"authMount,omitempty"` // default jwt
	Role      string `json:"role"`                // role of the JWT auth method
	Audience  string `json:"audience,omitempty"`  // default: Address
	Path      string `json:"path"`                // as in the API: secret/data/openai
	Field     string `json:"field,omitempty"`     // default value
	// Addresses pins the server's name, as in Destination.
	Addresses []string `json:"addresses,omitempty"`
}

// JWT presents a JWT-SVID of the workload as bearer token.
type JWT struct {
	// Audience defaults to https://HOST of the destination.
	Audience string `json:"audience,omitempty"`
}

// AWS mints sessions of an IAM role at AWS STS, cut to each request.
type AWS struct {
	// RoleARN of the role whose sessions sign the requests. It may hold
	// ${workload.name}, ${workload.namespace}, ${workload.serviceAccount},
	// ${workload.labels.KEY}, ${task.purpose}, ${human.subject} and
	// ${human.email}.
	RoleARN string `json:"roleARN"`
	// Region of the STS endpoint. FIPS and DualStack choose its variants.
	Region    string `json:"region"`
	FIPS      bool   `json:"fips,omitempty"`
	DualStack bool   `json:"dualStack,omitempty"`
	// Endpoint is the https URL of another STS, such as MinIO's.
	Endpoint string `json:"endpoint,omitempty"`
	// CAFile, CABundle and Addresses apply to the STS endpoint.
	CAFile    string   `json:"caFile,omitempty"`
	CABundle  string   `json:"caBundle,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// Audience of the web identity token. Default sts.amazonaws.com.
	Audience string `json:"audience,omitempty"`
	// TokenFile is a projected service-account token, read anew for each
	// session. Default: the workload's JWT-SVID.
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
	Policy json.RawMessage `json:"policy,omitempty"`
	// Endpoints are servers other than AWS's own that speak its protocols.
	Endpoints []AWSEndpoint `json:"endpoints,omitempty"`
	// PartitionKeys names the partition key of DynamoDB tables, by table.
	PartitionKeys map[string]string `json:"partitionKeys,omitempty"`
	// NoEscapes says that the server does not honour ${*}, ${?} and ${$} in
	// policies: calls that need one are denied. Default: true where roleARN is
	// MinIO's.
	NoEscapes *bool `json:"noEscapes,omitempty"`
	// Revocation ends sessions at the issuer. Default: Attaché forgets them,
	// and they end by themselves.
	Revocation *AWSRevocation `json:"revocation,omitempty"`
	// CallsPerSecond bounds the calls to STS. Default 20.
	CallsPerSecond int `json:"callsPerSecond,omitempty"`
	// Timeout of one call to STS. Default 10s.
	Timeout Duration `json:"timeout,omitempty"`
	// Doors are how the agent's SDK finds its placeholder keys: env (default),
	// container (the container credentials endpoint), imds (IMDSv2) and
	// webIdentity (AWS_ROLE_ARN and a token file, STS answered by Attaché).
	Doors []string `json:"doors,omitempty"`
}

// AWSRolesAnywhere is IAM Roles Anywhere: sessions for X.509-SVIDs.
type AWSRolesAnywhere struct {
	TrustAnchorARN string `json:"trustAnchorARN"`
	ProfileARN     string `json:"profileARN"`
	// Endpoint is the https URL of another server. CAFile, CABundle and
	// Addresses of the provider apply to it too.
	Endpoint string `json:"endpoint,omitempty"`
}

// AWSChain is AssumeRole by the session of the first role. Values of Tags and
// SourceIdentity may hold what RoleARN may.
type AWSChain struct {
	RoleARN string `json:"roleARN"`
	// Duration is 15m to 1h. Default 15m.
	Duration       Duration          `json:"duration,omitempty"`
	ExternalID     string            `json:"externalID,omitempty"`
	Tags           map[string]string `json:"tags,omitempty"`
	TransitiveTags []string          `json:"transitiveTags,omitempty"` // keys of Tags
	// SourceIdentity defaults to the human owner where a task has one; "none"
	// sets none.
	SourceIdentity string `json:"sourceIdentity,omitempty"`
}

// AWSEndpoint is a server that speaks a service's protocol.
type AWSEndpoint struct {
	Host    string `json:"host"`             // one of the destinations' hosts
	Port    int    `json:"port,omitempty"`   // default 443
	Service string `json:"service"`          // signing name, such as s3
	Region  string `json:"region,omitempty"` // default: the provider's
	// VirtualHost says that BUCKET.Host is served too (S3).
	VirtualHost bool `json:"virtualHost,omitempty"`
}

// AWSRevocation ends sessions where the issuer can.
type AWSRevocation struct {
	// Kind is iamDeny (a Deny by aws:TokenIssueTime for the role session, put on
	// the role; not with rolesAnywhere) or minio (MinIO's revoke-tokens, with
	// endpoint and without chain).
	Kind string `json:"kind"`
	// RoleARN is assumed for iamDeny; it needs iam:PutRolePolicy,
	// iam:GetRolePolicy and iam:DeleteRolePolicy on the sessions' role.
	RoleARN string `json:"roleARN,omitempty"`
	// Endpoint of IAM, if not AWS's own.
	Endpoint string `json:"endpoint,omitempty"`
}

// Injection says how the credential is put on a request.
type Injection struct {
	// As is bearer (default), header, basic, query, dpop or sigv4 (the default
	// and only way of an aws provider).
	As string `json:"as,omitempty"`
	// Name of the header or query parameter.
	Name string `json:"name,omitempty"`
	// Prefix stands before the value in a header ("Token ").
	Prefix string `json:"prefix,omitempty"`
	// Username of basic; the credential is the password.
	Username string `json:"username,omitempty"`
	// Headers are further fixed headers (no secrets).
	Headers map[string]string `json:"headers,omitempty"`
	// RequirePlaceholder injects only where the request carries this run's
	// placeholder; default true if the provider declares placeholders.
	RequirePlaceholder *bool `json:"requirePlaceholder,omitempty"`
}

// Placeholder is a worthless value that an SDK insists on.
type Placeholder struct {
	// Env is the variable that the agent reads; one provider sets it.
	Env string `json:"env"`
	// Prefix makes the value look right to the SDK ("sk-").
	Prefix string `json:"prefix,omitempty"`
}

// BaseURL is a local listener that stands for https://Host:Port.
type BaseURL struct {
	// Env receives the listener's URL plus Path.
	Env string `json:"env"`
	// Host and Port are one of the provider's destinations; Port defaults to
	// that destination's.
	Host string `json:"host"`
	Port int    `json:"port,omitempty"`
	// Path is appended to the local URL in Env ("/v1").
	Path   string `json:"path,omitempty"`
	Scheme string `json:"scheme,omitempty"` // of the local listener: http (default) or https
	Listen string `json:"listen,omitempty"` // default 127.0.0.1:0
}

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
	Mode string `json:"mode,omitempty"`
	// Workloads the policy speaks of; empty means all.
	Workloads    []WorkloadSelector `json:"workloads,omitempty"`
	Destinations []Destination      `json:"destinations,omitempty"`
	Rules        []Rule             `json:"rules"`
}

// WorkloadSelector matches a workload when every given field does.
type WorkloadSelector struct {
	// SPIFFEID is exact, or a prefix that ends in "/*".
	SPIFFEID string `json:"spiffeID,omitempty"`
	// Namespaces and ServiceAccounts match when the workload's is listed.
	Namespaces      []string `json:"namespaces,omitempty"`
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
	// MatchLabels matches when the workload has each of these labels.
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

	DurabilityProcess Durability = "process"
	DurabilityPower   Durability = "power"
)

// Rule actions.
const (
	ActionAllow       = "allow"
	ActionDeny        = "deny"
	ActionPassthrough = "passthrough"
)

// Rule matches requests and says what happens to them. Every given field must
// match.
type Rule struct {
	// Name is unique in its policy and stands in every record.
	Name string `json:"name"`
	// Hosts are exact names, "*.x" (one label), "**.x" (one or more), "*" (any).
	Hosts   []string     `json:"hosts"`
	Ports   []int        `json:"ports,omitempty"`   // default: 443 and 80
	Methods []string     `json:"methods,omitempty"` // default: any
	Paths   []string     `json:"paths,omitempty"`   // templates; default: any
	Headers []ValueMatch `json:"headers,omitempty"`
	Query   []ValueMatch `json:"query,omitempty"`
	// Protocols are http, grpc, websocket; default any.
	Protocols []string `json:"protocols,omitempty"`
	// When is a CEL expression over request, workload, task, human and time.
	When string `json:"when,omitempty"`
	// Action is allow, deny or passthrough.
	Action string `json:"action"`
	// Credential is put on allowed requests.
	Credential *CredentialRef `json:"credential,omitempty"`
	// Reason is shown with a deny: why, and how to ask for access.
	Reason string `json:"reason,omitempty"`

	// AgentCredential is strip (default) or pass: the fate of credentials that
	// the agent itself put on the request.
	AgentCredential AgentCredentials `json:"agentCredential,omitempty"`
	// AnswerCredentials is seal (default) or pass: the fate of credentials in
	// the answer.
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
	// process (kill -9) or power (synced). Default: audit.durability.
	Durability Durability `json:"durability,omitempty"`
}

// ValueMatch matches a header or query parameter. With neither Exact nor
// Prefix it asks only that it is present; Absent asks the opposite.
type ValueMatch struct {
	Name   string `json:"name"`             // of the header (any case) or parameter
	Exact  string `json:"exact,omitempty"`  // the whole value
	Prefix string `json:"prefix,omitempty"` // its beginning
	Absent bool   `json:"absent,omitempty"` // must not be there
}

// CredentialRef asks a provider for a credential.
type CredentialRef struct {
	// Provider names a CredentialProvider that lists the rule's hosts.
	Provider string `json:"provider"`
	// Scope, Audience and Resources replace the provider's own.
	Scope     []string `json:"scope,omitempty"`
	Audience  string   `json:"audience,omitempty"`
	Resources []string `json:"resources,omitempty"`
	Role      string   `json:"role,omitempty"` // replaces the provider's; for providers that know roles
	// AWS says how far sessions of an aws provider are cut.
	AWS *AWSScope `json:"aws,omitempty"`
	// AuthorizationDetails is a list of mappings, each with a type (RFC 9396).
	AuthorizationDetails json.RawMessage `json:"authorizationDetails,omitempty"`
	TTL                  Duration        `json:"ttl,omitempty"` // default: the provider's
}

// AWSScope says what one session of an aws provider may do.
type AWSScope struct {
	// Granularity is request (default: the call's actions on its resources),
	// prefix (S3: below its keys' prefixes), task (what Policy allows of the
	// call's service) or session (what Policy allows).
	Granularity string `json:"granularity,omitempty"`
	// Policy is the IAM policy that no session exceeds, in place of the
	// provider's. Default: the provider's.
	Policy json.RawMessage `json:"policy,omitempty"`
	// OnTooLarge is deny (default), or another granularity to use where the
	// session policy would exceed the limit of STS.
	OnTooLarge string `json:"onTooLarge,omitempty"`
}

// AttacheConfig configures the program itself. A folder holds at most one.
type AttacheConfig struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta        `json:"metadata"`
	Spec     AttacheConfigSpec `json:"spec"`
}

// AttacheConfigSpec is the body of an AttacheConfig. Every field has a
// default.
type AttacheConfigSpec struct {
	// TrustDomain of the embedded issuer. Default attache.local.
	TrustDomain string         `json:"trustDomain,omitempty"`
	Workload    WorkloadConfig `json:"workload,omitempty"`
	Identity    IdentityConfig `json:"identity,omitempty"`
	Humans      []HumanIssuer  `json:"humans,omitempty"`
	Tasks       TasksConfig    `json:"tasks,omitempty"`
	Audit       AuditConfig    `json:"audit,omitempty"`
	Limits      Limits         `json:"limits,omitempty"`
	Upstream    UpstreamConfig `json:"upstream,omitempty"`
	Admin       AdminConfig    `json:"admin,omitempty"`
	Tracing     TracingConfig  `json:"tracing,omitempty"`
}

// WorkloadConfig describes the workload of attache run.
type WorkloadConfig struct {
	// Name is the last part of the SPIFFE ID spiffe://TRUSTDOMAIN/agent/NAME.
	// Default: the base name of the command.
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"` // for selectors and CEL
	Owner  string            `json:"owner,omitempty"`  // accountable person or team
}

// IdentityConfig chooses the source of identity documents.
type IdentityConfig struct {
	// Source is embedded (default) or spiffe.
	Source string `json:"source,omitempty"`
	// Socket of the SPIFFE Workload API; default $SPIFFE_ENDPOINT_SOCKET.
	Socket string `json:"socket,omitempty"`
	// IssuerURL is the iss of JWT-SVIDs; default: the discovery listener's URL.
	IssuerURL string `json:"issuerURL,omitempty"`
	// Listen serves discovery and JWKS over HTTPS; "" means not at all.
	Listen string `json:"listen,omitempty"`
	// TLSCertFile and TLSKeyFile (PEM) serve that listener; default: a
	// certificate of the embedded issuer's own authority.
	TLSCertFile string `json:"tlsCertFile,omitempty"`
	TLSKeyFile  string `json:"tlsKeyFile,omitempty"`
	// SSHAgent is the socket of an ssh-agent, out of the child's reach, whose
	// ECDSA P-256 keys sign JWT-SVIDs; they outlive this process. Default:
	// keys in memory.
	SSHAgent string `json:"sshAgent,omitempty"`
	// RotateEvery is how long a signing key signs. Default 24h.
	RotateEvery Duration `json:"rotateEvery,omitempty"`
}

// HumanIssuer is an OpenID provider whose tokens may open tasks.
type HumanIssuer struct {
	Issuer string `json:"issuer"` // https URL, resolved by OpenID discovery
	// Audiences of which the token must carry one: ours.
	Audiences []string `json:"audiences"`
	// CAFile, CABundle and Addresses apply to the issuer's endpoints.
	CAFile    string   `json:"caFile,omitempty"`
	CABundle  string   `json:"caBundle,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// MaxAge of iat. Default 10m.
	MaxAge Duration `json:"maxAge,omitempty"`
	// RequireBinding asks for may_act.sub or azp naming the workload. Default true.
	RequireBinding *bool `json:"requireBinding,omitempty"`
}

// TasksConfig bounds tasks.
type TasksConfig struct {
	MaxTTL Duration `json:"maxTTL,omitempty"` // default 1h
}

// AuditConfig configures the record spool.
type AuditConfig struct {
	// Dir of the spool. Default: audit below the state folder.
	Dir          string `json:"dir,omitempty"`
	MaxBytes     int64  `json:"maxBytes,omitempty"`     // default 1 GiB
	SegmentBytes int64  `json:"segmentBytes,omitempty"` // default 64 MiB
	// OnFull is refuse (default) or overwrite (drop the oldest closed segment).
	OnFull     string     `json:"onFull,omitempty"`
	Durability Durability `json:"durability,omitempty"` // process (default) or power, for rules that say nothing
	Heartbeat  Duration   `json:"heartbeat,omitempty"`  // default 30s
}

// Limits of the data path. Zero means the default.
type Limits struct {
	MaxHeaderBytes  int      `json:"maxHeaderBytes,omitempty"`  // default 65536
	MaxHeaders      int      `json:"maxHeaders,omitempty"`      // default 200
	MaxConnections  int      `json:"maxConnections,omitempty"`  // default 10000
	MaxStreams      int      `json:"maxStreams,omitempty"`      // h2 streams a connection, default 250
	HeaderTimeout   Duration `json:"headerTimeout,omitempty"`   // default 10s
	IdleTimeout     Duration `json:"idleTimeout,omitempty"`     // default 3m
	DialTimeout     Duration `json:"dialTimeout,omitempty"`     // default 10s
	TLSTimeout      Duration `json:"tlsTimeout,omitempty"`      // default 10s
	ResponseTimeout Duration `json:"responseTimeout,omitempty"` // to the answer's head; default 10m
	// ContinueTimeout is how long a body waits for an origin's 100 Continue;
	// default 3s.
	ContinueTimeout Duration `json:"continueTimeout,omitempty"`
	// TunnelIdleTimeout ends a tunnel, WebSocket or passthrough connection
	// through which nothing passes; default 10m.
	TunnelIdleTimeout Duration `json:"tunnelIdleTimeout,omitempty"`
	DrainTimeout      Duration `json:"drainTimeout,omitempty"`      // default 20s
	MaxIdlePerHost    int      `json:"maxIdlePerHost,omitempty"`    // connections to an origin, default 256
	OriginIdleTimeout Duration `json:"originIdleTimeout,omitempty"` // of those; default 90s
	// MaxAnswerHeaderBytes bounds an answer's head; default 1 MiB, at most 16 MiB.
	MaxAnswerHeaderBytes int `json:"maxAnswerHeaderBytes,omitempty"`
	// MaxReplayBytes is the largest body that is kept to repeat a request after
	// a stale credential; default 64 KiB, at most 16 MiB.
	MaxReplayBytes    int `json:"maxReplayBytes,omitempty"`
	LeafCacheSize     int `json:"leafCacheSize,omitempty"`     // default 1024
	CredentialCache   int `json:"credentialCache,omitempty"`   // default 4096
	MaxRequestsPerSec int `json:"maxRequestsPerSec,omitempty"` // 0: unlimited
}

// UpstreamConfig says how upstreams are reached.
type UpstreamConfig struct {
	// ParentProxy is http://host:port; default: Attaché's own environment.
	// "none" ignores the environment.
	ParentProxy string `json:"parentProxy,omitempty"`
	// AllowPrivate lets unpinned names resolve to private (RFC 1918, ULA)
	// addresses; never to loopback, link-local or metadata addresses.
	AllowPrivate bool `json:"allowPrivate,omitempty"`
}

// AdminConfig is the operator's own listener, out of the agent's reach.
type AdminConfig struct {
	// Listen is a Unix socket path ("unix:/…") or host:port. Default: a Unix
	// socket in the state folder.
	Listen string `json:"listen,omitempty"`
}

// TracingConfig exports OpenTelemetry traces.
type TracingConfig struct {
	// OTLPEndpoint is an http(s) URL; empty: no export.
	OTLPEndpoint string `json:"otlpEndpoint,omitempty"`
	// SampleRatio of traces that the agent did not start. Default 0.01.
	SampleRatio *float64 `json:"sampleRatio,omitempty"`
}
