package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// throttleWait is how long to wait where a throttling answer does not say.
const throttleWait = time.Second

// throttling are the codes by which AWS says "too fast" (AWS SDKs reference
// guide, retry behaviour), whatever the status.
var throttling = []string{
	"Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "RequestThrottled",
	"TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "LimitExceededException",
	"SlowDown", "PriorRequestNotComplete", "EC2ThrottledException",
}

// passing are codes with a status of 400 that another try, with a new token
// and a right clock, can mend.
var passing = map[string]string{
	"IDPCommunicationError":          "STS could not fetch the issuer's keys; they must be public",
	"IDPCommunicationErrorException": "STS could not fetch the issuer's keys; they must be public",
	"ExpiredTokenException":          "the token had expired; check the clock, and that tokenFile is renewed",
	"ExpiredToken":                   "the token had expired; check the clock, and that tokenFile is renewed",
	"RequestExpired":                 "the signature was too old; check the clock",
	"SignatureDoesNotMatch":          "the signature does not match; check the clock",
	"InternalFailure":                "",
	"ServiceUnavailable":             "",
	"RequestTimeout":                 "",
}

// advice says what to look at for refusals that are final.
var advice = map[string]string{
	"AccessDenied":            "check the role's trust policy",
	"AccessDeniedException":   "check the role's trust policy",
	"InvalidIdentityToken":    "check the identity provider in IAM: its URL, its audience and its thumbprint",
	"IDPRejectedClaim":        "check the role's trust policy and the token's claims",
	"RegionDisabledException": "STS is not activated in this region; see the account settings of IAM",
	"MalformedPolicyDocument": "check the rule's or the provider's policy",
}

// refusal turns an error of the SDK into one of ours. sent are secrets that an
// issuer might repeat.
func (m *Minter) refusal(ctx context.Context, what string, err error, sent ...string) error {
	var own *sendError
	if errors.As(err, &own) {
		return fmt.Errorf("%s: %w", what, own.err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %s: %w", minting.ErrUnavailable, what, ctx.Err())
	}
	a := answerOf(err)
	var api smithy.APIError
	if !errors.As(err, &api) {
		// The SDK's own words may repeat the answer.
		return fmt.Errorf("%w: %s: the answer is none of STS (status %d)", minting.ErrUnavailable, what, a.Status)
	}
	return m.worded(what, a, api.ErrorCode(), api.ErrorMessage(), sent...)
}

// worded judges a code and a text of AWS.
func (m *Minter) worded(what string, a issuer.Answer, code, message string, sent ...string) error {
	text := issuer.Safe(strings.Trim(code+" "+message, " "), sent...)
	if slices.Contains(throttling, code) {
		wait, ok := minting.ParseRetryAfter(a.Header.Get("Retry-After"), m.deps.Now())
		if !ok || wait == 0 {
			wait = throttleWait
		}
		return minting.WithRetryAfter(fmt.Errorf("%w: %s is throttled: %s", minting.ErrUnavailable, what, text), wait)
	}
	if code == "PackedPolicyTooLarge" || code == "PackedPolicyTooLargeException" {
		return fmt.Errorf("%w: %s: %s", minting.ErrPolicyTooLarge, what, text)
	}
	hint, again := passing[code]
	if code == "InvalidIdentityToken" && strings.Contains(message, "retrieve verification key") {
		hint, again = passing["IDPCommunicationError"], true
	}
	if !again {
		hint = advice[code]
	}
	if hint != "" {
		text += " (" + hint + ")"
	}
	if again {
		return fmt.Errorf("%w: %s: %s", minting.ErrUnavailable, what, text)
	}
	return m.client.Refusal(what, a, text)
}

// answerOf is the status and header of the answer in an error of the SDK.
func answerOf(err error) issuer.Answer {
	var res *smithyhttp.ResponseError
	if !errors.As(err, &res) || res.Response == nil {
		return issuer.Answer{Header: http.Header{}}
	}
	return issuer.Answer{Status: res.HTTPStatusCode(), Header: res.Response.Header}
}
