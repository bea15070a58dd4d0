package pipeline_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/minting"
)

// TestAWSAskedInVain checks that the record of a refused call says what it asked
// of AWS, where that was understood, and names no credential.
func TestAWSAskedInVain(t *testing.T) {
	a := newAWSRig(t, nil)
	for n, tt := range []struct {
		name, url, asked string
		err              error
	}{
		{"beyond the policy", "https://bounded.s3.eu-west-1.amazonaws.com/private/k", "s3:GetObject arn:aws:s3:::bounded/private/k", nil},
		{"no session", object, "s3:GetObject arn:aws:s3:::media/key", fmt.Errorf("%w: connection refused", minting.ErrUnavailable)},
		{"not understood", object + "?surprise=1", "", nil},
	} {
		a.sts.fail(tt.err)
		got := a.send(a.signed(http.MethodGet, tt.url, "s3", "eu-west-1", ""))
		a.skip = n
		u := a.record().Credential
		if tt.name == "beyond the policy" && !strings.Contains(got.body, "to get access, ask the owner of policy") {
			t.Errorf("does not say whom to ask: %s", got.body)
		}
		switch {
		case got.StatusCode < 400:
			t.Errorf("%s: %d", tt.name, got.StatusCode)
		case tt.asked == "":
			if u != nil {
				t.Errorf("%s: %+v", tt.name, u)
			}
		case u == nil || u.AWS == nil || u.Handle != "" || !u.Expires.IsZero() || u.Kind != minting.KindAWS || u.Provider == "":
			t.Errorf("%s: %+v", tt.name, u)
		case u.AWS.Operation != "GetObject" || u.AWS.Scope != "request" || !slices.Equal(u.ScopeAsked, []string{tt.asked}):
			t.Errorf("%s: %+v %+v", tt.name, u, u.AWS)
		}
	}
}
