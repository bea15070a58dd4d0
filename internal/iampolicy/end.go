// Package iampolicy holds what policy and minting agree on about the text of
// IAM session policies, so that neither has to know the other.
package iampolicy

import (
	"strings"
	"time"
)

// OpenEnd stands in a session policy for the time at which its statements end.
// Policy writes it, so that the text is a cache key free of the clock; minting
// replaces it when it asks for a session.
const OpenEnd = "9999-12-31T23:59:59Z"

// End puts t, to the second below, in place of every [OpenEnd].
func End(policy string, t time.Time) string {
	return strings.ReplaceAll(policy, OpenEnd, t.UTC().Truncate(time.Second).Format(time.RFC3339))
}
