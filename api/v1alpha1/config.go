package v1alpha1

// AttacheConfig configures the program itself. A folder holds at most one.
type AttacheConfig struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta        `json:"metadata"`
	Spec     AttacheConfigSpec `json:"spec"`
}

// AttacheConfigSpec is the body of an AttacheConfig. Every field has a
// default.
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.trustDomain) || has(self.trustDomain)",message="trustDomain cannot be changed: every identity holds it; install another control plane"
type AttacheConfigSpec struct {
	// TrustDomain of the embedded issuer. Default attache.local.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[a-z0-9._-]+$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed: every identity holds it; install another control plane"
	TrustDomain string         `json:"trustDomain,omitempty"`
	Workload    WorkloadConfig `json:"workload,omitempty"`
	Identity    IdentityConfig `json:"identity,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Humans   []HumanIssuer  `json:"humans,omitempty"`
	Tasks    TasksConfig    `json:"tasks,omitempty"`
	Audit    AuditConfig    `json:"audit,omitempty"`
	Limits   Limits         `json:"limits,omitempty"`
	Upstream UpstreamConfig `json:"upstream,omitempty"`
	Admin    AdminConfig    `json:"admin,omitempty"`
	Tracing  TracingConfig  `json:"tracing,omitempty"`
	Cluster  ClusterConfig  `json:"cluster,omitempty"`
}

// WorkloadConfig describes the workload of attache run.
type WorkloadConfig struct {
	// Name is the last part of the SPIFFE ID spiffe://TRUSTDOMAIN/agent/NAME.
	// Default: the base name of the command.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name,omitempty"`
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Labels map[string]string `json:"labels,omitempty"` // for selectors and CEL
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Owner string `json:"owner,omitempty"` // accountable person or team
}

// IdentityConfig chooses the source of identity documents.
type IdentityConfig struct {
	// Source is embedded (default) or spiffe.
	// +kubebuilder:validation:Enum=embedded;spiffe
	Source string `json:"source,omitempty"`
	// Socket of the SPIFFE Workload API; default $SPIFFE_ENDPOINT_SOCKET.
	Socket string `json:"socket,omitempty"`
	// IssuerURL is the iss of JWT-SVIDs; default: the discovery listener's URL.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
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
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https?://[^\s]+$`
	Issuer string `json:"issuer"` // https URL, resolved by OpenID discovery
	// Audiences of which the token must carry one: ours.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Audiences []string `json:"audiences"`
	// CAFile, CABundle and Addresses apply to the issuer's endpoints.
	CAFile string `json:"caFile,omitempty"`
	// +kubebuilder:validation:MaxLength=262144
	CABundle string `json:"caBundle,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
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
	MaxBytes     int64  `json:"maxBytes,omitempty"`     // default 1 GiB; in a pod what its spool may have
	SegmentBytes int64  `json:"segmentBytes,omitempty"` // default 64 MiB
	// OnFull is refuse (default) or overwrite (drop the oldest closed segment).
	// +kubebuilder:validation:Enum=refuse;overwrite
	OnFull string `json:"onFull,omitempty"`
	// +kubebuilder:validation:Enum=process;power;collector
	Durability Durability `json:"durability,omitempty"` // process (default), power or collector, for rules that say nothing
	Heartbeat  Duration   `json:"heartbeat,omitempty"`  // default 30s
	// CollectorWait bounds how long a call of durability collector waits for the
	// acknowledgement before it is refused. Default 5s.
	CollectorWait Duration `json:"collectorWait,omitempty"`
	// Redact says what is taken out of records before they are written.
	Redact AuditRedact `json:"redact,omitempty"`
	// Sinks are where the records are sent to, each at its own pace. The first
	// of type otlp is the collector of durability collector, but for sidecars,
	// whose collector is the control plane's.
	// +kubebuilder:validation:MaxItems=8
	Sinks []AuditSink `json:"sinks,omitempty"`
	// Keep is how long segments stay after every sink has them. Default 24h.
	Keep Duration `json:"keep,omitempty"`
	// KeepBytes is how large the spool may be with segments that every sink
	// has. Default half of maxBytes.
	KeepBytes int64 `json:"keepBytes,omitempty"`
	// DrainTimeout bounds how long the end of the process waits until the
	// sinks have the last records; what is left stays in the spool. Default 5s.
	DrainTimeout Duration `json:"drainTimeout,omitempty"`
}

// AuditRedact says what is taken out of paths, names of parameters, reasons,
// statements, commands, and the texts of policies and other documents that were
// loaded. Those that the control plane records are masked by the defaults,
// whatever this says. Credentials of ours never come there.
type AuditRedact struct {
	// Tokens is mask (default): what looks like a token is replaced by ***, and in
	// documents the value of each key that names a secret; or keep.
	// +kubebuilder:validation:Enum=mask;keep
	Tokens string `json:"tokens,omitempty"`
	// SQLLiterals is mask (default): each literal of a statement is replaced by
	// ?; or keep.
	// +kubebuilder:validation:Enum=mask;keep
	SQLLiterals string `json:"sqlLiterals,omitempty"`
	// Patterns are regular expressions (RE2); what they match is replaced by ***.
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Patterns []string `json:"patterns,omitempty"`
}

// Words of [AuditRedact].
const (
	RedactMask = "mask"
	RedactKeep = "keep"
)

// AuditSink is a place where records are sent to, at least once each.
type AuditSink struct {
	// Type is otlp (an OpenTelemetry collector), syslog, file or objectstore;
	// the last two are of attache run only.
	// +kubebuilder:validation:Enum=otlp;syslog;file;objectstore
	Type string `json:"type"`
	// Name in metrics, and of the file that remembers what was sent: letters,
	// digits, - and _. Default: the type.
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`
	// Endpoint of otlp and syslog is HOST:PORT; of protocol http and of
	// objectstore a URL. Default of objectstore: AWS.
	// +kubebuilder:validation:MaxLength=2048
	Endpoint string `json:"endpoint,omitempty"`
	// Protocol of otlp is grpc (default) or http.
	// +kubebuilder:validation:Enum=grpc;http
	Protocol string `json:"protocol,omitempty"`
	// Compression is gzip (default) or none.
	// +kubebuilder:validation:Enum=gzip;none
	Compression string   `json:"compression,omitempty"`
	Timeout     Duration `json:"timeout,omitempty"` // of one attempt; default 10s
	TLS         SinkTLS  `json:"tls,omitempty"`
	// HeadersFrom are sent with each attempt, such as authorization.
	// +kubebuilder:validation:MaxItems=16
	HeadersFrom []SinkHeader `json:"headersFrom,omitempty"`
	// Format of syslog, file and objectstore is ocsf (default: events of OCSF
	// 1.8.0), ecs (documents of the Elastic Common Schema) or lines (the spool's
	// own, with checksum and chain).
	// +kubebuilder:validation:Enum=ocsf;ecs;lines
	Format      string          `json:"format,omitempty"`
	File        SinkFile        `json:"file,omitempty"`
	ObjectStore SinkObjectStore `json:"objectStore,omitempty"`
}

