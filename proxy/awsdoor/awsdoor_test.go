package awsdoor_test

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/awsdoor"
	"github.com/attache-dev/attache/proxy/destination"
)

var keys = awsdoor.Keys{AccessKeyID: "AKIAplaceholder", SecretAccessKey: "placeholder-secret", SessionToken: "placeholder-token",
	Authorization: "placeholder-authorization", WebIdentity: "placeholder-identity"}

const (
	role  = "arn:aws:iam::123456789012:role/team/reader"
	start = 1_800_000_000
)

// clock is moved by tests.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) pass(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

// open returns doors and their clock.
func open(t testing.TB, change func(*awsdoor.Config)) (*awsdoor.Door, *clock) {
	t.Helper()
	ck := &clock{t: time.Unix(start, 0)}
	c := awsdoor.Config{Provider: "aws", Keys: keys, RoleARN: role, Region: "eu-west-1", Container: true, IMDS: true, WebIdentity: true,
		STS: []string{"minio.example:9000"}, Now: ck.now}
	if change != nil {
		change(&c)
	}
	d, err := awsdoor.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d, ck
}

func request(method, path string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "http://127.0.0.1:1"+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// onlyKeys fails if the answer holds a field of credentials that is no
// placeholder.
func onlyKeys(t *testing.T, body []byte, want map[string]string) {
	t.Helper()
	var got map[string]string
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: got %q, want %q", name, got[name], v)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is in the answer, too", name)
	}
}

func TestContainer(t *testing.T) {
	d, _ := open(t, nil)
	ok := []string{"Authorization", keys.Authorization}
	a := d.Local(request("GET", awsdoor.ContainerPath, ok...))
	if a.Status != 200 || a.Reason != "" || a.Type != "application/json" {
		t.Fatalf("got %+v", a)
	}
	onlyKeys(t, a.Body, map[string]string{"AccessKeyId": keys.AccessKeyID, "SecretAccessKey": keys.SecretAccessKey, "Token": keys.SessionToken,
		"Expiration": "2027-01-15T14:00:00Z", "RoleArn": role})
	tests := []struct {
		name    string
		r       *http.Request
		status  int
		ambient bool
	}{
		{"no token", request("GET", awsdoor.ContainerPath), 401, true},
		{"wrong token", request("GET", awsdoor.ContainerPath, "Authorization", keys.Authorization+"x"), 401, true},
		{"bearer", request("GET", awsdoor.ContainerPath, "Authorization", "Bearer "+keys.Authorization), 401, true},
		{"token twice", request("GET", awsdoor.ContainerPath, append(ok, ok...)...), 401, true},
		{"post", request("POST", awsdoor.ContainerPath, ok...), 405, false},
		{"query", request("GET", awsdoor.ContainerPath+"?x=1", ok...), 404, false},
		{"token in query", request("GET", awsdoor.ContainerPath+"?Authorization="+keys.Authorization), 404, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := d.Local(tt.r)
			if a.Status != tt.status || a.Ambient != tt.ambient || a.Reason == "" {
				t.Errorf("got %+v", a)
			}
			var e struct{ Code, Message string }
			if err := json.Unmarshal(a.Body, &e); err != nil || e.Code == "" || e.Message == "" {
				t.Errorf("SDKs print nothing from %s: %v", a.Body, err)
			}
			if strings.Contains(string(a.Body), keys.AccessKeyID) {
				t.Errorf("keys in a refusal: %s", a.Body)
			}
		})
	}
}

const keysPath = "/latest/meta-data/iam/security-credentials/"

// token opens a session of IMDSv2.
func token(t testing.TB, d *awsdoor.Door, seconds string) string {
	t.Helper()
	a := d.Local(request("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", seconds))
	if a.Status != 200 || a.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != seconds || len(a.Body) < 32 {
		t.Fatalf("got %+v", a)
	}
	return string(a.Body)
}

