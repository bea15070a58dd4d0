// Package audit writes one record a request to a spool on disk and reads it
// back.
package audit

import "time"

// SchemaVersion of [Record]; a field is only ever added.
const SchemaVersion = "attache.audit/v1"

// Record types.
const (
	TypeBegin     = "begin" // the intent, in the spool before anything is sent
	TypeEnd       = "end"   // the outcome; joined with its begin by ID
	TypeEpochOpen = "epoch.open"
	TypeEpochEnd  = "epoch.close"
	TypeHeartbeat = "heartbeat"
	TypeEvent     = "event" // task opened/closed, policy loaded, credential minted/revoked
)

// Outcomes of a request.
const (
	OutcomeDenied   = "denied"   // refused by us, nothing was sent
	OutcomeOK       = "ok"       // the upstream answered completely
	OutcomeError    = "error"    // something failed, see ErrorKind
	OutcomeCanceled = "canceled" // the agent went away
	OutcomeRevoked  = "revoked"  // cut by task end, revocation or maxStream
	OutcomeLeak     = "leak_blocked"
	OutcomeUnknown  = "unknown" // killed between begin and end
	// OutcomeOpen is never written: the reader's word for a request that a
	// running producer has begun and not yet ended.
	OutcomeOpen = "open"
)

// Record is one request, whole: a begin joined with its end. The struct tag
// "trust" says of each field whether Attaché verified it (v), the agent claims
// it (c) or it was derived (d) from verified facts. "max" bounds a string in
// bytes before escaping (of a list or map: each element) and "items" the number
// of elements; what exceeds them is cut and ends in "…".
type Record struct {
	Schema   string `json:"schema" trust:"d" max:"64"`
	Type     string `json:"type" trust:"d" max:"64"`
	ID       string `json:"id" trust:"d" max:"64"`    // record id, carried upstream
	Epoch    string `json:"epoch" trust:"d" max:"64"` // one start of the producer
	Sequence uint64 `json:"sequence" trust:"d"`       // gapless within an epoch, over all types
	// BeginEpoch and BeginSequence name the begin line that an end line finishes;
	// an end without them is a whole request in one line.
	BeginEpoch    string `json:"begin_epoch,omitempty" trust:"d" max:"64"`
	BeginSequence uint64 `json:"begin_sequence,omitempty" trust:"d"`

	Time        time.Time `json:"time" trust:"v"`
	Steps       *Steps    `json:"steps,omitempty" trust:"v"`
	Workload    *Workload `json:"workload,omitempty" trust:"v"`
	Process     *Process  `json:"process,omitempty" trust:"v"`
	Owner       string    `json:"owner,omitempty" trust:"v" max:"256"`
	OwnerSource string    `json:"owner_source,omitempty" trust:"v" max:"64"`
	Human       *Human    `json:"human,omitempty" trust:"v"`
	// Actors is the chain of agents when one calls another, the present caller
	// first, as the verified token of the task names them (RFC 8693 section 4.1).
	Actors     []Actor   `json:"actors,omitempty" trust:"v" items:"8"`
	Task       *Task     `json:"task,omitempty" trust:"v"`
	Request    *Request  `json:"request,omitempty" trust:"v"`
	SQL        *SQL      `json:"sql,omitempty" trust:"v"`
	SSH        *SSH      `json:"ssh,omitempty" trust:"v"`
	Decision   *Decision `json:"decision,omitempty" trust:"d"`
	Credential *Use      `json:"credential,omitempty" trust:"v"`
	Result     *Result   `json:"result,omitempty" trust:"v"`
	Event      *Event    `json:"event,omitempty" trust:"v"`
	Change     *Change   `json:"change,omitempty" trust:"v"`
	Unsafe     []string  `json:"unsafe,omitempty" trust:"v" max:"64" items:"16"` // unsafe flags in force
	// Truncated says that this line left out details, because they exceeded
	// the space that its begin had reserved.
	Truncated bool `json:"truncated,omitempty" trust:"d"`
}

