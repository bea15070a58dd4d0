package audit

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
)

const (
	hex16 = "9f86d081884c7d65"
	hex32 = "9f86d081884c7d659a2feaa0c55ad015"
	hex40 = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	uuid  = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
)

// TestSecretsInEveryForm in which programs and people write a name and its value.
func TestSecretsInEveryForm(t *testing.T) {
	var x Redactor
	for in, want := range map[string]string{
		// Options.
		"mysql --password hunter2 db":               "mysql --password *** db",
		"x --api-key 'a b' y":                       "x --api-key *** y",
		"curl -u ann:hunter2 https://h/x":           "curl -u ann:*** https://h/x",
		"curl -u 'ann:hunter2' https://h/x":         "curl -u 'ann:***' https://h/x",
		"curl --user ann:hunter2 --proxy-user=a:b1": "curl --user ann:*** --proxy-user=a:***",
		// Headers.
		"-H 'Authorization: Basic dXNlcjpwdw=='":      "-H 'Authorization: Basic ***'",
		`-H "authorization: hunter" https://h/x`:      `-H "authorization: ***" https://h/x`,
		`sh -c "curl -H \"X-Api-Key: a b\" h"`:        `sh -c "curl -H \"X-Api-Key: ***\" h"`,
		"sent Authorization: Basic dXNlcjpwdw==, why": "sent Authorization: Basic ***, why",
		"sent Authorization: Bearer hunterhunterhunt": "sent Authorization: Bearer ***",
		"X-Api-Key: " + hex32 + " was refused":        "X-Api-Key: *** was refused",
		"token: " + hex16:                             "token: ***",
		"/x/token:" + hex16:                           "/x/token:***",
		"password: hunter2hunter2, then":              "password: ***, then",
		"Cookie: a=1; b=2":                            "Cookie: ***",
		"-H 'Cookie: a=1; b=2' x":                     "-H 'Cookie: ***' x",
		"with Bearer hunterhunterhunter in it":        "with Bearer *** in it",
		"with bearer aaBbccdd in it":                  "with bearer *** in it",
		// JSON.
		`{"password":"x","a":1}`:             `{"password":"***","a":1}`,
		`{"db": {"password": "a\"b", "a":1}`: `{"db": {"password": "***", "a":1}`,
		`"{\"client_secret\":\"x\",\"a\":1}`: `"{\"client_secret\":\"***\",\"a\":1}`,
		`{'passcode': 1234}`:                 `{'passcode': ***}`,
		// URLs.
		"https://" + hex32 + "@h.example/x":      "https://***@h.example/x",
		"https://" + hex40 + ":x-oauth@h/x":      "https://***@h/x",
		"https://u:pa/ss@h.example/x":            "https://u:***@h.example/x",
		"https://u:pa#s?s@h.example/x y@z":       "https://u:***@h.example/x y@z",
		"/login?next=%2Fx%3Ftoken%3Dx%26b%3D1":   "/login?next=%2Fx%3Ftoken%3D***%26b%3D1",
		"/login?next=%2Fx%3Fa%3D1%26key%3Dx&b=1": "/login?next=%2Fx%3Fa%3D1%26key%3D***&b=1",
		"/x?api%5Fkey=x&b=1":                     "/x?api%5Fkey=***&b=1",
		"/x?%74oken=x":                           "/x?%74oken=***",
		"/api%5Fkey/" + hex16:                    "/api%5Fkey/***",
		"/x?access_token[]=x&user[password]=y":   "/x?access_token[]=***&user[password]=***",
		"/x?token[0]=x&password2=y":              "/x?token[0]=***&password2=***",
		"/x?cookie=x&session=y&credentials=z":    "/x?cookie=***&session=***&credentials=***",
		"/x?client_assertion=y&sid=1":            "/x?client_assertion=***&sid=***",
		"run session=" + hex32 + " x":            "run session=*** x",
		"/reset/" + hex32:                        "/reset/***",
		"/invite/" + hex40 + "/accept":           "/invite/***/accept",
		// The whole of a value.
		"password=a;b c":                   "password=*** c",
		"password=a)b c":                   "password=*** c",
		`password=a\ b c`:                  "password=*** c",
		`password="a\"b" c`:                "password=*** c",
		`password='a'b'c' d`:               "password=*** d",
		`password=a"b c"d e`:               "password=*** e",
		`sh -c "x --password=\"a b\" y"`:   `sh -c "x --password=*** y"`,
		"Server=a;Password=b;c;Database=d": "Server=a;Password=***;Database=d",
		"(see token=a).":                   "(see token=***).",
		"token=a; ls":                      "token=***; ls",
	} {
		if got := x.Text(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
		if got := x.Text(want); got != want {
			t.Errorf("again, %s became %s", want, got)
		}
	}
}

// TestProseStays: reasons and errors speak of tokens without showing any, and
// paths and ids have their names.
func TestProseStays(t *testing.T) {
	var x Redactor
	for _, in := range []string{
		"invalid token: signature does not match", "token: expired", "password: must not be empty", `oauth2: cannot fetch token: 400 Bad Request`, "token: oauth2server: refused", "secret: open /run/secrets/x1/y2",
		"secret: payments-db-7f9c2 not found", "authorization: denied by policy 17", "Authorization: bearer is missing", "authorization: basic auth is off", "a bearer token is missing", "Bearer authentication", "no bearer credential was sent",
		"cookie: not found", "session=main", "tmux new -s session=main", "/year=2026/session=" + hex32 + "/part", "token: dial tcp 10.0.0.1:443", "token: 10.0.0.1:8443 refused", "token: 2026-11-23T18:24:33 is late",
		"arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db", "arn:aws:x:y:111122223333:token:" + hex32, "urn:ietf:params:oauth:token-type:access_token", "/v1/projects/x/secrets/y/versions/1:access", "/v1/secret:rotate",
		"docker run -u 1000:1000 x", "date -u +%H:%M", "rsync -u host:/x y", "curl -u ann https://h", "--token-file x", "--password-stdin", "login --password --user x", "x --key value", "uuid -u", "--password", "--user=",
		`{"token":null,"secret":{"name":"x"},"password":""}`, `{"key":"Name","code":"x"}`, `{"token_type":"bearer"}`, "max_tokens=400&tokens_used=17", "grant_type=authorization_code", "/x?tokens[]=a", "x509=1&oauth2=1&key1=a",
		"https://git@h.example/x", "https://h.example:8080/a@b", "https://[::1]:8080/a@b", "https://[fe80::1]/x@y", "http://u@h:80/", "https://h/?a=b@c",
		"/reset/" + uuid, "/invite/" + hex16, "/session/" + hex32, "/credentials/" + hex32, "/x?reset=true&invite=1", "/a%20b/c%3Dd", "%3D", "%3", "%", ":", `":`, `"":`, "-", "--", "-u ", `"token":`, `"token": `, `token: `, "Bearer ", "Bearer",
	} {
		if got := x.Text(in); got != in {
			t.Errorf("%s became %s", in, got)
		}
	}
}

// TestDocumentsAreMasked in their text and difference; digests, names and what
// else a reviewer looks for stay.
func TestDocumentsAreMasked(t *testing.T) {
	x, err := NewRedactor(v1alpha1.AuditRedact{Patterns: []string{`customer-\d+`, `(?s)begin.*?end`}})
	if err != nil {
		t.Fatal(err)
	}
	stay := "kind: CredentialProvider\nspec:\n  clientID: 0oa1b2c3d4E5F6g7h8i9\n  clientAuth: secret\n  apiKey:\n    secretRef:\n      key: token\n      name: github-token\n  requestedTokenType: urn:ietf:params:oauth:token-type:access_token\n" +
		"  tokenEndpoint: https://login.example.com/oauth2/token\n  tokenFile: /run/x/token\n  image: sha256:" + hex32 + hex32 + "\n  rules:\n    - paths:\n        - /reset/{id}\n        - /v1/token/*\n      name: read\n  password: null\n"
	if got := x.document(stay); got != stay {
		t.Errorf("got %s", got)
	}
	text := stay + "  note: for customer-17\n  a: begin\n  b: end\n  password: hunter2\n  \"clientSecret\": 'x y'\n  privateKey: |\n    first\n\n    second\n  hook: /services/T00/B00/" + tokens[7] + "\n  url: https://u:hunter3@h.example/?key=hunter4\n  last: x\n"
	want := stay + "  note: for ***\n  a: ***\n  password: ***\n  \"clientSecret\": ***\n  privateKey: |\n    ***\n\n    ***\n  hook: /services/T00/B00/***\n  url: https://u:***@h.example/?key=***\n  last: x\n"
	diff := "@@ -1,2 +1,3 @@\n spec:\n-  password: hunter2\n+  password: hunter3\n+  to: customer-17"
	c := &Change{Kind: "CredentialProvider", Name: "a", VersionBefore: "sha256:" + hex32, VersionAfter: "sha256:" + hex40, Text: text, Diff: diff}
	before := *c
	r := &Record{Change: c}
	x.redact(r)
	if *c != before {
		t.Error("the caller's section changed")
	}
	if r.Change.Text != want {
		t.Errorf("got %s\nwant %s", r.Change.Text, want)
	}
	if want := "@@ -1,2 +1,3 @@\n spec:\n-  password: ***\n+  password: ***\n+  to: ***"; r.Change.Diff != want {
		t.Errorf("got %s", r.Change.Diff)
	}
	if r.Change.VersionAfter != c.VersionAfter || r.Change.VersionBefore != c.VersionBefore {
		t.Error("a digest changed")
	}
	if got := x.document(want); got != want {
		t.Errorf("again, it became %s", got)
	}
	keep := &Redactor{keepTokens: true, patterns: x.patterns}
	if got := keep.document("password: hunter2\nfor: customer-17\n"); got != "password: hunter2\nfor: ***\n" {
		t.Errorf("tokens are kept, and it became %s", got)
	}
}

// TestChangesReachTheSpoolMasked: what is written, not what a function says.
func TestChangesReachTheSpoolMasked(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir()})
	r := &Record{Event: &Event{Name: EventConfigChanged, Fields: map[string]string{"kind": "AttacheConfig"}}, Change: &Change{Kind: "AttacheConfig", Name: "a", Operation: "load", Text: "password: hunter2\n", Diff: "+password: hunter2\n"}}
	if err := s.Write(r); err != nil {
		t.Fatal(err)
	}
	if line := string(r.AppendJSON(nil)); strings.Contains(line, "hunter2") || !strings.Contains(line, Mask) {
		t.Errorf("got %s", line)
	}
}

// BenchmarkRedact: what a request costs, and a command of a session.
func BenchmarkRedact(b *testing.B) {
	for name, s := range map[string]string{
		"path":    "/v1/projects/payments/invoices/42/lines",
		"ids":     "/users/" + uuid + "/orders/2026-05-17T10:00:00Z/x",
		"token":   "/bot" + tokens[0] + "/sendMessage",
		"reason":  "no rule allows GET /v1/invoices/42 of api.example.com for agent payments/billing",
		"command": "curl -sS -H 'Accept: application/json' 'https://api.example.com/v1/x?page=2&token=" + hex32 + "' -o out.json",
	} {
		b.Run(name, func(b *testing.B) {
			var x Redactor
			b.ReportAllocs()
			for b.Loop() {
				x.Text(s)
			}
		})
	}
}
