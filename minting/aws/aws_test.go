package aws_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
)

func sha256hex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestSuite(t *testing.T) {
	const want = "secret-key-that-is-known-0123456789"
	mintingtest.Run(t, mintingtest.Suite{New: func(t *testing.T, mode mintingtest.Mode) mintingtest.Fixture {
		f := newSTS(t)
		f.lie = func(a *answer) {
			a.Result.Credentials.SecretAccessKey = want
			if mode == mintingtest.Header {
				a.Result.Credentials.SessionToken = "a\r\nX-Evil: yes"
			}
		}
		deny := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			fail(w, http.StatusForbidden, "AccessDenied", "not with "+r.PostForm.Get("WebIdentityToken"))
		})
		e := evidence(f)
		return mintingtest.Fixture{
			Minter:  connect(t, mintingtest.Issuer(t, mode, f, deny), nil),
			Request: request(e), Evidence: e, Want: want, Secrets: f.secrets,
		}
	}})
}

// TestWebIdentity: what is sent, and what becomes of the answer.
func TestWebIdentity(t *testing.T) {
	f := newSTS(t)
	m := connect(t, f, func(s *v1alpha1.AWS) { s.Duration = v1alpha1.Duration(time.Hour) })
	e := evidence(f)
	before := time.Now()
	c, err := m.Mint(t.Context(), request(e), e)
	if err != nil {
		t.Fatal(err)
	}
	q := f.asked()[0]
	if q.Get("RoleArn") != roleARN || q.Get("RoleSessionName") != c.Handle || q.Get("DurationSeconds") != "3600" {
		t.Errorf("asked %v", q)
	}
	end := c.Expires.UTC().Format(time.RFC3339)
	if want := strings.ReplaceAll(policy, "9999-12-31T23:59:59Z", end); q.Get("Policy") != want {
		t.Errorf("policy %s, want %s", q.Get("Policy"), want)
	}
	if d := c.Expires.Sub(before); d < 4*time.Minute || d > 5*time.Minute+time.Second {
		t.Errorf("expires in %v, want the TTL", d)
	}
	if !c.Outlives.IsZero() {
		t.Error("a session that its policy ends outlives nothing")
	}
	if c.Kind != minting.KindAWS || !strings.HasPrefix(c.AccessKeyID, "ASIA") || c.SessionToken.IsZero() ||
		c.Role != "arn:aws:sts::"+account+":assumed-role/reader/"+c.Handle || !c.Derived {
		t.Errorf("credential %+v", c)
	}
	r := request(e)
	r.SessionPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}` // no end
	if c, err = m.Mint(t.Context(), r, e); err != nil || c.Outlives.Sub(before) < 55*time.Minute {
		t.Errorf("Outlives = %v, %v; want the keys' own end", c.Outlives, err)
	}
}

// TestTTLBeyondDuration: a session never lasts longer than AWS was asked for.
func TestTTLBeyondDuration(t *testing.T) {
	f := newSTS(t)
	e := evidence(f)
	r := request(e)
	r.TTL = 20 * time.Hour
	c, err := connect(t, f, nil).Mint(t.Context(), r, e)
	if err != nil || time.Until(c.Expires) > 15*time.Minute {
		t.Errorf("expires %v, %v", c.Expires, err)
	}
}

// TestClockOfSTS: where its clock is ahead, the first session would end at once
// by aws:CurrentTime and is not used; the next one ends by STS's clock.
func TestClockOfSTS(t *testing.T) {
	const ahead = 4 * time.Minute
	f := newSTS(t)
	f.now = func() time.Time { return time.Now().Add(ahead) }
	m := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
		f.ServeHTTP(w, r)
	}), nil)
	e := evidence(f)
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrUnavailable) || !strings.Contains(err.Error(), "clock") {
		t.Errorf("first: %v", err)
	}
	c, err := m.Mint(t.Context(), request(e), e)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(f.asked()[1].Get("Policy"), `"aws:CurrentTime":"`)
	end, err := time.Parse(time.RFC3339, text[:len("2006-01-02T15:04:05Z")])
	if d := end.Sub(c.Expires); err != nil || d < ahead-30*time.Second || d > ahead {
		t.Errorf("the policy ends %v after our use, want about %v (%v)", d, ahead, err)
	}
	if !c.Outlives.IsZero() {
		t.Error("it has an end, and is said to outlive it")
	}
}

func human() *identity.Task {
	t := mintingtest.Task("token-of-alice")
	t.Human.Email, t.Purpose = "alice@example.com", "close the books"
	return t
}

