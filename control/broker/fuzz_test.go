package broker_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/xds"
)

// Whatever a sidecar sends, it gets the key only for the call that the rule
// allows, and no error or record repeats the key.
func FuzzMint(f *testing.F) {
	f.Add("team/model", "https", "api.model.example", int32(443), "POST", "/v1/chat", "http", "rec", "", "")
	f.Add("team/model", "https", "api.model.example", int32(443), "POST", "/v1/../admin", "http", "rec", "", "")
	f.Add("team/model", "https", "api.model.example.", int32(443), "POST", "/v1//x", "grpc", "rec\n", "read", "aud")
	f.Add("model", "http", "*", int32(-1), "", "%2e%2e/%zz", "tls", strings.Repeat("x", 300), "read write", "*")
	sel, err := api.ForPod(api.Objects{List: []api.Object{
		{Kind: "CredentialProvider", Namespace: "team", Name: "model", Generation: 1, Spec: []byte(`{"destinations":[{"host":"api.model.example"}],"apiKey":{"secretRef":{"name":"model-key","key":"key"}}}`)},
		{Kind: "AccessPolicy", Namespace: "team", Name: "p", Generation: 1, Spec: []byte(`{"rules":[{"name":"chat","hosts":["api.model.example"],"methods":["POST"],"paths":["/v1/**"],"action":"allow","credential":{"provider":"model"}}]}`)},
	}, Namespaces: map[string]map[string]string{"team": {}}, TrustDomain: "cluster.test"}, api.Pod{SPIFFEID: "spiffe://cluster.test/ns/team/sa/a", Namespace: "team", ServiceAccount: "a"})
	if err != nil {
		f.Fatal(err)
	}
	b := &xds.Bundle{Documents: sel.Documents, Workload: &controlpb.Workload{SpiffeId: "spiffe://cluster.test/ns/team/sa/a", Namespace: "team", ServiceAccount: "a", Pod: "p", PodUid: uid}}
	var last broker.Event
	s, err := broker.New(broker.Config{
		Bundle: func(string) (*xds.Bundle, bool) { return b, true }, Secrets: secrets, Namespace: "attache-system", Rate: 1e9, Burst: 1 << 30,
		Client: func([]string, []byte) *http.Client { return http.DefaultClient },
		Record: func(_ context.Context, e broker.Event) error { last = e; return nil },
		Peer: func(context.Context) (peer.Pod, error) {
			return peer.Pod{ID: spiffeid.RequireFromString("spiffe://cluster.test/ns/team/sa/a"), Namespace: "team", UID: uid, Expires: time.Now().Add(time.Hour)}, nil
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, provider, scheme, host string, port int32, method, path, protocol, record, scope, audience string) {
		q := &controlpb.MintRequest{Provider: provider, Scheme: scheme, Host: host, Port: port, Method: method, Path: path, Protocol: protocol, Record: record, Audience: audience}
		if scope != "" {
			q.Scopes = strings.Split(scope, " ")
		}
		a, err := s.Mint(t.Context(), q)
		if err == nil {
			if a.GetValue() != root || provider != "team/model" || scheme != "https" || host != "api.model.example" || port != 443 || method != "POST" || !strings.HasPrefix(path, "/v1/") || len(q.GetScopes()) > 0 {
				t.Fatalf("minted for %v", q)
			}
			return
		}
		if a != nil || strings.Contains(err.Error(), root) {
			t.Fatalf("refused with %v, %v", a, err)
		}
		if last.Result == "minted" || !utf8.ValidString(last.Destination) || len(last.Destination) > 400 {
			t.Fatalf("recorded %+v", last)
		}
	})
}
