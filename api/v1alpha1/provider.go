package v1alpha1

// CredentialProvider says how one kind of credential is minted, where it may
// go, and how it is put on a request.
type CredentialProvider struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta             `json:"metadata"`
	Spec     CredentialProviderSpec `json:"spec"`
}

// CredentialProviderSpec has exactly one of OAuth2, APIKey, JWT, AWS, or a
// Preset that fills them in.
// +kubebuilder:validation:XValidation:rule="has(self.preset) ? !(has(self.apiKey) || has(self.jwt) || has(self.aws)) : (has(self.oauth2) ? 1 : 0) + (has(self.apiKey) ? 1 : 0) + (has(self.jwt) ? 1 : 0) + (has(self.aws) ? 1 : 0) == 1",message="give exactly one of oauth2, apiKey, jwt, aws, or a preset (which is oauth2)"
// +kubebuilder:validation:XValidation:rule="has(self.preset) || has(self.destinations)",message="destinations is missing; it is required without a preset"
// +kubebuilder:validation:XValidation:rule="has(self.preset) || !has(self.oauth2) || has(self.oauth2.issuer) || has(self.oauth2.tokenEndpoint)",message="oauth2 names no server; give issuer (for discovery) or tokenEndpoint"
// +kubebuilder:validation:XValidation:rule="has(self.preset) || !has(self.oauth2) || has(self.oauth2.grant)",message="oauth2.grant is missing"
// +kubebuilder:validation:XValidation:rule="(has(self.unsafeCleartext) && self.unsafeCleartext) || !has(self.destinations) || !self.destinations.exists(d, has(d.scheme) && d.scheme == 'http')",message="a destination with scheme http would get the credential in clear text; use https, or set unsafeCleartext: true"
// +kubebuilder:validation:XValidation:rule="!has(self.inject) || !has(self.inject.as) || (self.inject.as == 'dpop') == (has(self.oauth2) && has(self.oauth2.dpop) && self.oauth2.dpop)",message="inject.as: dpop and oauth2.dpop: true belong together"
// +kubebuilder:validation:XValidation:rule="!has(self.inject) || !has(self.inject.as) || self.inject.as != 'sigv4' || has(self.aws)",message="inject.as: sigv4 signs with sessions of aws"
type CredentialProviderSpec struct {
	// Preset is "anthropic" or "openai": their workload identity federation.
	// +kubebuilder:validation:Enum=anthropic;openai
	Preset string `json:"preset,omitempty"`
	// Destinations are the only places this provider's credentials may go,
	// whatever a policy says.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Destinations []Destination `json:"destinations"`
	OAuth2       *OAuth2       `json:"oauth2,omitempty"`
	APIKey       *APIKey       `json:"apiKey,omitempty"`
	JWT          *JWT          `json:"jwt,omitempty"`
	AWS          *AWS          `json:"aws,omitempty"`
	Inject       Injection     `json:"inject,omitempty"`
	// Placeholders are set in the agent's environment, random for each run. An
	// aws provider has two, the access key id and the secret key: by default
	// AWS_ACCESS_KEY_ID (prefix AKIA) and AWS_SECRET_ACCESS_KEY.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Placeholders []Placeholder `json:"placeholders,omitempty"`
	// BaseURLs open local listeners that stand for a destination.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	BaseURLs []BaseURL `json:"baseURLs,omitempty"`
	// TTL bounds new requests with one credential. Default 5m.
	TTL Duration `json:"ttl,omitempty"`
	// RetryStatus lists statuses that mean a stale credential: the call is
	// repeated once with a fresh one where that is safe. Default [401]. Not for
	// aws, whose error codes say it.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:Minimum=400
	// +kubebuilder:validation:items:Maximum=599
	RetryStatus []int `json:"retryStatus,omitempty"`
	// UnsafeCleartext lets the credential travel over unencrypted http.
	UnsafeCleartext bool `json:"unsafeCleartext,omitempty"`
}