// Steps are offsets from Record.Time in microseconds; 0 means not reached.
// Attested is how long it took when the request's connection was accepted.
type Steps struct {
	Attested  int64 `json:"attested_us,omitempty" trust:"v"`
	Decided   int64 `json:"decided_us,omitempty" trust:"v"`
	Begun     int64 `json:"begun_us,omitempty" trust:"v"`
	Minted    int64 `json:"minted_us,omitempty" trust:"v"`
	Injected  int64 `json:"injected_us,omitempty" trust:"v"`
	FirstByte int64 `json:"first_byte_us,omitempty" trust:"v"`
	Ended     int64 `json:"ended_us,omitempty" trust:"v"`
}

// Workload is who called.
type Workload struct {
	ID             string            `json:"id" trust:"v" max:"2048"`
	Namespace      string            `json:"namespace,omitempty" trust:"v" max:"256"`
	ServiceAccount string            `json:"service_account,omitempty" trust:"v" max:"256"`
	Labels         map[string]string `json:"labels,omitempty" trust:"v" max:"256" items:"32"`
	Node           string            `json:"node,omitempty" trust:"v" max:"256"`
	PostureDigest  string            `json:"posture_digest,omitempty" trust:"d" max:"128"`
	RunID          string            `json:"run_id,omitempty" trust:"v" max:"64"`
}

// Process is the process that owned the connection.
type Process struct {
	PID    int    `json:"pid,omitempty" trust:"v"`
	UID    uint32 `json:"uid" trust:"v"`
	Exe    string `json:"exe,omitempty" trust:"v" max:"1024"`
	Digest string `json:"digest,omitempty" trust:"v" max:"128"`
	// Shared says that several processes hold the socket; PID is the lowest.
	Shared bool `json:"shared,omitempty" trust:"v"`
}

// Human is the verified person a task runs for.
type Human struct {
	Subject string `json:"subject" trust:"v" max:"256"`
	Issuer  string `json:"issuer" trust:"v" max:"1024"`
	Email   string `json:"email,omitempty" trust:"v" max:"320"`
}

// Actor is one agent of a chain of agents that act for the human, or for each
// other.
type Actor struct {
	Subject string `json:"subject" trust:"v" max:"2048"`
	Issuer  string `json:"issuer,omitempty" trust:"v" max:"1024"`
}

// Task is the piece of work the request belongs to.
type Task struct {
	ID       string `json:"id" trust:"v" max:"64"`
	Purpose  string `json:"purpose,omitempty" trust:"c" max:"1024"`
	OpenedBy string `json:"opened_by,omitempty" trust:"v" max:"64"`
}

// Request is what was asked.
type Request struct {
	Door         string   `json:"door,omitempty" trust:"v" max:"64"` // connect, absolute, base-url, transparent, aws
	Scheme       string   `json:"scheme,omitempty" trust:"v" max:"64"`
	Host         string   `json:"host,omitempty" trust:"v" max:"256"`
	Port         int      `json:"port,omitempty" trust:"v"`
	Address      string   `json:"address,omitempty" trust:"v" max:"64"` // the upstream address dialled
	Method       string   `json:"method,omitempty" trust:"v" max:"64"`
	Path         string   `json:"path,omitempty" trust:"v" max:"2048"`                 // without query
	PathTemplate string   `json:"path_template,omitempty" trust:"d" max:"1024"`        // of the rule
	QueryKeys    []string `json:"query_keys,omitempty" trust:"v" max:"128" items:"32"` // names only
	Protocol     string   `json:"protocol,omitempty" trust:"v" max:"64"`
	HTTPVersion  string   `json:"http_version,omitempty" trust:"v" max:"64"`
	UserAgent    string   `json:"user_agent,omitempty" trust:"c" max:"256"`
	TraceID      string   `json:"trace_id,omitempty" trust:"c" max:"64"`
	// MCPMethod, MCPTool and LLMModel are empty until a later release parses
	// these protocols.
	MCPMethod string `json:"mcp_method,omitempty" trust:"d" max:"128"`
	MCPTool   string `json:"mcp_tool,omitempty" trust:"d" max:"256"`
	LLMModel  string `json:"llm_model,omitempty" trust:"d" max:"256"`
	// Removed lists credentials and placeholders taken off, by header or
	// parameter name.
	Removed []string `json:"removed,omitempty" trust:"v" max:"128" items:"32"`
}