// TestChain: the session policy goes with the last hop only, tags and source
// identity with it, and the second call is signed by the first one's session.
func TestChain(t *testing.T) {
	f := newSTS(t)
	m := connect(t, f, func(s *v1alpha1.AWS) {
		s.Duration = v1alpha1.Duration(12 * time.Hour)
		s.Chain = &v1alpha1.AWSChain{
			RoleARN: chainARN, ExternalID: "ext:1", Duration: v1alpha1.Duration(time.Hour),
			Tags: map[string]string{"purpose": "${task.purpose}", "agent": "${workload.name}"}, TransitiveTags: []string{"agent"},
		}
	})
	e := evidence(f)
	e.Task = human()
	c, err := m.Mint(t.Context(), request(e), e)
	if err != nil {
		t.Fatal(err)
	}
	q := f.asked()
	if len(q) != 2 || q[0].Get("Action") != "AssumeRoleWithWebIdentity" || q[1].Get("Action") != "AssumeRole" {
		t.Fatalf("asked %v", q)
	}
	if q[0].Has("Policy") || q[0].Get("RoleArn") != roleARN || q[0].Get("DurationSeconds") != "900" {
		t.Errorf("first hop %v", q[0])
	}
	for k, want := range map[string]string{
		"RoleArn": chainARN, "RoleSessionName": c.Handle, "DurationSeconds": "3600", "ExternalId": "ext:1", "SourceIdentity": "alice@example.com",
		"Tags.member.1.Key": "agent", "Tags.member.1.Value": "a", "Tags.member.2.Key": "purpose", "Tags.member.2.Value": "close the books",
		"TransitiveTagKeys.member.1": "agent",
	} {
		if got := q[1].Get(k); got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if !strings.Contains(q[1].Get("Policy"), "alpha") || strings.Contains(q[1].Get("Policy"), "9999") {
		t.Errorf("policy %s", q[1].Get("Policy"))
	}
	if c.Role != "arn:aws:sts::"+account+":assumed-role/target/"+c.Handle {
		t.Errorf("role %s", c.Role)
	}
}

func TestSourceIdentity(t *testing.T) {
	tests := []struct {
		name, template string
		human          *identity.Human
		want           string
		refused        bool
	}{
		{"nobody", "", nil, "", false},
		{"address", "", &identity.Human{Subject: "7", Email: "a@b.c"}, "a@b.c", false},
		{"subject", "", &identity.Human{Subject: "alice"}, "alice", false},
		{"neither is legal", "", &identity.Human{Subject: "auth0|7", Issuer: "https://idp"}, "human-" + sha256hex([]byte("https://idp auth0|7"))[:32], false},
		{"none", "none", &identity.Human{Subject: "alice"}, "", false},
		{"template", "x-${human.subject}", &identity.Human{Subject: "alice"}, "x-alice", false},
		{"illegal value", "x-${human.subject}", &identity.Human{Subject: "a|b"}, "", true},
		{"illegal text", "a b", nil, "", true},
		{"too long", strings.Repeat("a", 65), nil, "", true},
		{"no human", "${human.subject}", nil, "", true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := newSTS(t)
			m := connect(t, f, func(s *v1alpha1.AWS) {
				s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, SourceIdentity: tc.template}
			})
			e := evidence(f)
			if tc.human != nil {
				e.Task = human()
				e.Task.Human = tc.human
			}
			_, err := m.Mint(t.Context(), request(e), e)
			if tc.refused {
				if !errors.Is(err, minting.ErrDenied) || len(f.asked()) != 0 {
					t.Errorf("Mint = %v after %d calls", err, len(f.asked()))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if q := f.asked()[1]; q.Get("SourceIdentity") != tc.want || q.Has("SourceIdentity") != (tc.want != "") {
				t.Errorf("SourceIdentity %q, want %q", q.Get("SourceIdentity"), tc.want)
			}
		})
	}
}

// TestRoles: which role is asked for, by the request and by templates.
func TestRoles(t *testing.T) {
	const other = "arn:aws:iam::" + account + ":role/other"
	const template = "arn:aws:iam::" + account + ":role/agent-${workload.name}"
	tests := []struct {
		name, provider, request, chain string
		want                           []string // none: refused
	}{
		{"the provider's", roleARN, "", "", []string{roleARN}},
		{"a template", template, "", "", []string{"arn:aws:iam::" + account + ":role/agent-a"}},
		{"the rule's", roleARN, other, "", []string{other}},
		{"the rule's, chained", roleARN, other, chainARN, []string{other, chainARN}},
		{"the chain's named", roleARN, chainARN, chainARN, []string{roleARN, chainARN}},
		{"a hole", "arn:aws:iam::" + account + ":role/${workload.labels.team}", "", "", nil},
		{"no ARN", roleARN, "reader", "", nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := newSTS(t)
			m := connect(t, f, func(s *v1alpha1.AWS) {
				s.RoleARN = tc.provider
				if tc.chain != "" {
					s.Chain = &v1alpha1.AWSChain{RoleARN: tc.chain}
				}
			})
			e := evidence(f)
			r := request(e)
			r.Role = tc.request
			_, err := m.Mint(t.Context(), r, e)
			var got []string
			for _, q := range f.asked() {
				got = append(got, q.Get("RoleArn"))
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) || (err == nil) != (tc.want != nil) || err != nil && !errors.Is(err, minting.ErrDenied) {
				t.Errorf("asked for %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

// TestPolicySize: what STS would refuse costs no call, and is told apart.
func TestPolicySize(t *testing.T) {
	f := newSTS(t)
	m := connect(t, f, nil)
	e := evidence(f)
	pad := func(n int) string {
		const head, tail = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::`, `"}]}`
		return head + strings.Repeat("é", n-len(head)-len(tail)) + tail
	}
	for _, tc := range []struct {
		policy string
		want   error
	}{{pad(2048), nil}, {pad(2049), minting.ErrPolicyTooLarge}, {strings.Replace(policy, "alpha", "日本", 1), minting.ErrDenied}, {"", minting.ErrDenied}} {
		r := request(e)
		r.SessionPolicy = tc.policy
		calls := len(f.asked())
		_, err := m.Mint(t.Context(), r, e)
		switch {
		case tc.want == nil && err != nil:
			t.Errorf("2048 characters: %v", err)
		case tc.want != nil && (!errors.Is(err, tc.want) || !errors.Is(err, minting.ErrDenied) || len(f.asked()) != calls):
			t.Errorf("%.40q: %v", tc.policy, err)
		}
		if tc.want == minting.ErrDenied && errors.Is(err, minting.ErrPolicyTooLarge) {
			t.Errorf("%.40q is too large: %v", tc.policy, err)
		}
	}
}

// TestRefusals: what each of AWS's errors means to the caller.
func TestRefusals(t *testing.T) {
	tests := []struct {
		status      int
		code, text  string
		retryAfter  string
		want        error
		wait        time.Duration
		mustContain string
	}{
		{403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", "", minting.ErrDenied, 0, "trust policy"},
		{400, "InvalidIdentityToken", "Incorrect token audience", "", minting.ErrDenied, 0, "audience"},
		{400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider", "", minting.ErrUnavailable, 0, "keys"},
		{400, "IDPCommunicationError", "Error communicating with provider", "", minting.ErrUnavailable, 0, "public"},
		{403, "IDPRejectedClaim", "no", "", minting.ErrDenied, 0, "claims"},
		{400, "ExpiredTokenException", "Token expired", "", minting.ErrUnavailable, 0, "clock"},
		{403, "RegionDisabledException", "STS is not activated in this region", "", minting.ErrDenied, 0, "activated"},
		{400, "MalformedPolicyDocument", "Syntax errors in policy", "", minting.ErrDenied, 0, "policy"},
		{400, "PackedPolicyTooLarge", "Packed size of session tags consumes 160% of allotted space", "", minting.ErrPolicyTooLarge, 0, "160%"},
		{400, "Throttling", "Rate exceeded", "", minting.ErrUnavailable, time.Second, "throttled"},
		{400, "ThrottlingException", "Rate exceeded", "9", minting.ErrUnavailable, 9 * time.Second, "throttled"},
		{503, "RequestLimitExceeded", "x", "", minting.ErrUnavailable, time.Second, "throttled"},
		{503, "ServiceUnavailable", "x", "", minting.ErrUnavailable, 0, "ServiceUnavailable"},
		{500, "InternalFailure", "x", "", minting.ErrUnavailable, 0, "InternalFailure"},
		{503, "SomethingNew", "x", "4", minting.ErrUnavailable, 4 * time.Second, "503"},
		{400, "SomethingNew", "x", "", minting.ErrDenied, 0, "400"},
	}
	for _, tc := range tests {
		t.Run(tc.code, func(t *testing.T) {
			f, calls := newSTS(t), 0
			m := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				if tc.retryAfter != "" {
					w.Header().Set("Retry-After", tc.retryAfter)
				}
				fail(w, tc.status, tc.code, tc.text)
			}), nil)
			e := evidence(f)
			_, err := m.Mint(t.Context(), request(e), e)
			if !errors.Is(err, tc.want) || errors.Is(err, minting.ErrDenied) == errors.Is(err, minting.ErrUnavailable) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if wait, _ := minting.RetryAfter(err); wait != tc.wait {
				t.Errorf("RetryAfter = %v, want %v", wait, tc.wait)
			}
			if err != nil && !strings.Contains(err.Error(), tc.mustContain) {
				t.Errorf("%q does not say %q", err, tc.mustContain)
			}
			if errors.Is(err, minting.ErrPolicyTooLarge) != (tc.want == minting.ErrPolicyTooLarge) {
				t.Errorf("too large: %v", err)
			}
			if calls != 1 {
				t.Errorf("%d calls, want one: retries are the guard's", calls)
			}
		})
	}
}

// TestLies: an answer is believed only where it can be true.
func TestLies(t *testing.T) {
	later := func(d time.Duration) func(*answer) {
		return func(a *answer) { a.Result.Credentials.Expiration = time.Now().Add(d).UTC().Format(time.RFC3339) }
	}
	lies := map[string]func(*answer){
		"no credentials":    func(a *answer) { a.Result.Credentials = nil },
		"no key id":         func(a *answer) { a.Result.Credentials.AccessKeyID = "" },
		"odd key id":        func(a *answer) { a.Result.Credentials.AccessKeyID = "ASIA/../00000000000" },
		"no secret":         func(a *answer) { a.Result.Credentials.SecretAccessKey = "" },
		"no token":          func(a *answer) { a.Result.Credentials.SessionToken = "" },
		"token with a line": func(a *answer) { a.Result.Credentials.SessionToken = "a\r\nb" },
		"no end":            func(a *answer) { a.Result.Credentials.Expiration = "" },
		"ended":             later(-time.Minute),
		"ends too late":     later(48 * time.Hour),
		"another role": func(a *answer) {
			a.Result.AssumedRole.Arn = strings.Replace(a.Result.AssumedRole.Arn, "reader", "admin", 1)
		},
		"another account": func(a *answer) {
			a.Result.AssumedRole.Arn = strings.Replace(a.Result.AssumedRole.Arn, account, "210987654321", 1)
		},
		"another session":     func(a *answer) { a.Result.AssumedRole.Arn += "x" },
		"an end that is none": func(a *answer) { a.Result.Credentials.Expiration = "tomorrow" },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			f := newSTS(t)
			f.lie = lie
			e := evidence(f)
			c, err := connect(t, f, nil).Mint(t.Context(), request(e), e)
			if !errors.Is(err, minting.ErrUnavailable) || !c.Secret.IsZero() {
				t.Errorf("Mint = %+v, %v", c, err)
			}
		})
	}
}

// TestNothingFromTheEnvironment: the SDK reads no variable and no file of ours.
func TestNothingFromTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	text := "[default]\naws_access_key_id = AKIAFROMFILE00000000\naws_secret_access_key = fromfile\nregion = ap-south-1\nendpoint_url = https://evil.example\nuse_fips_endpoint = true\nmax_attempts = 9\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAFROMENV000000000", "AWS_SECRET_ACCESS_KEY": "fromenv", "AWS_SESSION_TOKEN": "fromenv",
		"AWS_REGION": "ap-south-1", "AWS_DEFAULT_REGION": "ap-south-1", "AWS_PROFILE": "default", "AWS_CONFIG_FILE": file, "AWS_SHARED_CREDENTIALS_FILE": file,
		"AWS_ENDPOINT_URL": "https://evil.example", "AWS_ENDPOINT_URL_STS": "https://evil.example", "AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true",
		"AWS_ROLE_ARN": "arn:aws:iam::210987654321:role/env", "AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ROLE_SESSION_NAME": "env", "AWS_MAX_ATTEMPTS": "9",
		"AWS_STS_REGIONAL_ENDPOINTS": "legacy", "AWS_EXECUTION_ENV": "from-env", "AWS_LAMBDA_FUNCTION_NAME": "fn", "_X_AMZN_TRACE_ID": "from-env", "AWS_CA_BUNDLE": file, "HOME": dir,
	} {
		t.Setenv(k, v)
	}
	f := newSTS(t)
	m := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range r.Header {
			if strings.Contains(strings.ToLower(fmt.Sprint(v)), "from-env") {
				t.Errorf("%s: %v", k, v)
			}
		}
		if ua := r.Header.Get("User-Agent"); ua != "attache" {
			t.Errorf("User-Agent %q", ua)
		}
		f.ServeHTTP(w, r)
	}), func(s *v1alpha1.AWS) { s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN} })
	e := evidence(f)
	if _, err := m.Mint(t.Context(), request(e), e); err != nil {
		t.Fatal(err)
	}
}

