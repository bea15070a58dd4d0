package issuer

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reasons of refusals, in metrics and events.
const (
	reasonRequest   = "bad_request"
	reasonCSR       = "csr"
	reasonRate      = "rate"
	reasonToken     = "token"
	reasonUnbound   = "unbound_token"
	reasonPod       = "pod_gone"
	reasonAccount   = "service_account"
	reasonNode      = "node"
	reasonAddress   = "address"
	reasonNamespace = "not_opted_in"
	reasonHost      = "shared_with_host"
	reasonSidecar   = "sidecar"
	reasonTemplate  = "template"
	reasonDigest    = "sidecar_digest"
	reasonUser      = "sidecar_user"
	reasonAudience  = "audience_elsewhere"
	reasonMount     = "token_mounted_elsewhere"
	reasonDebug     = "debug_container"
	reasonSource    = "identity_source"
	reasonKeyType   = "UnsupportedKeyType" // Kubernetes' own word (KEP-4317)
	reasonLabels    = "labels_changed"
	reasonSecondKey = "second_key"
	reasonRenewal   = "renewal"
	reasonPolicy    = "audience_not_in_policy"
	reasonCaller    = "no_svid"
	reasonPending   = "not_reported_yet"
	reasonInternal  = "internal"
)

// outcomes of an [Event].
const (
	outcomeRefused = "refused"
	outcomeLater   = "later"
)

// refusal is why nothing is issued. Its text is for the pod's owner.
type refusal struct {
	code   codes.Code
	reason string
	text   string
	cause  error // for the log only
}

// Error implements error.
func (r *refusal) Error() string {
	if r.cause != nil {
		return r.text + ": " + r.cause.Error()
	}
	return r.text
}

// Unwrap implements errors.Unwrap.
func (r *refusal) Unwrap() error { return r.cause }

// GRPCStatus leaves out the cause.
func (r *refusal) GRPCStatus() *status.Status { return status.New(r.code, r.text) }

func (r *refusal) outcome() string {
	switch r.code {
	case codes.Unavailable, codes.FailedPrecondition, codes.ResourceExhausted:
		return outcomeLater
	}
	return outcomeRefused
}

// deny refuses for good.
func deny(reason, format string, args ...any) error {
	return &refusal{code: codes.PermissionDenied, reason: reason, text: fmt.Sprintf(format, args...)}
}

// later asks to come again: what is missing appears by itself.
func later(reason, format string, args ...any) error {
	return &refusal{code: codes.Unavailable, reason: reason, text: fmt.Sprintf(format, args...)}
}

func invalid(reason, format string, args ...any) error {
	return &refusal{code: codes.InvalidArgument, reason: reason, text: fmt.Sprintf(format, args...)}
}

// broken is a failure that is ours; the sidecar may try again.
func broken(doing string, cause error) error {
	return &refusal{code: codes.Unavailable, reason: reasonInternal, text: "the control plane cannot " + doing + " now", cause: cause}
}

func reasonOf(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	return &refusal{code: status.Code(err), reason: reasonInternal, text: err.Error()}
}