func TestIMDS(t *testing.T) {
	d, ck := open(t, nil)
	session := []string{"X-aws-ec2-metadata-token", token(t, d, "60")}
	for path, want := range map[string]string{keysPath: "reader", keysPath[:len(keysPath)-1]: "reader",
		"/latest/meta-data/placement/region": "eu-west-1", "/latest/meta-data/placement/availability-zone": "eu-west-1a"} {
		if a := d.Local(request("GET", path, session...)); a.Status != 200 || string(a.Body) != want {
			t.Errorf("%s: got %d %s", path, a.Status, a.Body)
		}
	}
	a := d.Local(request("GET", keysPath+"reader", session...))
	if a.Status != 200 {
		t.Fatalf("got %+v", a)
	}
	onlyKeys(t, a.Body, map[string]string{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2027-01-15T08:00:00Z",
		"AccessKeyId": keys.AccessKeyID, "SecretAccessKey": keys.SecretAccessKey, "Token": keys.SessionToken, "Expiration": "2027-01-15T14:00:00Z"})

	ck.pass(59 * time.Second)
	if a := d.Local(request("GET", keysPath, session...)); a.Status != 200 {
		t.Errorf("before its end: got %d", a.Status)
	}
	ck.pass(2 * time.Second)
	if a := d.Local(request("GET", keysPath+"reader", session...)); a.Status != 401 || !a.Ambient {
		t.Errorf("after its end: got %+v", a)
	}
}

