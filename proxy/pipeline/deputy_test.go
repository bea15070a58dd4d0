package pipeline

import (
	"net/http"
	"testing"

	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

// Policy refuses first; should it ever not, a provider's credential still goes
// to its own destinations only.
func TestProviderOfAnotherDestination(t *testing.T) {
	none, err := upstream.NewRoutes(nil)
	if err != nil {
		t.Fatal(err)
	}
	dest, err := destination.Parse("https", "stranger.test:443", 443)
	if err != nil {
		t.Fatal(err)
	}
	for name, providers := range map[string]map[string]*Provider{"another destination": {"tok": {covers: none}}, "unknown": nil} {
		x := &exchange{state: &State{providers: providers}, dest: dest, req: &http.Request{}}
		x.decision.Verdict, x.decision.Grant.Provider = policy.Inject, "tok"
		if f := x.mayInject(); f == nil || f.Code != CodeDenied {
			t.Errorf("%s: got %v", name, f)
		}
	}
}
