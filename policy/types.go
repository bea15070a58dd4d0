// Package policy compiles access policies and decides requests.
//
// It is pure: no clock, no network, no file. Everything a decision depends on
// is in the [Request]; the time is one of its fields.
package policy

import (
	"net/http"
	"net/url"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy/awsscope"
)

// Verdict is what policy says of a request. The zero Verdict denies.
type Verdict int

// The verdicts.
const (
	Deny        Verdict = iota // refuse the call
	Allow                      // pass it on without a credential
	Inject                     // pass it on with the credential of Decision.Grant
	Passthrough                // tunnel bytes without interception
)

// String returns the word used in records and rules.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Inject:
		return "inject"
	case Passthrough:
		return "passthrough"
	default:
		return "deny"
	}
}

// Protocols a rule can name.
const (
	HTTP      = "http"
	GRPC      = "grpc"
	WebSocket = "websocket"
	TLS       = "tls" // an opaque tunnel, before any request is seen
)

// Request is all that a decision can see. Host is canonical (lower case,
// A-label, no trailing dot); Path is the path as the origin will see it, still
// percent-encoded where the client sent it so, free of dot segments and
// encoded slashes (proxy/destination refuses those first).
type Request struct {
	Host     string
	Port     int
	Scheme   string // https or http
	Method   string
	Path     string
	Query    url.Values
	Header   http.Header
	Protocol string

	Workload *identity.Workload
	Process  identity.Process
	Task     *identity.Task // nil: none open
	Time     time.Time
}

// Grant is what an Inject decision asks minting for.
type Grant struct {
	Provider             string // name of the CredentialProvider
	Scope                []string
	ScopeSource          string // "static" or "derived"
	Audience             string
	Resources            []string
	Role                 string
	AuthorizationDetails string // canonical JSON array, RFC 9396; empty if none
	TTL                  time.Duration
	AWS                  *AWSGrant // for an aws provider, nil for others
}

// AWSGrant bounds a session of an aws provider.
type AWSGrant struct {
	Granularity awsscope.Granularity
	// OnTooLarge is the granularity to use where the session policy exceeds the
	// limit of STS; empty: deny.
	OnTooLarge awsscope.Granularity
	// Static is the most that the session may do: the rule's policy, or else
	// the provider's, or else everything that the role allows.
	Static awsscope.Policy
}

// Decision is the outcome of [Set.Decide]. The zero Decision denies.
type Decision struct {
	Verdict      Verdict
	Policy       string // namespace/name of the AccessPolicy, cluster:name, empty by default deny
	Rule         string // name of the rule
	Version      string // digest of the policy set
	Reason       string // for people: why, and how to ask for access
	PathTemplate string // template that matched, e.g. /repos/{owner}/{repo}
	Grant        Grant  // for Inject
	// WouldDeny is set when a policy in audit mode turned a deny into an
	// Allow; such a call never carries a credential. It is also set where a
	// ClusterAccessPolicy in audit mode would deny what others decide: it changes
	// nothing else of their decision.
	WouldDeny bool

	AgentCredentials v1alpha1.AgentCredentials // what becomes of the agent's own
	Answers          v1alpha1.AnswerCredentials
	CrossSite        bool // cross-site browser requests may be credentialed
	EchoRisk         bool
	RawPaths         bool // the rule's protocol owns raw paths
	OpenTask         bool // the agent may open tasks by itself
	CredentialCall   bool // the rule names this credential-issuing call
	MaxStream        time.Duration
	Durability       v1alpha1.Durability
}