// OAuth2 mints access tokens at an authorization server.
// +kubebuilder:validation:XValidation:rule="!has(self.clientAuth) || (self.clientAuth in ['clientSecretBasic', 'clientSecretPost']) == has(self.clientSecretRef)",message="clientSecretRef belongs to clientAuth clientSecretBasic and clientSecretPost, which need it"
// +kubebuilder:validation:XValidation:rule="has(self.clientAuth) || !has(self.clientSecretRef) && !has(self.clientCertificateRef)",message="say how the secret is presented: clientAuth clientSecretBasic, clientSecretPost or tlsClientAuth"
// +kubebuilder:validation:XValidation:rule="!has(self.clientAuth) || (self.clientAuth == 'tlsClientAuth') == has(self.clientCertificateRef)",message="clientCertificateRef belongs to clientAuth tlsClientAuth, which needs it"
// +kubebuilder:validation:XValidation:rule="!has(self.grant) || !has(self.clientAuth) || self.grant != 'clientCredentials' || self.clientAuth != 'none'",message="clientAuth none with grant clientCredentials would prove nothing"
type OAuth2 struct {
	// Issuer is resolved by RFC 8414 or OpenID discovery; TokenEndpoint and
	// RevocationEndpoint name the endpoints directly.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Issuer string `json:"issuer,omitempty"`
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	TokenEndpoint string `json:"tokenEndpoint,omitempty"`
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	RevocationEndpoint string `json:"revocationEndpoint,omitempty"`
	// CAFile, CABundle and Addresses apply to the server's endpoints.
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
	// Grant is clientCredentials, tokenExchange or jwtBearer.
	// +optional
	// +kubebuilder:validation:Enum=clientCredentials;tokenExchange;jwtBearer
	Grant string `json:"grant"`
	// ClientAuth is privateKeyJWT (default), jwtSVID, jwtSPIFFE or none (the
	// default of jwtBearer, whose assertion is the proof). In a cluster also
	// clientSecretBasic, clientSecretPost and tlsClientAuth (RFC 8705), whose
	// secret the broker holds.
	// +kubebuilder:validation:Enum=privateKeyJWT;jwtSVID;jwtSPIFFE;none;clientSecretBasic;clientSecretPost;tlsClientAuth
	ClientAuth string `json:"clientAuth,omitempty"`
	// ClientSecretRef holds the secret of clientSecretBasic and
	// clientSecretPost, ClientCertificateRef the certificate of tlsClientAuth.
	ClientSecretRef      *SecretRef    `json:"clientSecretRef,omitempty"`
	ClientCertificateRef *TLSSecretRef `json:"clientCertificateRef,omitempty"`
	// ClientID defaults to the workload's SPIFFE ID.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	ClientID string `json:"clientID,omitempty"`
	// AssertionAudience is the aud of the client assertion; default: issuer.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	AssertionAudience string `json:"assertionAudience,omitempty"`
	// Body is form (default) or json.
	// +kubebuilder:validation:Enum=form;json
	Body string `json:"body,omitempty"`
	// Scopes, Audience and Resources are sent where the rule names none.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Scopes []string `json:"scopes,omitempty"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Audience string `json:"audience,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	Resources []string `json:"resources,omitempty"`
	// Subject of a tokenExchange: human (default) or workload.
	// +kubebuilder:validation:Enum=human;workload
	Subject string `json:"subject,omitempty"`
	// SubjectTokenType is a URI of RFC 8693 section 3; default: what the
	// token is, …:jwt for the workload's and …:id_token for a human's.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	SubjectTokenType string `json:"subjectTokenType,omitempty"`
	// Actor of a tokenExchange: workload or none (default: workload when
	// Subject is human).
	// +kubebuilder:validation:Enum=workload;none
	Actor string `json:"actor,omitempty"`
	// ActorTokenType is a URI of RFC 8693 section 3; default …:jwt.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	ActorTokenType string `json:"actorTokenType,omitempty"`
	// RequireAct refuses a JWT access token without the right act claim.
	RequireAct bool `json:"requireAct,omitempty"`
	// RequestedTokenType is a URI of RFC 8693 section 3; default: the server's.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	RequestedTokenType string `json:"requestedTokenType,omitempty"`
	// Extra are further fields of the token request's body, Headers further
	// headers. Neither may hold a secret.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Extra map[string]string `json:"extra,omitempty"`
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Headers map[string]string `json:"headers,omitempty"`
	// DPoP binds the token to a key of Attaché's (RFC 9449).
	DPoP bool `json:"dpop,omitempty"`
	// Timeout of one call to the server. Default 10s.
	Timeout Duration `json:"timeout,omitempty"`
}

