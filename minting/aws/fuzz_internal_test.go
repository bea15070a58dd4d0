package aws

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzDenials: whatever stands in the role's policy, a revocation is in the
// result, statements of others are too, and asking again changes nothing.
func FuzzDenials(f *testing.F) {
	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
	one := []*denial{{userID: "AROAEXAMPLEROLEID0001:cred_1", until: now.Add(15 * time.Minute)}}
	first, err := mergeDenials("", one, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first, int64(0))
	f.Add(first, int64(3600))
	f.Add(`{"Version":"2012-10-17","Statement":[{"Sid":"Mine","Effect":"Allow"}]}`, int64(0))
	f.Add(`{"Version":"2012-10-17","Statement":[{"Sid":"AttacheRevoke202611230705","Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":["x"]}}}]}`, int64(1))
	f.Add(`{"Statement":{}}`, int64(0))
	f.Add("null", int64(0))
	f.Fuzz(func(t *testing.T, old string, later int64) {
		// Text of others may name the session too; escapes could hide that.
		if len(old) > 4<<10 || strings.Contains(old, "cred_2") || strings.Contains(old, `\\`) {
			return
		}
		// A year at most: beyond it times are no four digits.
		at := now.Add(time.Duration(later%(365*24*3600)) * time.Second)
		add := []*denial{{userID: "AROAEXAMPLEROLEID0001:cred_2", until: at.Add(15 * time.Minute)}}
		doc, err := mergeDenials(old, add, at)
		if err != nil {
			return
		}
		if !strings.Contains(doc, add[0].userID) || !json.Valid([]byte(doc)) || len(doc) > maxDocument {
			t.Fatalf("%q became %q", old, doc)
		}
		if old != "" {
			was, _, err := parseDenials(old)
			if err != nil {
				t.Fatal(err)
			}
			is, _, err := parseDenials(doc)
			if err != nil || len(is) != len(was) {
				t.Fatalf("%q became %q: %d statements of others, then %d", old, doc, len(was), len(is))
			}
		}
		if again, err := mergeDenials(doc, add, at); err != nil || again != doc {
			t.Fatalf("%q again became %q, %v", doc, again, err)
		}
		if gone, err := mergeDenials(doc, nil, at.Add(time.Hour)); err != nil || strings.Contains(gone, add[0].userID) {
			t.Fatalf("%q an hour later is %q, %v", doc, gone, err)
		}
	})
}