func TestIMDSRefusals(t *testing.T) {
	d, _ := open(t, nil)
	other, _ := open(t, nil)
	const ttl, head = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
	good := token(t, d, "21600")
	tests := []struct {
		name   string
		r      *http.Request
		status int
	}{
		{"version 1", request("GET", keysPath+"reader"), 401},
		{"empty token", request("GET", keysPath+"reader", head, ""), 401},
		{"token of another run", request("GET", keysPath+"reader", head, token(t, other, "60")), 401},
		{"token cut", request("GET", keysPath+"reader", head, good[:len(good)-1]), 401},
		{"token with its end changed", request("GET", keysPath+"reader", head, "B"+good[1:]), 401},
		{"token twice", request("GET", keysPath+"reader", head, good, head, good), 401},
		{"no ttl", request("PUT", "/latest/api/token"), 400},
		{"ttl 0", request("PUT", "/latest/api/token", ttl, "0"), 400},
		{"ttl too long", request("PUT", "/latest/api/token", ttl, "21601"), 400},
		{"ttl huge", request("PUT", "/latest/api/token", ttl, "99999999999999999999"), 400},
		{"ttl no number", request("PUT", "/latest/api/token", ttl, "1m"), 400},
		{"ttl twice", request("PUT", "/latest/api/token", ttl, "60", ttl, "60"), 400},
		{"forwarded", request("PUT", "/latest/api/token", ttl, "60", "X-Forwarded-For", "10.0.0.1"), 403},
		{"token by get", request("GET", "/latest/api/token", ttl, "60"), 405},
		{"post", request("POST", keysPath, head, good), 405},
		{"other role", request("GET", keysPath+"admin", head, good), 404},
		{"user data", request("GET", "/latest/user-data", head, good), 404},
		{"identity document", request("GET", "/latest/dynamic/instance-identity/document", head, good), 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := d.Local(tt.r)
			if a.Status != tt.status || a.Reason == "" || a.Ambient != (tt.status == 401) {
				t.Errorf("got %+v", a)
			}
			if strings.Contains(string(a.Body), keys.AccessKeyID) {
				t.Errorf("keys in a refusal: %s", a.Body)
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	d, _ := open(t, nil)
	closed, _ := open(t, func(c *awsdoor.Config) { c.IMDS = false })
	for address, want := range map[string]bool{
		"http://169.254.169.254": true, "http://[fd00:ec2::254]": true, "https://169.254.169.254:80": false, "http://169.254.169.254:8080": false,
		"http://169.254.170.2": false, "http://127.0.0.1": false, "http://metadata.google.internal": false,
	} {
		u, err := parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Metadata(u); got != want {
			t.Errorf("%s: got %v", address, got)
		}
		if closed.Metadata(u) {
			t.Errorf("%s: the closed door answers", address)
		}
	}
}

func parse(s string) (destination.Destination, error) {
	u, err := url.Parse(s)
	if err != nil {
		return destination.Destination{}, err
	}
	return destination.FromURL(u)
}

// A door that the provider does not list is closed.
func TestClosed(t *testing.T) {
	d, _ := open(t, func(c *awsdoor.Config) { c.IMDS, c.WebIdentity = false, false })
	if a := d.Local(request("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")); a.Status != 404 {
		t.Errorf("imds: got %+v", a)
	}
	if d.Asks(dest(t, "sts.amazonaws.com:443"), form("")) {
		t.Error("webIdentity is open")
	}
	d, _ = open(t, func(c *awsdoor.Config) { c.Container = false })
	if a := d.Local(request("GET", awsdoor.ContainerPath, "Authorization", keys.Authorization)); a.Status == 200 {
		t.Errorf("container: got %+v", a)
	}
	d, _ = open(t, func(c *awsdoor.Config) { c.Container, c.IMDS = false, false })
	if a := d.Local(request("GET", awsdoor.ContainerPath, "Authorization", keys.Authorization)); a.Status != 404 {
		t.Errorf("neither: got %+v", a)
	}
}

// An SDK in a loop does not fill the records.
func TestRate(t *testing.T) {
	d, _ := open(t, nil)
	refused := 0
	for range 1000 {
		if a := d.Local(request("GET", awsdoor.ContainerPath, "Authorization", keys.Authorization)); a.Status == 429 {
			refused++
		}
	}
	if refused < 500 {
		t.Errorf("got %d of 1000 refused", refused)
	}
}

func TestNew(t *testing.T) {
	for name, change := range map[string]func(*awsdoor.Config){
		"no key":           func(c *awsdoor.Config) { c.Keys.AccessKeyID = "" },
		"no authorization": func(c *awsdoor.Config) { c.Keys.Authorization = "" },
		"no identity":      func(c *awsdoor.Config) { c.Keys.WebIdentity = "" },
		"no role":          func(c *awsdoor.Config) { c.RoleARN = "reader" },
		"no clock":         func(c *awsdoor.Config) { c.Now = nil },
	} {
		c := awsdoor.Config{Provider: "aws", Keys: keys, RoleARN: role, Container: true, WebIdentity: true, Now: time.Now}
		change(&c)
		if _, err := awsdoor.New(c); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func dest(t testing.TB, authority string) destination.Destination {
	t.Helper()
	d, err := destination.Parse("https", authority, 443)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func form(body string) *http.Request {
	r := httptest.NewRequest("POST", "https://sts.amazonaws.com/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	return r
}

func TestAsks(t *testing.T) {
	d, _ := open(t, nil)
	for _, host := range []string{"sts.amazonaws.com", "sts.eu-west-1.amazonaws.com", "sts-fips.us-east-1.amazonaws.com", "sts.us-gov-west-1.amazonaws.com",
		"sts.cn-north-1.amazonaws.com.cn", "sts.eu-west-1.api.aws", "minio.example:9000"} {
		if !d.Asks(dest(t, host), form("")) {
			t.Errorf("%s is not STS", host)
		}
	}
	for _, host := range []string{"s3.amazonaws.com", "sts.example.com", "sts.amazonaws.com.example.com", "xsts.amazonaws.com", "sts.amazonaws.com:8443", "minio.example", "127.0.0.1"} {
		if d.Asks(dest(t, host), form("")) {
			t.Errorf("%s is STS", host)
		}
	}
	clear, err := destination.Parse("http", "sts.amazonaws.com:443", 443)
	if err != nil {
		t.Fatal(err)
	}
	if d.Asks(clear, form("")) {
		t.Error("clear text is answered")
	}
	for name, change := range map[string]func(*http.Request){
		"get":   func(r *http.Request) { r.Method = "GET" },
		"path":  func(r *http.Request) { r.URL.Path = "/x" },
		"query": func(r *http.Request) { r.URL.RawQuery = "Action=AssumeRole" },
		"json":  func(r *http.Request) { r.Header.Set("Content-Type", "application/json") },
		"none":  func(r *http.Request) { r.Header.Del("Content-Type") },
	} {
		r := form("")
		change(r)
		if d.Asks(dest(t, "sts.amazonaws.com"), r) {
			t.Errorf("%s is answered", name)
		}
	}
}

const (
	web     = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=attache&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fteam%2Freader&WebIdentityToken=placeholder-identity"
	assume  = "Action=AssumeRole&Version=2011-06-15&RoleSessionName=me%40x&RoleArn=arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Fwriter"
	session = "Action=GetSessionToken&Version=2011-06-15"
	signed  = "AWS4-HMAC-SHA256 Credential=AKIAplaceholder/20270115/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=00"
)

func TestSTS(t *testing.T) {
	d, _ := open(t, nil)
	tests := []struct {
		name, body, auth string
		root             string // of the answer, without its namespace
		has              []string
	}{
		{"web identity", web, "", "AssumeRoleWithWebIdentityResponse", []string{"<Arn>arn:aws:sts::123456789012:assumed-role/reader/attache</Arn>", "2027-01-15T09:00:00Z"}},
		{"web identity, duration", web + "&DurationSeconds=900", "", "AssumeRoleWithWebIdentityResponse", []string{"2027-01-15T08:15:00Z"}},
		{"assume role", assume, signed, "AssumeRoleResponse", []string{"<Arn>arn:aws:sts::210987654321:assumed-role/writer/me@x</Arn>"}},
		{"session token", session + "&DurationSeconds=129600", signed, "GetSessionTokenResponse", []string{"2027-01-16T20:00:00Z"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, ok := d.STS([]byte(tt.body), http.Header{"Authorization": {tt.auth}}, "rec_1")
			if !ok || a.Status != 200 || a.Reason != "" || a.Type != "text/xml" {
				t.Fatalf("got %v, %+v\n%s", ok, a, a.Body)
			}
			var x struct{ XMLName xml.Name }
			if err := xml.Unmarshal(a.Body, &x); err != nil || x.XMLName.Local != tt.root || x.XMLName.Space != "https://sts.amazonaws.com/doc/2011-06-15/" {
				t.Errorf("got root %v, %v", x.XMLName, err)
			}
			for _, want := range append(tt.has, "<AccessKeyId>"+keys.AccessKeyID+"<", "<SecretAccessKey>"+keys.SecretAccessKey+"<", "<SessionToken>"+keys.SessionToken+"<", "<RequestId>rec_1<") {
				if !strings.Contains(string(a.Body), want) {
					t.Errorf("%s is not in\n%s", want, a.Body)
				}
			}
		})
	}
}

func TestSTSRefusals(t *testing.T) {
	d, _ := open(t, nil)
	tests := []struct {
		name, body, auth string
		code             string
		ambient          bool
	}{
		{"no identity", strings.Replace(web, "placeholder-identity", "", 1), "", "InvalidIdentityToken", true},
		{"another identity", strings.Replace(web, "placeholder-identity", "eyJ.eyJ.x", 1), signed, "InvalidIdentityToken", true},
		{"another role", strings.Replace(web, "reader", "admin", 1), "", "AccessDenied", false},
		{"bad session name", strings.Replace(web, "=attache", "=%3Cscript%3E", 1), "", "ValidationError", false},
		{"too short", web + "&DurationSeconds=899", "", "ValidationError", false},
		{"too long", web + "&DurationSeconds=43201", "", "ValidationError", false},
		{"no version", strings.Replace(web, "&Version=2011-06-15", "", 1), "", "InvalidAction", false},
		{"parameter twice", web + "&RoleArn=x", "", "MalformedInput", false},
		{"unsigned assume role", assume, "", "InvalidClientTokenId", true},
		{"signed with another key", assume, strings.Replace(signed, "placeholder", "other", 1), "InvalidClientTokenId", true},
		{"signed with a longer key", assume, strings.Replace(signed, "placeholder", "placeholderx", 1), "InvalidClientTokenId", true},
		{"key in another scheme", assume, strings.Replace(signed, "AWS4-HMAC-SHA256", "Basic", 1), "InvalidClientTokenId", true},
		{"unsigned session token", session, "", "InvalidClientTokenId", true},
		{"session token, too long", session + "&DurationSeconds=129601", signed, "ValidationError", false},
		{"no role", strings.Replace(assume, "%3Arole", "%3Auser", 1), signed, "ValidationError", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, ok := d.STS([]byte(tt.body), http.Header{"Authorization": {tt.auth}}, "rec_1")
			if !ok || a.Status < 400 || a.Reason == "" || a.Ambient != tt.ambient {
				t.Fatalf("got %v, %+v", ok, a)
			}
			var e struct {
				XMLName xml.Name `xml:"ErrorResponse"`
				Code    string   `xml:"Error>Code"`
				Message string   `xml:"Error>Message"`
				Type    string   `xml:"Error>Type"`
			}
			if err := xml.Unmarshal(a.Body, &e); err != nil || e.Code != tt.code || e.Message == "" || e.Type != "Sender" {
				t.Errorf("got %+v, %v", e, err)
			}
			if strings.Contains(string(a.Body), keys.AccessKeyID) {
				t.Errorf("keys in a refusal: %s", a.Body)
			}
		})
	}
}

// Everything else is not ours: the pipeline sends it where policy lets it.
func TestSTSLeavesTheRest(t *testing.T) {
	d, _ := open(t, nil)
	for _, body := range []string{"", "Action=GetCallerIdentity&Version=2011-06-15", "Action=AssumeRoleWithSAML&Version=2011-06-15", "Action=AssumeRole&Action=GetCallerIdentity", "a;b", "%zz"} {
		if a, ok := d.STS([]byte(body), nil, "rec_1"); ok {
			t.Errorf("%q: got %+v", body, a)
		}
	}
}

// Whatever is posted, keys come only for this run's token or key.
func FuzzSTS(f *testing.F) {
	for _, body := range []string{web, assume, session, "Action=AssumeRole&Action=x", "%zz"} {
		f.Add(body, signed)
		f.Add(body, "")
	}
	f.Fuzz(func(t *testing.T, body, auth string) {
		d, _ := open(t, nil)
		a, ok := d.STS([]byte(body), http.Header{"Authorization": {auth}}, "rec_1")
		if !ok {
			return
		}
		if err := xml.Unmarshal(a.Body, new(struct{ XMLName xml.Name })); err != nil {
			t.Fatalf("%v in %s", err, a.Body)
		}
		if a.Status != 200 {
			if a.Reason == "" {
				t.Errorf("no reason: %+v", a)
			}
			return
		}
		q, err := url.ParseQuery(body)
		if err != nil {
			t.Fatalf("answered %q", body)
		}
		if q.Get("WebIdentityToken") != keys.WebIdentity && !strings.Contains(auth, keys.AccessKeyID) {
			t.Errorf("keys for %q and %q", body, auth)
		}
	})
}

// Only tokens that were issued open a session.
func FuzzIMDSToken(f *testing.F) {
	d, _ := open(f, nil)
	good := token(f, d, "60")
	f.Add(good)
	f.Add(good[:20])
	f.Add(strings.Repeat("A", len(good)))
	f.Fuzz(func(t *testing.T, tok string) {
		d, _ := open(t, nil) // a new key: what the corpus holds is of another run
		if a := d.Local(request("GET", keysPath, "X-aws-ec2-metadata-token", tok)); a.Status != 401 {
			t.Errorf("%q: got %+v", tok, a)
		}
	})
}