// APIKey reads a vendor's static key from exactly one place.
// +kubebuilder:validation:XValidation:rule="(has(self.file) ? 1 : 0) + (has(self.env) ? 1 : 0) + (has(self.vault) ? 1 : 0) + (has(self.secretRef) ? 1 : 0) == 1",message="give exactly one of secretRef, vault, file, env"
type APIKey struct {
	// File is read anew for each credential; it must be out of the agent's reach.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	File string `json:"file,omitempty"`
	// Env is a variable of Attaché's own environment, wiped once read.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	Env string `json:"env,omitempty"`
	// SecretRef is read by the broker of a cluster alone.
	SecretRef *SecretRef `json:"secretRef,omitempty"`
	// Vault reads the key from HashiCorp Vault or OpenBao.
	Vault *VaultKV `json:"vault,omitempty"`
}

// VaultKV reads a field of a KV v2 (or v1) secret with JWT auth from
// HashiCorp Vault or OpenBao.
type VaultKV struct {
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Address string `json:"address"` // https URL of the server
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CAFile string `json:"caFile,omitempty"` // roots (PEM) for this server alone
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Namespace string `json:"namespace,omitempty"` // X-Vault-Namespace
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	AuthMount string `json:"authMount,omitempty"` // default jwt
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Role string `json:"role"` // role of the JWT auth method
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Audience string `json:"audience,omitempty"` // default: Address
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"` // as in the API: secret/data/openai
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Field string `json:"field,omitempty"` // default value
	// Addresses pins the server's name, as in Destination.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	Addresses []string `json:"addresses,omitempty"`
}

// JWT presents a JWT-SVID of the workload as bearer token.
type JWT struct {
	// Audience defaults to https://HOST of the destination.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Audience string `json:"audience,omitempty"`
}

// Injection says how the credential is put on a request.
// +kubebuilder:validation:XValidation:rule="!has(self.as) || !(self.as in ['header', 'query']) || has(self.name)",message="name is missing; as header and query require it"
// +kubebuilder:validation:XValidation:rule="!has(self.name) || has(self.as) && self.as in ['header', 'query']",message="name is for as header and query"
// +kubebuilder:validation:XValidation:rule="(has(self.as) && self.as == 'basic') == has(self.username)",message="username and as: basic belong together"
// +kubebuilder:validation:XValidation:rule="!has(self.prefix) || has(self.as) && self.as == 'header'",message="prefix is for as: header"
type Injection struct {
	// As is bearer (default), header, basic, query, dpop or sigv4 (the default
	// and only way of an aws provider).
	// +kubebuilder:validation:Enum=bearer;header;basic;query;dpop;sigv4
	As string `json:"as,omitempty"`
	// By is who puts the credential on: sidecar (default), which has it in memory
	// for minutes, or relay, a role of the control plane that the call goes
	// through, so that the credential never enters the pod. Relay is for roots
	// that are Secrets: apiKey.secretRef, oauth2.clientSecretRef and
	// oauth2.clientCertificateRef.
	// +kubebuilder:validation:Enum=sidecar;relay
	By string `json:"by,omitempty"`
	// Name of the header or query parameter.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name,omitempty"`
	// Prefix stands before the value in a header ("Token ").
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Prefix string `json:"prefix,omitempty"`
	// Username of basic; the credential is the password.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Username string `json:"username,omitempty"`
	// Headers are further fixed headers (no secrets).
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	Headers map[string]string `json:"headers,omitempty"`
	// RequirePlaceholder injects only where the request carries this run's
	// placeholder; default true if the provider declares placeholders.
	RequirePlaceholder *bool `json:"requirePlaceholder,omitempty"`
}

// Placeholder is a worthless value that an SDK insists on.
type Placeholder struct {
	// Env is the variable that the agent reads; one provider sets it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	Env string `json:"env"`
	// Prefix makes the value look right to the SDK ("sk-").
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Prefix string `json:"prefix,omitempty"`
}

// BaseURL is a local listener that stands for https://Host:Port.
type BaseURL struct {
	// Env receives the listener's URL plus Path.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	Env string `json:"env"`
	// Host and Port are one of the provider's destinations; Port defaults to
	// that destination's.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int `json:"port,omitempty"`
	// Path is appended to the local URL in Env ("/v1").
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path,omitempty"`
	// +kubebuilder:validation:Enum=http;https
	Scheme string `json:"scheme,omitempty"` // of the local listener: http (default) or https
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	Listen string `json:"listen,omitempty"` // default 127.0.0.1:0
}