// Decision is what policy said.
type Decision struct {
	Verdict   string `json:"verdict" trust:"d" max:"64"`
	Policy    string `json:"policy,omitempty" trust:"d" max:"512"`
	Rule      string `json:"rule,omitempty" trust:"d" max:"256"`
	Version   string `json:"version,omitempty" trust:"d" max:"128"`
	Reason    string `json:"reason,omitempty" trust:"d" max:"1024"`
	Code      string `json:"code,omitempty" trust:"d" max:"64"` // stable refusal code, docs/errors.md
	WouldDeny bool   `json:"would_deny,omitempty" trust:"d"`
}

// Use is the use of a credential. It never holds the credential.
type Use struct {
	Handle       string    `json:"handle,omitempty" trust:"v" max:"64"` // empty: asked for, but none was had
	Provider     string    `json:"provider" trust:"v" max:"256"`
	Kind         string    `json:"kind" trust:"v" max:"64"`
	ScopeAsked   []string  `json:"scope_asked,omitempty" trust:"v" max:"256" items:"32"`
	ScopeGranted []string  `json:"scope_granted,omitempty" trust:"v" max:"256" items:"32"`
	ScopeSource  string    `json:"scope_source,omitempty" trust:"d" max:"64"` // static or derived
	Static       bool      `json:"static,omitempty" trust:"v"`                // a vendor's root key, not minted
	Expires      time.Time `json:"expires,omitzero" trust:"v"`
	TTLSeconds   int64     `json:"ttl_s,omitempty" trust:"v"`
	Cached       bool      `json:"cached,omitempty" trust:"v"`
	// PublicID is the issuer's own name of the credential, which no one can use
	// as a credential: an AWS access key id, a jti, a serial number, a lease.
	PublicID string `json:"public_id,omitempty" trust:"v" max:"256"`
	// Session is what the far side's log calls the session, with the handle in
	// it: the ARN of an assumed role, an application_name, a key id.
	Session string `json:"session,omitempty" trust:"v" max:"2048"`
	// AWS is what the call asks of AWS; nil for other providers.
	AWS *AWSUse `json:"aws,omitempty" trust:"d"`
}

// AWSUse is what a signed call asks of AWS, as read from its own bytes.
type AWSUse struct {
	Service   string   `json:"service" trust:"d" max:"64"`              // IAM prefix, such as s3
	Operation string   `json:"operation,omitempty" trust:"d" max:"128"` // such as GetObject
	Region    string   `json:"region,omitempty" trust:"d" max:"64"`
	Account   string   `json:"account,omitempty" trust:"d" max:"64"`
	Actions   []string `json:"actions,omitempty" trust:"d" max:"128" items:"16"`
	Resources []string `json:"resources,omitempty" trust:"d" max:"1024" items:"16"`
	// Scope is how far the session is cut: request, action-only, prefix, task
	// or session.
	Scope string `json:"scope" trust:"d" max:"64"`
}

// Result is what happened.
type Result struct {
	Outcome           string `json:"outcome" trust:"v" max:"64"`
	Status            int    `json:"status,omitempty" trust:"v"`
	GRPCStatus        string `json:"grpc_status,omitempty" trust:"v" max:"64"`
	BytesUp           int64  `json:"bytes_up,omitempty" trust:"v"`
	BytesDown         int64  `json:"bytes_down,omitempty" trust:"v"`
	ErrorKind         string `json:"error_kind,omitempty" trust:"v" max:"64"`
	Retried           bool   `json:"retried,omitempty" trust:"v"`
	Sealed            int    `json:"sealed,omitempty" trust:"v"` // credentials sealed in the answer
	Masked            int    `json:"masked,omitempty" trust:"v"` // credential echoes masked
	UpstreamRequestID string `json:"upstream_request_id,omitempty" trust:"c" max:"256"`
}
