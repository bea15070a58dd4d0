package policy_test

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/attache-dev/attache/policy"
)

// Whatever headers and parameters really said: where a decision on what is
// recorded is certain, it is the one that was made.
func TestRecordedIsNeverWronglyCertain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 9))
	certain, open := 0, 0
	for range 150 {
		set := settleConflicts(t, randomPolicies(t, rnd, 12))
		for range 60 {
			full := randomRequest(rnd)
			r := &policy.Recorded{Request: *full}
			r.Header, r.Query = http.Header{}, url.Values{}
			for k := range full.Query {
				r.Query[k] = []string{""}
			}
			d, lacks := set.DecideRecorded(r)
			if len(lacks) > 0 {
				open++
				continue
			}
			certain++
			if want := set.Decide(full); d.Differs(&want) {
				t.Fatalf("from the record: %s %q; it was %s %q, for %+v", d.Verdict, d.Reason, want.Verdict, want.Reason, full)
			}
		}
	}
	if open < 500 || certain < 3*open {
		t.Errorf("%d certain, %d open: the test shows little", certain, open)
	}
}

// What is missing is named.
func TestRecordedLacks(t *testing.T) {
	for _, tt := range []struct {
		when string
		want []string
	}{
		{`request.headers["x"] == "y"`, []string{"request.headers"}},
		{`request == request`, []string{"request.headers", "request.query"}},
		{`"ops" in human.groups && workload.posture["a"] == "b"`, []string{"human.groups", "workload.posture"}},
		{`task.expires > time`, []string{"task.expires"}},
		{`request.method == "GET" && human.present && process.uid == 7 && workload.labels["a"] == "b"`, nil},
	} {
		s := compile(t, accessPolicy("p", with(allow("r", "a.test"), when(tt.when))))
		_, lacks := s.DecideRecorded(&policy.Recorded{Request: *request(t, "GET https://a.test/")})
		if !slices.Equal(lacks, tt.want) {
			t.Errorf("%s lacks %q, want %q", tt.when, lacks, tt.want)
		}
	}
	if d, lacks := (*policy.Set)(nil).DecideRecorded(&policy.Recorded{}); d.Verdict != policy.Deny || len(lacks) > 0 {
		t.Error("no policy allows something")
	}
}