// roundTrip is a transport that says where it was asked to go.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestEndpoints: the SDK's resolver chooses, and the call goes there.
func TestEndpoints(t *testing.T) {
	tests := []struct {
		region          string
		fips, dualStack bool
		want            string
	}{
		{"eu-west-1", false, false, "sts.eu-west-1.amazonaws.com"},
		{"us-east-1", false, false, "sts.us-east-1.amazonaws.com"}, // not the global one
		{"us-east-1", true, false, "sts-fips.us-east-1.amazonaws.com"},
		{"eu-west-1", false, true, "sts.eu-west-1.api.aws"},
		{"us-west-2", true, true, "sts-fips.us-west-2.api.aws"},
		{"us-gov-west-1", false, false, "sts.us-gov-west-1.amazonaws.com"},
		{"us-gov-west-1", true, false, "sts.us-gov-west-1.amazonaws.com"},
		{"cn-north-1", false, false, "sts.cn-north-1.amazonaws.com.cn"},
	}
	for _, tc := range tests {
		t.Run(tc.want, func(t *testing.T) {
			var went *url.URL
			down := errors.New("the line is down")
			deps := minting.Deps{Client: func([]string, []byte) *http.Client {
				return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) { went = r.URL; return nil, down })}
			}}
			m, err := provider.New("cloud", v1alpha1.AWS{RoleARN: roleARN, Region: tc.region, FIPS: tc.fips, DualStack: tc.dualStack}, deps)
			if err != nil {
				t.Fatal(err)
			}
			f := newSTS(t)
			e := evidence(f)
			_, err = m.Mint(t.Context(), request(e), e)
			if !errors.Is(err, down) || !errors.Is(err, minting.ErrUnavailable) {
				t.Errorf("Mint = %v", err)
			}
			if went == nil || went.Scheme != "https" || went.Host != tc.want || m.Endpoint() != "https://"+tc.want {
				t.Errorf("went to %v, Endpoint says %s; want %s", went, m.Endpoint(), tc.want)
			}
		})
	}
}