// SinkFile is a file of JSON lines.
type SinkFile struct {
	// Path of the file; {producer} in it is the id of the run's spool, so that
	// several runs have a file each.
	// +kubebuilder:validation:MaxLength=4096
	Path     string   `json:"path,omitempty"`
	MaxBytes int64    `json:"maxBytes,omitempty"` // then it is renamed to PATH.TIME; default 100 MiB
	MaxAge   Duration `json:"maxAge,omitempty"`   // default 24h
	Keep     int      `json:"keep,omitempty"`     // renamed files that stay; 0: all
}

// SinkObjectStore is a bucket of S3, or of a store that speaks its API.
type SinkObjectStore struct {
	// +kubebuilder:validation:MaxLength=63
	Bucket string `json:"bucket,omitempty"`
	Region string `json:"region,omitempty"`
	// +kubebuilder:validation:MaxLength=512
	Prefix string `json:"prefix,omitempty"`
	// AccessKeyFile and SecretKeyFile hold the credentials, out of the agent's
	// reach; they are read when the process starts.
	AccessKeyFile string `json:"accessKeyFile,omitempty"`
	SecretKeyFile string `json:"secretKeyFile,omitempty"`
	// Every is the least time between objects that are not full. Default 10s.
	Every Duration `json:"every,omitempty"`
	// Retain locks each object for so long; the bucket must have object lock on.
	// Default: not locked.
	Retain Duration `json:"retain,omitempty"`
	// LockMode is compliance (default: nobody can delete) or governance.
	// +kubebuilder:validation:Enum=compliance;governance
	LockMode string `json:"lockMode,omitempty"`
}

// SinkTLS says how a sink is recognised, and how it recognises us.
type SinkTLS struct {
	// Disabled sends records in the clear. Without effect on an http URL, whose
	// scheme says it.
	Disabled bool `json:"disabled,omitempty"`
	// CAFile and CABundle (PEM) are the authorities; default: the system's.
	CAFile   string `json:"caFile,omitempty"`
	CABundle string `json:"caBundle,omitempty"`
	// CertFile and KeyFile (PEM) are presented to the sink.
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
	// SVID presents the workload's X.509-SVID.
	SVID bool `json:"svid,omitempty"`
	// ServerName is what the sink's certificate must be for; default: the host.
	// +kubebuilder:validation:MaxLength=253
	ServerName string `json:"serverName,omitempty"`
}

// SinkHeader is a header whose value is in a file that the agent cannot read.
type SinkHeader struct {
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// File holds the value; it is read for each attempt, so that it can be
	// replaced.
	File string `json:"file"`
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
