package pipeline

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/relay"
)

// Codes of refusals. They are stable: records, metrics, headers and
// docs/errors.md use them.
const (
	CodeUnattested      = "unattested"
	CodeUnclear         = "destination_unclear"
	CodeStale           = "policy_stale"
	CodeBadRequest      = "bad_request"
	CodeBadPath         = "bad_path"
	CodeDenied          = "denied"
	CodeAmbientUse      = "ambient_use"
	CodeCleartext       = "cleartext"
	CodeTaskUnknown     = "task_unknown"
	CodeRateLimited     = "rate_limited"
	CodeAuditFull       = "audit_unavailable"
	CodeNoIdentity      = "identity_unavailable"
	CodeMintDenied      = "mint_denied"
	CodeMintUnavailable = "mint_unavailable"
	CodeInject          = "inject_failed"
	CodeUnreachable     = "upstream_unreachable"
	CodeUpstreamTLS     = "upstream_tls"
	CodeAddress         = "address_refused"
	CodeLoop            = "loop"
	CodeTimeout         = "upstream_timeout"
	CodeProtocol        = "upstream_protocol"
	CodeLeak            = "leak_blocked"
	CodeRevoked         = "revoked"
	CodeCanceled        = "canceled"
	CodeTunnelIdle      = "tunnel_idle"
	CodeAWSCall         = "aws_call"
	CodeAWSScope        = "aws_scope"
	CodeSignature       = "signature_refused"
	CodeRelayDenied     = "relay_denied"
	CodeRelay           = "relay_unavailable"
)

// Refusal is a call that does not go on. Reason is for the agent's developer
// and says what to do next; Err is for the operator and never leaves us.
type Refusal struct {
	Status     int
	Code       string
	Reason     string
	RetryAfter time.Duration
	Err        error
	AWSCode    string // what AWS called it; empty: by Status
}

// Error implements error.
func (f *Refusal) Error() string { return f.Code + ": " + f.Reason }

// Unwrap gives the operator's cause.
func (f *Refusal) Unwrap() error { return f.Err }

// problem is RFC 9457 with the "error" object that the OpenAI, Anthropic and
// most other SDKs print from.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Record string `json:"record,omitempty"`
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Error  any    `json:"error"` // problemError, or a text for npm
}

type problemError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	Code    string `json:"code"`
}

// write answers in the form that the client's protocol or tool shows: a gRPC
// status, plain text for git, problem+json for all others.
func (f *Refusal) write(w http.ResponseWriter, x *exchange) {
	if x.p.cfg.Keep != nil {
		relay.Refusal{Status: f.Status, Code: f.Code, Reason: f.Reason, RetryAfter: f.RetryAfter}.Write(w)
		return
	}
	h := w.Header()
	clear(h)
	h.Set("Attache-Record", x.rec.ID)
	h.Set("Attache-Error", f.Code)
	h.Set("Cache-Control", "no-store")
	message := "Attaché refused this call (" + f.Code + "): " + f.Reason
	if x.protocol == policy.GRPC {
		writeGRPC(w, f.Status, message+" [record "+x.rec.ID+"]")
		return
	}
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
	if x.aws != nil {
		f.writeAWS(w, x, message)
		return
	}
	if f.Status == http.StatusForbidden {
		// openai, anthropic and stainless SDKs read it: a denial is final.
		h.Set("X-Should-Retry", "false")
	}
	if plainText(x.req) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body := message + "\nrecord: " + x.rec.ID + "\n"
		h.Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(f.Status)
		_, _ = w.Write([]byte(body))
		return
	}
	var shown any = problemError{Type: "permission_error", Message: message, Code: f.Code}
	if strings.HasPrefix(x.req.Header.Get("User-Agent"), "npm/") {
		shown = message // npm prints the member as it is, an object as [object Object]
	}
	body, err := json.Marshal(problem{
		Type: "https://attache.dev/errors/" + f.Code, Title: http.StatusText(f.Status), Status: f.Status,
		Detail: f.Reason, Code: f.Code, Record: x.rec.ID, Policy: x.decision.Policy, Rule: x.decision.Rule,
		Error: shown,
	})
	if err != nil {
		panic("pipeline: marshal problem: " + err.Error()) // strings only
	}
	body = append(body, '\n')
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Status)
	if x.req.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// plainText reports whether the client shows text/plain answers to its user:
// git prints them as "remote:" lines, cargo as they are.
func plainText(r *http.Request) bool {
	ua := r.Header.Get("User-Agent")
	return strings.HasPrefix(ua, "git/") || strings.HasPrefix(ua, "cargo")
}

// writeGRPC answers Trailers-Only with HTTP 200, as the gRPC protocol over
// HTTP/2 document asks; clients map any other status to a bare UNKNOWN.
func writeGRPC(w http.ResponseWriter, status int, message string) {
	code := map[int]string{
		http.StatusBadRequest: "3", http.StatusUnauthorized: "16", http.StatusForbidden: "7",
		http.StatusTooManyRequests: "8", http.StatusServiceUnavailable: "14", http.StatusBadGateway: "14",
		http.StatusGatewayTimeout: "4", http.StatusMisdirectedRequest: "3",
	}[status]
	if code == "" {
		code = "13"
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	h.Set("Grpc-Status", code)
	h.Set("Grpc-Message", grpcEscape(message))
}

// grpcEscape percent-encodes a grpc-message (gRPC over HTTP/2, "Responses").
func grpcEscape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