func TestTokenFile(t *testing.T) {
	f := newSTS(t)
	file := filepath.Join(t.TempDir(), "token")
	m := connect(t, f, func(s *v1alpha1.AWS) { s.TokenFile = file })
	e := evidence(f)
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("without a file: %v", err)
	}
	for range 2 { // read anew for each session
		j, err := f.src.JWT(t.Context(), identity.JWTRequest{Workload: e.Workload, Audience: "sts.amazonaws.com"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(j.Token.Reveal()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Mint(t.Context(), request(e), e); err != nil {
			t.Fatal(err)
		}
		q := f.asked()
		if q[len(q)-1].Get("WebIdentityToken") != j.Token.Reveal() {
			t.Error("not the file's token")
		}
	}
	for _, bad := range []string{"", "no jwt", strings.Repeat("a.", 10001), "a.b.c d"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		calls := len(f.asked())
		if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrUnavailable) || len(f.asked()) != calls {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestIdentityFails(t *testing.T) {
	f := newSTS(t)
	m := connect(t, f, nil)
	e := evidence(f)
	f.src.FailWith(fmt.Errorf("%w: no socket", identity.ErrUnavailable))
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("identity unavailable: %v", err)
	}
	f.src.FailWith(errors.New("no"))
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("identity refused: %v", err)
	}
	for _, none := range []minting.Evidence{{}, {Workload: e.Workload}, {Source: e.Source}} {
		if _, err := m.Mint(t.Context(), request(e), none); !errors.Is(err, minting.ErrDenied) {
			t.Errorf("without evidence: %v", err)
		}
	}
	if len(f.asked()) != 0 {
		t.Error("STS was asked")
	}
}

// TestPace: calls beyond the rate wait, and do not when their caller leaves.
func TestPace(t *testing.T) {
	calls, down := 0, errors.New("the line is down") // at once: a second must not pass between the calls
	deps := minting.Deps{Client: func([]string, []byte) *http.Client {
		return &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { calls++; return nil, down })}
	}}
	m, err := provider.New("cloud", v1alpha1.AWS{RoleARN: roleARN, Region: "eu-west-1", CallsPerSecond: 1}, deps)
	if err != nil {
		t.Fatal(err)
	}
	e := evidence(newSTS(t))
	if _, err := m.Mint(t.Context(), request(e), e); !errors.Is(err, down) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.Mint(ctx, request(e), e); !errors.Is(err, minting.ErrUnavailable) || errors.Is(err, down) {
		t.Errorf("second call: %v", err)
	}
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func TestNew(t *testing.T) {
	good := func() v1alpha1.AWS { return v1alpha1.AWS{RoleARN: roleARN, Region: "eu-west-1"} }
	tests := map[string]func(*v1alpha1.AWS){
		"roleARN: ":        func(s *v1alpha1.AWS) { s.RoleARN = "reader" },
		"roleARN: has the": func(s *v1alpha1.AWS) { s.RoleARN += "${task.id}" },
		"region: ":         func(s *v1alpha1.AWS) { s.Region = "eu-west-1.evil.example/" },
		"endpoint: is":     func(s *v1alpha1.AWS) { s.Endpoint = "http://sts.example" },
		"endpoint: cannot": func(s *v1alpha1.AWS) { s.Endpoint, s.FIPS = "https://sts.example", true },
		"callsPerSecond: ": func(s *v1alpha1.AWS) { s.CallsPerSecond = -1 },
		"duration: ":       func(s *v1alpha1.AWS) { s.Duration = v1alpha1.Duration(time.Minute) },
		"duration: is 13h": func(s *v1alpha1.AWS) { s.Duration = v1alpha1.Duration(13 * time.Hour) },
		"chain.duration: ": func(s *v1alpha1.AWS) {
			s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, Duration: v1alpha1.Duration(2 * time.Hour)}
		},
		"chain.roleARN: ":    func(s *v1alpha1.AWS) { s.Chain = &v1alpha1.AWSChain{} },
		"chain.externalID: ": func(s *v1alpha1.AWS) { s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, ExternalID: "a b"} },
		"chain.tags: the": func(s *v1alpha1.AWS) {
			s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, Tags: map[string]string{"aws:x": "y"}}
		},
		"chain.tags: has": func(s *v1alpha1.AWS) {
			s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, Tags: map[string]string{"x": "y", "X": "y"}}
		},
		"chain.tags[x]: ": func(s *v1alpha1.AWS) {
			s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, Tags: map[string]string{"x": "${y}"}}
		},
		"chain.transitiveTags": func(s *v1alpha1.AWS) { s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, TransitiveTags: []string{"x"}} },
		"chain.sourceIdentity": func(s *v1alpha1.AWS) { s.Chain = &v1alpha1.AWSChain{RoleARN: chainARN, SourceIdentity: "${x}"} },
		"tokenFile: ":          func(s *v1alpha1.AWS) { s.TokenFile, s.RolesAnywhere = "/t", &v1alpha1.AWSRolesAnywhere{} },
		"rolesAnywhere.trust":  func(s *v1alpha1.AWS) { s.RolesAnywhere = &v1alpha1.AWSRolesAnywhere{} },
		"revocation.kind: is":  func(s *v1alpha1.AWS) { s.Revocation = &v1alpha1.AWSRevocation{} },
		"revocation.roleARN: ": func(s *v1alpha1.AWS) { s.Revocation = &v1alpha1.AWSRevocation{Kind: "iamDeny"} },
		"revocation.endpoint: ": func(s *v1alpha1.AWS) {
			s.Revocation = &v1alpha1.AWSRevocation{Kind: "iamDeny", RoleARN: denyARN, Endpoint: "http://x"}
		},
		"revocation.kind: mini": func(s *v1alpha1.AWS) { s.Revocation = &v1alpha1.AWSRevocation{Kind: "minio"} },
		"caFile: ":              func(s *v1alpha1.AWS) { s.CAFile = "/nonexistent" },
	}
	deps := minting.Deps{Client: func([]string, []byte) *http.Client { return &http.Client{} }}
	if _, err := provider.New("p", good(), deps); err != nil {
		t.Fatal(err)
	}
	for want, change := range tests {
		s := good()
		change(&s)
		if _, err := provider.New("p", s, deps); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want %q", err, want)
		}
	}
}
