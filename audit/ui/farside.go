package ui

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// farSide is how to find a record in the log of whoever was called.
type farSide struct {
	Name  string
	Note  string
	Query string
}

// farSides says where the far side has our ids, and what to ask it. The ids are
// ours or checked here: a query is run by a person who trusts this page.
func farSides(r *audit.Record) []farSide {
	if r.Event != nil || r.Request == nil || r.Result == nil || r.Result.Outcome == audit.OutcomeDenied {
		return nil
	}
	var l []farSide
	from, to := r.Time.Add(-5*time.Minute).UTC().Format(time.DateTime), r.Time.Add(15*time.Minute).UTC().Format(time.DateTime)
	id := r.ID
	if !plainID(id) {
		return nil
	}
	if u := r.Credential; u != nil && u.AWS != nil {
		q := "SELECT eventTime, eventName, requestID, errorCode, userIdentity.arn FROM EVENT_DATA_STORE\n" +
			"WHERE userAgent LIKE '%attache/" + id + "%'\n  AND eventTime BETWEEN '" + from + "' AND '" + to + "'"
		if plainID(u.Handle) {
			q += ";\n\n-- all that this credential did\nSELECT eventTime, eventName, requestID, userAgent FROM EVENT_DATA_STORE\n" +
				"WHERE userIdentity.arn LIKE '%/" + u.Handle + "'"
		}
		l = append(l, farSide{"CloudTrail Lake", "The record id is in the call's user agent, the handle is the session's name. Calls on data, such as S3 objects, are there only if the trail logs data events.", q})
		l = append(l, farSide{"MinIO audit log", "Each entry has the record id in the user agent.",
			`jq -c 'select(.userAgent // .requestHeader["User-Agent"] // "" | contains("attache/` + id + `"))' audit.log`})
		return append(l, upstreamID(r)...)
	}
	l = append(l, farSide{"The service's access log", "The record id was sent with the request: at the end of the User-Agent, and as X-Request-Id if the agent set none.", "grep " + id + " access.log"})
	return append(l, upstreamID(r)...)
}

func upstreamID(r *audit.Record) []farSide {
	up := r.Result.UpstreamRequestID
	if up == "" {
		return nil
	}
	b, err := json.Marshal(up) // the upstream chose it
	if err != nil {
		return nil
	}
	return []farSide{{"The service's own id", "It named this request so in its answer; its support finds the request by it.", strings.Trim(string(b), `"`)}}
}

// plainID reports whether s is an id as we make them: rec_ or cred_ and hex.
func plainID(s string) bool {
	kind, hex, ok := strings.Cut(s, "_")
	if !ok || kind != "rec" && kind != "cred" || hex == "" || len(hex) > 64 {
		return false
	}
	return strings.Trim(hex, "0123456789abcdef") == ""
}
