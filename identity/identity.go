// Package identity says who is at the other end of a connection and proves to
// others who that is.
//
// Two questions, two interfaces: an [Attestor] answers "which workload and
// which process opened this connection?", a [Source] produces the documents
// (X.509-SVID, JWT-SVID) by which a far side recognises the workload. Values
// here are parsed once and cannot be half valid.
package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/internal/secret"
)

// ErrUnattested is matched by every refusal of an [Attestor]: the caller is
// not a process of the workload, or can no longer be identified.
var ErrUnattested = errors.New("caller is not attested")

// ErrUnavailable is matched when a [Source] cannot produce a document now;
// the call may be retried later.
var ErrUnavailable = errors.New("identity is unavailable")

// Workload is an attested workload and the posture known of it. It is
// immutable once attested and shared between requests.
type Workload struct {
	ID             spiffeid.ID       // SPIFFE ID; the zero ID is nobody and matches no rule
	Namespace      string            // Kubernetes namespace, or "local" under attache run
	ServiceAccount string            // Kubernetes service account, or the run's workload name
	Labels         map[string]string // frozen at attestation
	Images         []string          // image references with digests; under run: the executable's sha256
	Node           string            // node or host name
	Posture        map[string]string // further verified facts, e.g. "confined": "landlock"
	Owner          string            // accountable human or team
	OwnerSource    string            // where Owner was read: config, namespace, flag
	RunID          string            // one start of the workload: 128 random bits, hex
}

// PostureDigest is a SHA-256 over every attested fact but the run id, hex. It
// is part of every mint request, so that a changed posture is a changed
// credential.
func (w *Workload) PostureDigest() string {
	c := *w
	c.RunID = ""
	b, err := json.Marshal(c)
	if err != nil { // a Workload holds strings only
		panic("identity: marshal workload: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Process is the operating-system process that owns a connection.
type Process struct {
	PID      int    // 0 if unknown
	UID      uint32 // owner of the socket
	Exe      string // path of the executable as /proc shows it
	Digest   string // "sha256:…" of the executable
	CgroupID uint64 // cgroup v2 id of the socket
	Shared   bool   // other processes of the run hold the socket too; PID is the lowest
}

// Caller is who opened a connection: the workload and, where the platform can
// tell, the process.
type Caller struct {
	Workload *Workload
	Process  Process
}

// Attestor identifies the peer of an accepted connection. Implementations are
// safe for concurrent use. Every refusal matches [ErrUnattested].
type Attestor interface {
	Attest(ctx context.Context, conn net.Conn) (Caller, error)
}

// Holder is an [Attestor] that can tell a peer which half-closed its connection
// from one that has gone. It is safe for concurrent use.
type Holder interface {
	// Held reports whether a process still holds the peer's end of conn.
	Held(conn net.Conn) bool
}

// JWTRequest asks for a signed JWT about a workload.
type JWTRequest struct {
	Workload *Workload
	// Audience is the single intended recipient. RFC 7523bis and the SPIFFE
	// documents ask for one recipient a token.
	Audience string
	// TTL is the wished lifetime; the source may shorten it. Zero means the
	// source's default (5 minutes).
	TTL time.Duration
	// Issuer, if set, replaces the iss claim and makes the token an RFC 7523
	// section 2.2 client assertion (iss = sub = client id). Only the embedded
	// issuer can do that; others answer an error.
	ClientID string
	// Claims are added to the token; registered claims cannot be replaced.
	Claims map[string]any
}

// JWT is a signed token and what it says of itself.
type JWT struct {
	Token   secret.Value
	ID      string // jti, empty if the source sets none
	Expires time.Time
}

// Source produces identity documents for a workload. Implementations are safe
// for concurrent use; errors match [ErrUnavailable] when a retry can help.
type Source interface {
	// JWT returns a fresh JWT-SVID (or client assertion, see JWTRequest).
	JWT(ctx context.Context, r JWTRequest) (JWT, error)
	// X509 returns the workload's current X.509-SVID.
	X509(ctx context.Context, w *Workload) (*x509svid.SVID, error)
	// Bundle returns the X.509 authorities of the trust domain.
	Bundle(ctx context.Context) (*x509bundle.Bundle, error)
}

// Human is a verified person on whose behalf a task runs.
type Human struct {
	Subject string   // sub of the verified token
	Issuer  string   // iss of the verified token
	Email   string   // only if email_verified
	Groups  []string // groups claim
}

// Actor is an agent of a chain of agents that act for a human, or for each
// other (RFC 8693 section 4.1).
type Actor struct {
	Subject string
	Issuer  string // empty: that of the human's token
}

// Task is a piece of work opened for a workload, perhaps for a human. A nil
// Task means the run itself is the task.
type Task struct {
	ID       string // 128 random bits, hex; not a bearer secret
	Purpose  string // claimed by whoever opened the task
	OpenedBy string // "launcher", "orchestrator" or "agent"
	Human    *Human // nil if the task runs for nobody in particular
	// Actors are the agents that the human's token names, who presented it first.
	Actors  []Actor
	Opened  time.Time
	Expires time.Time // never after the human's grant
	// SubjectToken is the human's token for RFC 8693 exchange; zero without a
	// human. Only its hash outlives the task.
	SubjectToken secret.Value
	// SubjectTokenType is its RFC 8693 section 3 type URI.
	SubjectTokenType string
	// WorkloadID and RunID bind the task: it works for no other.
	WorkloadID spiffeid.ID
	RunID      string
}
