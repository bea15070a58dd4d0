package injector_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/policy"
	"github.com/google/go-cmp/cmp"
)

const token = "minted-token-0123456789"

func provider(i v1alpha1.Injection) *v1alpha1.CredentialProvider {
	p := &v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Name: "p"}}
	p.Spec.Inject = i
	return p
}

func newInjector(t *testing.T, p *v1alpha1.CredentialProvider, prover injector.Prover) *injector.Injector {
	t.Helper()
	in, err := injector.New(p, prover)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func request(t testing.TB, rawURL string, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	return r
}

func bearer() minting.Credential {
	return minting.Credential{Provider: "p", Kind: minting.KindBearer, Secret: secret.New(token)}
}

func TestApply(t *testing.T) {
	tests := []struct {
		name   string
		inject v1alpha1.Injection
		url    string
		header []string
		want   http.Header
		query  string
	}{
		{
			name: "bearer replaces every spelling", url: "https://h/",
			header: []string{"Authorization", "Bearer own", "authorization", "x"},
			want:   http.Header{"Authorization": {"Bearer " + token}},
		},
		{
			name: "header", inject: v1alpha1.Injection{As: "header", Name: "x-api-key"}, url: "https://h/",
			header: []string{"X_Api_Key", "own", "Other", "1"},
			want:   http.Header{"X-Api-Key": {token}, "Other": {"1"}},
		},
		{
			name: "prefix", inject: v1alpha1.Injection{As: "header", Name: "Authorization", Prefix: "Token "}, url: "https://h/",
			want: http.Header{"Authorization": {"Token " + token}},
		},
		{
			name: "basic", inject: v1alpha1.Injection{As: "basic", Username: "bob"}, url: "https://h/",
			want: http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("bob:"+token))}},
		},
		{
			name: "query", inject: v1alpha1.Injection{As: "query", Name: "key"}, url: "https://h/?b=%2f&&a=x+y&%6bey=own&z",
			want: http.Header{}, query: "b=%2f&&a=x+y&z&key=" + token,
		},
		{
			name: "first query", inject: v1alpha1.Injection{As: "query", Name: "key"}, url: "https://h/",
			want: http.Header{}, query: "key=" + token,
		},
		{
			name: "fixed headers", inject: v1alpha1.Injection{Headers: map[string]string{"x-version": "2", "anthropic-beta": "oauth"}}, url: "https://h/",
			header: []string{"Anthropic-Beta", "tools, oauth", "X_Version", "1"},
			want:   http.Header{"Authorization": {"Bearer " + token}, "X-Version": {"2"}, "Anthropic-Beta": {"tools,oauth"}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, tt.url, tt.header...)
			if err := newInjector(t, provider(tt.inject), nil).Apply(r, bearer()); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, r.Header); d != "" {
				t.Error(d)
			}
			if r.URL.RawQuery != tt.query {
				t.Errorf("query %q, want %q", r.URL.RawQuery, tt.query)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	modes := []v1alpha1.Injection{
		{}, {As: "header", Name: "X-Key"}, {As: "basic", Username: "u"}, {As: "query", Name: "k"},
	}
	for _, m := range modes {
		in := newInjector(t, provider(m), nil)
		for _, bad := range []string{"", "zq\rzq", "zq\nzq", "zq\x00zq", "zq\x7fzq", "zqzq\n", " zq"} {
			r := request(t, "https://h/")
			err := in.Apply(r, minting.Credential{Secret: secret.New(bad)})
			if !errors.Is(err, injector.ErrUnusable) || len(r.Header) > 0 || r.URL.RawQuery != "" {
				t.Errorf("%s: %q: %v, header %v", m.As, bad, err, r.Header)
			}
			if err != nil && strings.Contains(err.Error(), "zq") {
				t.Errorf("the error tells: %v", err)
			}
		}
		r := request(t, "http://h/")
		if err := in.Apply(r, bearer()); !errors.Is(err, injector.ErrCleartext) || len(r.Header) > 0 || r.URL.RawQuery != "" {
			t.Errorf("%s: over http: %v", m.As, err)
		}
		other := bearer()
		other.Provider = "other"
		if err := in.Apply(request(t, "https://h/"), other); !errors.Is(err, injector.ErrUnusable) {
			t.Errorf("%s: another provider's credential: %v", m.As, err)
		}
	}
	unsafe := provider(v1alpha1.Injection{})
	unsafe.Spec.UnsafeCleartext = true
	if err := newInjector(t, unsafe, nil).Apply(request(t, "http://h/"), bearer()); err != nil {
		t.Errorf("unsafeCleartext: %v", err)
	}
}

