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
)

// Record is one request, whole: a begin joined with its end. The struct tag
// "trust" says of each field whether Attaché verified it (v), the agent claims
// it (c) or it was derived (d) from verified facts.
type Record struct {
	Schema   string `json:"schema" trust:"d"`
	Type     string `json:"type" trust:"d"`
	ID       string `json:"id" trust:"d"`       // record id, carried upstream
	Epoch    string `json:"epoch" trust:"d"`    // one start of the producer
	Sequence uint64 `json:"sequence" trust:"d"` // gapless within an epoch, over all types

	Time        time.Time `json:"time" trust:"v"`
	Steps       *Steps    `json:"steps,omitempty" trust:"v"`
	Workload    *Workload `json:"workload,omitempty" trust:"v"`
	Process     *Process  `json:"process,omitempty" trust:"v"`
	Owner       string    `json:"owner,omitempty" trust:"v"`
	OwnerSource string    `json:"owner_source,omitempty" trust:"v"`
	Human       *Human    `json:"human,omitempty" trust:"v"`
	Task        *Task     `json:"task,omitempty" trust:"v"`
	Request     *Request  `json:"request,omitempty" trust:"v"`
	Decision    *Decision `json:"decision,omitempty" trust:"d"`
	Credential  *Use      `json:"credential,omitempty" trust:"v"`
	Result      *Result   `json:"result,omitempty" trust:"v"`
	Event       *Event    `json:"event,omitempty" trust:"v"`
	Unsafe      []string  `json:"unsafe,omitempty" trust:"v"` // unsafe flags in force
}

// Steps are offsets from Record.Time in microseconds; 0 means not reached.
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
	ID             string            `json:"id" trust:"v"`
	Namespace      string            `json:"namespace,omitempty" trust:"v"`
	ServiceAccount string            `json:"service_account,omitempty" trust:"v"`
	Labels         map[string]string `json:"labels,omitempty" trust:"v"`
	Node           string            `json:"node,omitempty" trust:"v"`
	PostureDigest  string            `json:"posture_digest,omitempty" trust:"d"`
	RunID          string            `json:"run_id,omitempty" trust:"v"`
}

// Process is the process that owned the connection.
type Process struct {
	PID    int    `json:"pid,omitempty" trust:"v"`
	UID    uint32 `json:"uid" trust:"v"`
	Exe    string `json:"exe,omitempty" trust:"v"`
	Digest string `json:"digest,omitempty" trust:"v"`
}

// Human is the verified person a task runs for.
type Human struct {
	Subject string `json:"subject" trust:"v"`
	Issuer  string `json:"issuer" trust:"v"`
	Email   string `json:"email,omitempty" trust:"v"`
}

// Task is the piece of work the request belongs to.
type Task struct {
	ID       string `json:"id" trust:"v"`
	Purpose  string `json:"purpose,omitempty" trust:"c"`
	OpenedBy string `json:"opened_by,omitempty" trust:"v"`
}

// Request is what was asked.
type Request struct {
	Door         string   `json:"door,omitempty" trust:"v"` // connect, absolute, base-url, transparent
	Scheme       string   `json:"scheme,omitempty" trust:"v"`
	Host         string   `json:"host,omitempty" trust:"v"`
	Port         int      `json:"port,omitempty" trust:"v"`
	Address      string   `json:"address,omitempty" trust:"v"` // the upstream address dialled
	Method       string   `json:"method,omitempty" trust:"v"`
	Path         string   `json:"path,omitempty" trust:"v"`          // without query
	PathTemplate string   `json:"path_template,omitempty" trust:"d"` // of the rule
	QueryKeys    []string `json:"query_keys,omitempty" trust:"v"`    // names only
	Protocol     string   `json:"protocol,omitempty" trust:"v"`
	HTTPVersion  string   `json:"http_version,omitempty" trust:"v"`
	UserAgent    string   `json:"user_agent,omitempty" trust:"c"`
	TraceID      string   `json:"trace_id,omitempty" trust:"c"`
	// MCPMethod, MCPTool and LLMModel are empty until a later release parses
	// these protocols.
	MCPMethod string `json:"mcp_method,omitempty" trust:"d"`
	MCPTool   string `json:"mcp_tool,omitempty" trust:"d"`
	LLMModel  string `json:"llm_model,omitempty" trust:"d"`
	// Removed lists credentials and placeholders taken off, by header or
	// parameter name.
	Removed []string `json:"removed,omitempty" trust:"v"`
}

// Decision is what policy said.
type Decision struct {
	Verdict   string `json:"verdict" trust:"d"`
	Policy    string `json:"policy,omitempty" trust:"d"`
	Rule      string `json:"rule,omitempty" trust:"d"`
	Version   string `json:"version,omitempty" trust:"d"`
	Reason    string `json:"reason,omitempty" trust:"d"`
	Code      string `json:"code,omitempty" trust:"d"` // stable refusal code, docs/errors.md
	WouldDeny bool   `json:"would_deny,omitempty" trust:"d"`
}

// Use is the use of a credential. It never holds the credential.
type Use struct {
	Handle       string    `json:"handle" trust:"v"`
	Provider     string    `json:"provider" trust:"v"`
	Kind         string    `json:"kind" trust:"v"`
	ScopeAsked   []string  `json:"scope_asked,omitempty" trust:"v"`
	ScopeGranted []string  `json:"scope_granted,omitempty" trust:"v"`
	ScopeSource  string    `json:"scope_source,omitempty" trust:"d"` // static or derived
	Static       bool      `json:"static,omitempty" trust:"v"`       // a vendor's root key, not minted
	Expires      time.Time `json:"expires,omitzero" trust:"v"`
	TTLSeconds   int64     `json:"ttl_s,omitempty" trust:"v"`
	Cached       bool      `json:"cached,omitempty" trust:"v"`
}

// Result is what happened.
type Result struct {
	Outcome           string `json:"outcome" trust:"v"`
	Status            int    `json:"status,omitempty" trust:"v"`
	GRPCStatus        string `json:"grpc_status,omitempty" trust:"v"`
	BytesUp           int64  `json:"bytes_up,omitempty" trust:"v"`
	BytesDown         int64  `json:"bytes_down,omitempty" trust:"v"`
	ErrorKind         string `json:"error_kind,omitempty" trust:"v"`
	Retried           bool   `json:"retried,omitempty" trust:"v"`
	Sealed            int    `json:"sealed,omitempty" trust:"v"` // credentials sealed in the answer
	Masked            int    `json:"masked,omitempty" trust:"v"` // credential echoes masked
	UpstreamRequestID string `json:"upstream_request_id,omitempty" trust:"c"`
}

// Event is something that is not a request.
type Event struct {
	Name   string            `json:"name" trust:"v"` // task.opened, task.closed, policy.loaded, policy.rejected, credential.minted, credential.revoked, …
	Fields map[string]string `json:"fields,omitempty" trust:"v"`
}