func TestApplyDPoP(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	prover := injector.ProverFunc(func(c minting.Credential, method, htu string) (string, error) {
		if c.Key != key || !c.Secret.Equal(secret.New(token)) {
			return "", errors.New("another credential")
		}
		asked = append(asked, method+" "+htu)
		return "the.proof.jwt", nil
	})
	p := provider(v1alpha1.Injection{})
	p.Spec.OAuth2 = &v1alpha1.OAuth2{DPoP: true}
	in := newInjector(t, p, prover)
	c := bearer()
	c.Kind, c.Key = minting.KindDPoP, key
	for _, u := range []string{"https://H.example:443/a%20b?q=1#f", "https://h.example:8443?x"} {
		r := request(t, u, "dpop", "own")
		if err := in.Apply(r, c); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(http.Header{"Authorization": {"DPoP " + token}, "Dpop": {"the.proof.jwt"}}, r.Header); d != "" {
			t.Error(d)
		}
	}
	if d := cmp.Diff([]string{"GET https://h.example/a%20b", "GET https://h.example:8443/"}, asked); d != "" {
		t.Error(d)
	}
	c.Key = nil
	if err := in.Apply(request(t, "https://h/"), c); !errors.Is(err, injector.ErrUnusable) {
		t.Errorf("without a key: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	yes := true
	for _, i := range []v1alpha1.Injection{
		{As: "cookie"}, {As: "header"}, {As: "header", Name: "a b"}, {As: "header", Name: "Host"},
		{As: "header", Name: "Connection"}, {As: "header", Name: "X-Forwarded-For"}, {As: "header", Name: "X-K", Prefix: "a\r\n"},
		{As: "basic", Username: "a:b"}, {As: "basic", Username: "a\n"}, {As: "query"}, {As: "dpop"},
		{Headers: map[string]string{"A\r\nB": "x"}}, {Headers: map[string]string{"A": "x\ny"}}, {RequirePlaceholder: &yes},
	} {
		if _, err := injector.New(provider(i), nil); err == nil {
			t.Errorf("%+v was accepted", i)
		}
	}
}

func TestSecretsAndPlaces(t *testing.T) {
	basic := newInjector(t, provider(v1alpha1.Injection{As: "basic", Username: "u"}), nil)
	if s := basic.Secrets(bearer()); len(s) != 2 || s[1].Reveal() != base64.StdEncoding.EncodeToString([]byte("u:"+token)) {
		t.Errorf("%d secrets of basic", len(s))
	}
	if h, _ := basic.Places(); !slices.Equal(h, []string{"Authorization"}) {
		t.Errorf("places %v", h)
	}
	if _, q := newInjector(t, provider(v1alpha1.Injection{As: "query", Name: "k"}), nil).Places(); !slices.Equal(q, []string{"k"}) {
		t.Errorf("places %v", q)
	}
}

func set(t testing.TB) *placeholder.Set {
	t.Helper()
	s, err := placeholder.New([]placeholder.Spec{
		{Env: "A_KEY", Prefix: "sk-", Provider: "p"}, {Env: "B_KEY", Provider: "q"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestStrip(t *testing.T) {
	ph := set(t)
	a := ph.Value("A_KEY")
	sealed := "attache-sealed-0123456789abcdef0123456789abcdef"
	tests := []struct {
		name   string
		url    string
		header []string
		pass   bool
		want   http.Header
		query  string
		gone   []string
	}{
		{
			name: "credential headers", url: "https://u:p@h/",
			header: []string{
				"Authorization", "Bearer own", "Proxy-Authorization", "x", "X-Api-Key", "k", "api-key", "k", "x-goog-api-key", "k",
				"X-Auth-Token", "t", "Private-Token", "t", "X-Amz-Security-Token", "t", "Dpop", "t", "Txn-Token", "t",
				"X_API_KEY", "k", "Accept", "*/*", "X-Csrf-Token", "c",
			},
			want: http.Header{"Accept": {"*/*"}, "X-Csrf-Token": {"c"}},
			gone: []string{
				"Authorization", "Dpop", "Private-Token", "Proxy-Authorization", "Txn-Token", "X-Amz-Security-Token", "X-Api-Key",
				"X-Auth-Token", "X_API_KEY", "api-key", "userinfo", "x-goog-api-key",
			},
		},
		{
			name: "query", url: "https://h/?a=%2F&key=1&API_KEY=2&access_token=3&to%6ben=4&sig=5&;X-Amz-Signature=6&b=&&monkey=7",
			want: http.Header{}, query: "a=%2F&&b=&&monkey=7",
			gone: []string{"query API_KEY", "query X-Amz-Signature", "query access_token", "query key", "query sig", "query token"},
		},
		{
			name: "cookies", url: "https://h/",
			header: []string{"Cookie", "theme=dark; session_id=1; JSESSIONID=2; connect.sid=3; csrftoken=4; jwt=5; lang=en"},
			want:   http.Header{"Cookie": {"theme=dark; csrftoken=4; lang=en"}},
			gone:   []string{"cookie JSESSIONID", "cookie connect.sid", "cookie jwt", "cookie session_id"},
		},
		{
			name: "whole cookie line", url: "https://h/", header: []string{"cookie", "sid=1"}, want: http.Header{}, gone: []string{"cookie sid"},
		},
		{
			name: "provider's own places", url: "https://h/?mine=1", header: []string{"X-Mine", "1"}, want: http.Header{},
			gone: []string{"X-Mine", "query mine"},
		},
		{
			name: "pass leaves the agent's own", url: "https://h/?key=1", pass: true,
			header: []string{"Authorization", "Bearer own", "Cookie", "sid=1", "Proxy-Authorization", "x"},
			want:   http.Header{"Authorization": {"Bearer own"}, "Cookie": {"sid=1"}}, query: "key=1",
			gone: []string{"Proxy-Authorization"},
		},
		{
			name: "pass never leaves placeholders", pass: true,
			url: "https://h/?q=" + a + "&b=1&c=" + url.QueryEscape(url.QueryEscape("x "+a+"%")) + "&" + a + "=2",
			header: []string{
				"Authorization", "Bearer " + a, "X-Any", "see " + a, "Referer", "https://h/?k=" + url.QueryEscape(a),
				"X-Basic", "Basic " + b64("user:"+a), "X-Both", "fine", "X-Both", a, "Cookie", "note=" + a + "; b=1",
			},
			want: http.Header{"X-Both": {"fine"}, "Cookie": {"b=1"}}, query: "b=1",
			gone: []string{
				"Authorization", "Referer", "X-Any", "X-Basic", "X-Both", "cookie note",
				"query (placeholder)", "query c", "query q",
			},
		},
		{
			name: "sealed handles stay", url: "https://h/?sig=" + sealed + "&token=x" + sealed,
			header: []string{
				"Authorization", "Bearer " + sealed, "Authorization", "Basic " + b64("u:"+sealed), "Authorization", "Bearer x" + sealed,
				"X-Api-Key", sealed, "Cookie", "sid=" + sealed + "; jwt=x" + sealed,
			},
			want: http.Header{
				"Authorization": {"Bearer " + sealed, "Basic " + b64("u:"+sealed)},
				"X-Api-Key":     {sealed}, "Cookie": {"sid=" + sealed},
			},
			query: "sig=" + sealed, gone: []string{"Authorization", "cookie jwt", "query token"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, tt.url, tt.header...)
			o := injector.StripOptions{
				Placeholders: ph, Sealed: func(h string) bool { return h == sealed },
				Headers: []string{"x-mine"}, Params: []string{"mine"},
			}
			if tt.pass {
				o.Agent = v1alpha1.AgentCredentialsPass
			}
			gone := injector.Strip(r, o)
			if d := cmp.Diff(tt.want, r.Header); d != "" {
				t.Error(d)
			}
			if r.URL.RawQuery != tt.query {
				t.Errorf("query %q, want %q", r.URL.RawQuery, tt.query)
			}
			if d := cmp.Diff(tt.gone, gone); d != "" {
				t.Error(d)
			}
			if r.URL.User != nil {
				t.Error("userinfo is left")
			}
		})
	}
}

func TestStripTrailer(t *testing.T) {
	ph := set(t)
	h := http.Header{"Authorization": {"x"}, "X-Sum": {"1"}, "X-Other": {ph.Value("B_KEY")}}
	gone := injector.StripTrailer(h, injector.StripOptions{Placeholders: ph})
	if d := cmp.Diff(http.Header{"X-Sum": {"1"}}, h); d != "" || len(gone) != 2 {
		t.Error(d, gone)
	}
	r := request(t, "https://h/")
	r.Trailer = http.Header{"Authorization": nil, "X-Sum": nil}
	injector.Strip(r, injector.StripOptions{})
	if d := cmp.Diff(http.Header{"X-Sum": nil}, r.Trailer); d != "" {
		t.Error(d)
	}
}

func TestHygiene(t *testing.T) {
	r := request(t, "https://h/",
		"Connection", "close, X-Listed", "Connection", "TE", "X-Listed", "1", "x_listed", "1", "Keep-Alive", "1", "Te", "gzip, trailers",
		"Proxy-Connection", "keep-alive", "Proxy-Foo", "1", "Upgrade", "h2c", "Http2-Settings", "x", "Transfer-Encoding", "chunked",
		"Trailer", "X", "X-Http-Method-Override", "PUT", "x-http-method", "PUT", "X-Method-Override", "PUT", "X_HTTP_Method_Override", "PUT",
		"X-Original-Url", "/admin", "X-Rewrite-Url", "/admin", "Forwarded", "for=1", "X-Forwarded-For", "1", "X-Forwarded-Host", "x",
		"X_Forwarded_Proto", "https", "X-Real-Ip", "1", "Via", "1.1 x", injector.TaskHeader, "t", "Accept", "a", "Content-Type", "c")
	injector.Hygiene(r)
	if d := cmp.Diff(http.Header{"Te": {"trailers"}, "Accept": {"a"}, "Content-Type": {"c"}}, r.Header); d != "" {
		t.Error(d)
	}
	r = request(t, "https://h/", "Trailer", "X-Sum", "Te", "deflate")
	r.Trailer = http.Header{"X-Sum": nil, "X-Forwarded-For": nil}
	injector.Hygiene(r)
	if r.Header.Get("Trailer") == "" || r.Header.Get("Te") != "" || len(r.Trailer) != 1 {
		t.Errorf("header %v, trailer %v", r.Header, r.Trailer)
	}
}

// TestConnectionCannotTakeOffTheCredential sends through a real server: what
// Connection lists goes before injection.
func TestConnectionCannotTakeOffTheCredential(t *testing.T) {
	var got string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization") + r.Header.Get("Connection")
	}))
	defer srv.Close()
	r := request(t, srv.URL, "Connection", "authorization", "Authorization", "Bearer own")
	injector.Hygiene(r)
	injector.Strip(r, injector.StripOptions{})
	if err := newInjector(t, provider(v1alpha1.Injection{}), nil).Apply(r, bearer()); err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got != "Bearer "+token {
		t.Errorf("the origin saw %q", got)
	}
}

func TestCheckMethod(t *testing.T) {
	for _, m := range []string{"TRACE", "TRACK", "trace", "Track"} {
		if err := injector.CheckMethod(m); !errors.Is(err, injector.ErrMethod) {
			t.Errorf("%s: %v", m, err)
		}
	}
	for _, m := range []string{"GET", "POST", "TRACER", ""} {
		if err := injector.CheckMethod(m); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
}

func TestAmbient(t *testing.T) {
	ph := set(t)
	a, b := ph.Value("A_KEY"), ph.Value("B_KEY")
	elsewhere := set(t).Value("A_KEY")
	no := false
	need := provider(v1alpha1.Injection{})
	need.Spec.Placeholders = []v1alpha1.Placeholder{{Env: "A_KEY", Prefix: "sk-"}}
	optional := provider(v1alpha1.Injection{RequirePlaceholder: &no})
	optional.Spec.Placeholders = need.Spec.Placeholders
	free := provider(v1alpha1.Injection{})
	tests := []struct {
		name   string
		p      *v1alpha1.CredentialProvider
		url    string
		header []string
		cross  bool
		want   error
	}{
		{"no placeholder", need, "https://h/", nil, false, injector.ErrNoPlaceholder},
		{"bearer", need, "https://h/", []string{"Authorization", "Bearer " + a}, false, nil},
		{"basic", need, "https://h/", []string{"Authorization", "Basic " + b64("u:"+a)}, false, nil},
		{"query", need, "https://h/?x=1&key=" + a, nil, false, nil},
		{"cookie", need, "https://h/", []string{"Cookie", "x=" + b + "; y=" + a}, false, nil},
		{"userinfo", need, "https://" + a + "@h/", nil, false, nil},
		{"another provider's", need, "https://h/?x=" + b, []string{"Authorization", "Bearer " + b}, false, injector.ErrNoPlaceholder},
		{"another run's", need, "https://h/", []string{"Authorization", "Bearer " + elsewhere}, false, injector.ErrNoPlaceholder},
		{"in the path", need, "https://h/" + a, nil, false, injector.ErrNoPlaceholder},
		{"not required", optional, "https://h/", nil, false, nil},
		{"none declared", free, "https://h/", nil, false, nil},
		{"same origin", free, "https://h/", []string{"Origin", "https://H:443", "Sec-Fetch-Site", "same-origin"}, false, nil},
		{"typed", free, "https://h/", []string{"Sec-Fetch-Site", "none"}, false, nil},
		{"origin host", free, "https://h/", []string{"Origin", "https://evil"}, false, injector.ErrCrossSite},
		{"origin port", free, "https://h/", []string{"Origin", "https://h:8443"}, false, injector.ErrCrossSite},
		{"origin scheme", free, "https://h/", []string{"Origin", "http://h"}, false, injector.ErrCrossSite},
		{"origin null", free, "https://h/", []string{"Origin", "null"}, false, injector.ErrCrossSite},
		{"second origin", free, "https://h/", []string{"Origin", "https://h", "Origin", "https://evil"}, false, injector.ErrCrossSite},
		{"spelling", free, "https://h/", []string{"origin", "https://evil"}, false, injector.ErrCrossSite},
		{"cross-site", free, "https://h/", []string{"Sec-Fetch-Site", "cross-site"}, false, injector.ErrCrossSite},
		{"same-site", free, "https://h/", []string{"Sec-Fetch-Site", "same-site"}, false, injector.ErrCrossSite},
		{"unknown site", free, "https://h/", []string{"Sec-Fetch-Site", "?"}, false, injector.ErrCrossSite},
		{"allowed", free, "https://h/", []string{"Origin", "https://evil", "Sec-Fetch-Site", "cross-site"}, true, nil},
		{"allowed but not asked", need, "https://h/", []string{"Origin", "https://evil"}, true, injector.ErrNoPlaceholder},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := newInjector(t, tt.p, nil).Ambient(request(t, tt.url, tt.header...), policy.Decision{CrossSite: tt.cross}, ph)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func FuzzStrip(f *testing.F) {
	f.Add("Authorization", "Bearer KEY", "a=KEY&key=OWN;%6bey=OWN", "sid=OWN; a=KEY")
	f.Add("x_api-KEY", "OWN", "KEY=%25KEY", "OWN;=sid")
	f.Add("A", "", "", "sid")
	f.Add("X-Foo", "Basic OktFWQ==", "&&;", "\"KEY\"")
	ph := set(f)
	f.Fuzz(func(t *testing.T, name, value, query, cookie string) {
		fill := strings.NewReplacer("KEY", ph.Value("A_KEY"), "OWN", "agents-own-secret-value").Replace
		for _, agent := range []v1alpha1.AgentCredentials{v1alpha1.AgentCredentialsStrip, v1alpha1.AgentCredentialsPass} {
			r := &http.Request{URL: &url.URL{RawQuery: fill(query)}, Header: http.Header{
				name: {fill(value), b64(value)}, "Authorization": {fill(value)}, "x-api-key": {"OWN"}, "Cookie": {fill(cookie)},
			}}
			injector.Strip(r, injector.StripOptions{Agent: agent, Placeholders: ph})
			for k, vs := range r.Header {
				for _, v := range vs {
					if env, ok := ph.Contains(v); ok {
						t.Fatalf("placeholder %s survives in %s: %q", env, k, v)
					}
				}
			}
			if _, ok := ph.Contains(r.URL.RawQuery); ok {
				t.Fatalf("placeholder survives in %q", r.URL.RawQuery)
			}
			if agent == v1alpha1.AgentCredentialsPass {
				continue
			}
			folded := strings.ToLower("X-Api-Key") // as a client may have put it there, not canonical
			if len(r.Header["Authorization"])+len(r.Header[folded]) > 0 {
				t.Fatalf("the agent's credential survives: %v", r.Header)
			}
			q, _ := url.ParseQuery(r.URL.RawQuery)
			for _, own := range []string{"key", "token", "access_token", "api_key", "sig"} {
				if q.Has(own) {
					t.Fatalf("%s survives in %q", own, r.URL.RawQuery)
				}
			}
			for _, c := range (&http.Request{Header: r.Header}).Cookies() {
				if c.Name == "sid" || c.Name == "session" {
					t.Fatalf("cookie %s survives in %v", c.Name, r.Header)
				}
			}
		}
	})
}

func ExampleCheckMethod() {
	fmt.Println(injector.CheckMethod("TRACE"))
	// Output: the method repeats the request in its answer: TRACE is not allowed; use another method
}
