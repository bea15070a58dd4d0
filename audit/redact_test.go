package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// The tokens are made up, in the form that their issuers document.
var tokens = []string{
	"110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", // Telegram
	"ghp_16C7e42F292c6912E7710c838347Ae178B4a",
	"github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
	"xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
	"sk-ant-api03-abcdefghijklmnopqrstuvwxyz",
	"sk_live_4eC39HqLyjWDarjtT1zdp7dc",
	"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
	"XXa1bC2dE3fG4hI5jK6lM7nO", // a webhook of Slack
	"kqH2z8vV1mXo0pTq9dJr5eWs3uYb7nLc4gFa6iZt",
	"hvs.CAESIJlU9JMYEhOPYv4igdhm9PnZDrabYTobQ4Ymnlq1",
	"glpat-ABCDEFGHIJKLMNOPQRST",
	"k3j9x2m8q7w1z5t4r6y0p2n8b3v",
}

// TestTokensInPathsAreMasked looks for the secrets in what is written.
func TestTokensInPathsAreMasked(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	for i, tok := range tokens {
		before := "/"
		if i == 0 {
			before = "/bot"
		}
		for _, path := range []string{before + tok + "/sendMessage", "/" + tok, "/services/T00/B00/" + tok + "?", "/a/" + strings.ReplaceAll(tok, ":", "%3A"), "/x/" + tok + ".json"} {
			r := sample()
			r.ID = ""
			r.Request = &Request{Host: "api.example.com", Path: path, QueryKeys: []string{"page", tok}}
			r.Decision = &Decision{Verdict: "deny", Reason: "no rule allows GET " + path}
			r.Credential = &Use{AWS: &AWSUse{Resources: []string{"arn:aws:s3:::b/ok.csv", "arn:aws:s3:::b" + path}}}
			r.SSH = &SSH{Command: "curl https://api.example.com" + path}
			end := &Use{AWS: &AWSUse{Resources: []string{"arn:aws:s3:::b" + path}}} // known at the end only
			tk, err := s.Begin(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if err := tk.End(ok200(), end, nil, &Extra{Decision: &Decision{Reason: "cut: " + path}}); err != nil {
				t.Fatal(err)
			}
			if r.Request.Path == path && strings.Contains(path, tok) {
				t.Errorf("%s is not masked", path)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, tok := range tokens {
			for part := range strings.FieldsFuncSeq(tok, func(r rune) bool { return r == ':' || r == '.' }) {
				if len(part) > 12 && strings.Contains(string(b), part) {
					t.Errorf("%s is in the spool", part)
				}
			}
		}
		if !strings.Contains(string(b), Mask) {
			t.Error("nothing is masked")
		}
	}
}

// TestOrdinaryPathsStay: a record is of no use if it hides what was called.
func TestOrdinaryPathsStay(t *testing.T) {
	var x Redactor
	for _, p := range []string{
		"/", "/v1/invoices/42", "/v1/chat/completions", "/repos/attache-dev/attache/pulls/17/files",
		"/v2/library/nginx/blobs/sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		"/users/7c9e6679-7425-40de-944b-e07fc1f90ae7/orders", "/repos/o/r/commits/4b825dc642cb6eb9a060e54bf8d69288fbee4904",
		"/reports/2026-05-invoices-final-version-0001.csv", "/billing.v1.InvoiceService/ListInvoicesByCustomer",
		"/apis/networking.k8s.io/v1/namespaces/kube-system/networkpolicies/default-deny-all-ingress",
		"/AWSGlueServiceRoleForDataCatalog2", "/arn:aws:iam::111122223333:role/ReportingServiceRole", "/download/attache_1.12.3_linux_amd64.tar.gz",
		"/api/v3/search/documents-with-highlighting/Q1Report2026", "/dynamodb/DynamoDB_20120810.BatchGetItem",
		"/bucket/year=2026/month=05/day=31/part-00000-of-00017.snappy.parquet", "/caf%C3%A9/men%C3%BC",
	} {
		if got := x.Text(p); got != p {
			t.Errorf("%s became %s", p, got)
		}
	}
}

// TestNamedSecrets are masked whatever they look like, and what looks the same
// without such a name stays.
func TestNamedSecrets(t *testing.T) {
	const hex32, hex40, hex64 = "9f86d081884c7d659a2feaa0c55ad015", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	const uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
	var x Redactor
	for in, want := range map[string]string{
		// Values of parameters and options, in any form.
		"/x?token=" + hex32:                            "/x?token=***",
		"/x?a=1&api_key=17&b=2":                        "/x?a=1&api_key=***&b=2",
		"/x?key=abc":                                   "/x?key=***",
		"/x?a=b&sig=" + hex40 + "#top":                 "/x?a=b&sig=***#top",
		"/x?X-Amz-Signature=" + hex64:                  "/x?X-Amz-Signature=***",
		"/x?X-Amz-Security-Token=a/b+c%3D&Y=1":         "/x?X-Amz-Security-Token=***&Y=1",
		"/x?code=4&auth=x&Client-Secret=hunter2":       "/x?code=***&auth=***&Client-Secret=***",
		"/x?password=":                                 "/x?password=",
		"/a/token=" + hex32 + "/b":                     "/a/token=***/b",
		"/a;jsessionid=0A1B/b;x=1":                     "/a;jsessionid=***/b;x=1",
		`mysql --password='a b' -p x`:                  "mysql --password=*** -p x",
		`PGPASSWORD="x y" psql`:                        "PGPASSWORD=*** psql",
		"curl 'https://u:hunter2@h/x?access_token=17'": "curl 'https://u:***@h/x?access_token=***'",
		"git clone https://me:p@ss@h.example/r":        "git clone https://me:***@h.example/r",
		"-H 'Authorization: Bearer " + hex40 + "'":     "-H 'Authorization: Bearer ***'",
		"token=a token=b secret=c":                     "token=*** token=*** secret=***",
		// Segments of paths behind a credential's name.
		"/token/" + hex32:                                                 "/token/***",
		"/v1/api_key/" + hex40 + "/x":                                     "/v1/api_key/***/x",
		"/reset-password/" + uuid:                                         "/reset-password/***",
		"/download/access-token/" + hex64 + ".csv":                        "/download/access-token/***",
		"/secret/" + strings.ToUpper(hex32):                               "/secret/***",
		"/hooks/" + hex32 + "/y":                                          "/hooks/***/y",
		"/webhook/" + uuid + "/IncomingWebhook/" + hex32:                  "/webhook/" + uuid + "/IncomingWebhook/***",
		"/bot110201543:" + hex32 + "/sendMessage":                         "/bot110201543:***/sendMessage",
		"/bot110201543%3A" + hex32 + "/x":                                 "/***/x",
		"a call to https://h.example/token/" + hex32 + " was refused (x)": "a call to https://h.example/token/*** was refused (x)",
	} {
		if got := x.Text(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
		if got := x.Text(want); got != want {
			t.Errorf("again, %s became %s", want, got)
		}
	}
	for _, in := range []string{
		"/repos/o/r/commits/" + hex40, "/v2/x/blobs/sha256:" + hex64, "/traces/" + hex32, "/users/" + uuid, "/tokens/" + hex32, "/keys/" + hex32, "/secrets/" + hex64 + "/versions",
		"arn:aws:kms:eu-west-1:111122223333:key/" + uuid, "/key/" + uuid, "/code/" + uuid, "/hook/1234567890abcdef", "/auth/realms/" + hex32, "/token/introspect", "/token/1234", "/oauth2/token",
		"/b/o?uploadId=" + hex32, "/x?page=2&sort_key=name&primary-key=id", "/x?keys=1&codec=h264", "/year=2026/month=05/key=a/part", "exit code=1", "/x?etag=" + hex32, "a=b", "=", "?=", "token", "token=", "/token/",
		"/api/v1/namespaces/a/serviceaccounts/default/token", "/v1/secret/data/" + hex32, "http://h.example:8080/x@y", "https://h.example/a:b@c", "://", "https://", "/bot:" + hex32, "/robot1:" + hex32, "bearer",
	} {
		if got := x.Text(in); got != in {
			t.Errorf("%s became %s", in, got)
		}
	}
	r := &Record{SQL: &SQL{Engine: "postgresql", Statement: "SELECT * FROM a JOIN b ON a.token=b.token WHERE password = 'x' AND api_key=$1"}}
	if x.redact(r); r.SQL.Statement != "SELECT * FROM a JOIN b ON a.token=b.token WHERE password = ? AND api_key=$1" {
		t.Errorf("a statement became %s", r.SQL.Statement)
	}
	keep := &Redactor{keepTokens: true}
	if in := "/token/" + hex32 + "?password=x"; keep.Text(in) != in {
		t.Error("tokens are kept, and it was masked")
	}
}

func TestRedactPatterns(t *testing.T) {
	x, err := NewRedactor(v1alpha1.AuditRedact{Patterns: []string{`(?i)/patients/[^/]+`, `customer-\d+`}, Tokens: v1alpha1.RedactKeep, SQLLiterals: v1alpha1.RedactKeep})
	if err != nil {
		t.Fatal(err)
	}
	if got := x.Text("/v1/Patients/ann.lee/notes/customer-17"); got != "/v1"+Mask+"/notes/"+Mask {
		t.Errorf("got %s", got)
	}
	if got := x.Text("/" + tokens[1]); got != "/"+tokens[1] {
		t.Errorf("tokens are kept, and it became %s", got)
	}
	r := &Record{SQL: &SQL{Statement: "SELECT 'a'"}}
	if x.redact(r); r.SQL.Statement != "SELECT 'a'" {
		t.Errorf("literals are kept, and it became %s", r.SQL.Statement)
	}
	for _, bad := range []string{"(", "x*", ""} {
		if _, err := NewRedactor(v1alpha1.AuditRedact{Patterns: []string{bad}}); err == nil {
			t.Errorf("pattern %q is taken", bad)
		}
	}
}

// TestTheCallersRecordStays: the pipeline goes on with the path as it came.
func TestTheCallersRecordStays(t *testing.T) {
	var x Redactor
	q := &Request{Path: "/" + tokens[1], QueryKeys: []string{tokens[1]}}
	a := &AWSUse{Resources: []string{tokens[1]}}
	u := &Use{AWS: a}
	r := &Record{Request: q, Credential: u}
	x.redact(r)
	if q.Path != "/"+tokens[1] || q.QueryKeys[0] != tokens[1] || a.Resources[0] != tokens[1] || u.AWS != a {
		t.Error("the caller's own sections changed")
	}
	if r.Request.Path != "/ghp_"+Mask || r.Credential.AWS.Resources[0] != "ghp_"+Mask {
		t.Errorf("got %s", r.AppendJSON(nil))
	}
}

// TestEventsAreMasked where others' words stand, and nowhere else.
func TestEventsAreMasked(t *testing.T) {
	var x Redactor
	fields := map[string]string{"path": "/" + tokens[1], "error": "at /" + tokens[7], "head": tokens[8], "signature": tokens[6]}
	r := &Record{Event: &Event{Name: "relay.sent", Fields: fields}}
	x.redact(r)
	got := r.Event.Fields
	if got["path"] != "/ghp_"+Mask || got["error"] != "at /"+Mask || got["head"] != tokens[8] || got["signature"] != tokens[6] {
		t.Errorf("got %v", got)
	}
	if fields["path"] != "/"+tokens[1] {
		t.Error("the caller's fields changed")
	}
}

func TestMaskSQL(t *testing.T) {
	for _, c := range []struct{ engine, in, want string }{
		{"postgresql", `SELECT * FROM t WHERE a = 'it''s' AND b = 42 AND c = $1`, `SELECT * FROM t WHERE a = ? AND b = ? AND c = $1`},
		{"postgresql", `INSERT INTO t2 ("Name") VALUES (E'a\'b', X'1F', 1.5e-7, -3)`, `INSERT INTO t2 ("Name") VALUES (?, ?, ?, -?)`},
		{"postgresql", "SELECT $$secret$$, $x$ a $$ b $x$, 1 -- secret\n+ /* a /* secret */ b */ 2", "SELECT ?, ?, ? \n+   ?"},
		{"postgresql", `SELECT 'secret without end`, `SELECT ?`},
		{"mysql", `UPDATE t SET p = "secret\"x", q = 'a\'b' WHERE ` + "`id`" + ` = 0x1F # secret`, `UPDATE t SET p = ?, q = ? WHERE ` + "`id`" + ` = ?`},
		{"redis", "SET session:17 secret EX 60", "SET session:17 ? ? ?"},
		{"redis", "AUTH user secret", "AUTH ? ?"},
		{"", "", ""},
	} {
		if got := MaskSQL(c.engine, c.in); got != c.want {
			t.Errorf("%s: got  %s\nwant %s", c.in, got, c.want)
		}
	}
}

// FuzzMaskSQL puts a secret into a literal, as an application that quotes rightly
// would, behind any other text that is whole, and looks for it.
func FuzzMaskSQL(f *testing.F) {
	f.Add("secret'x", "SELECT 1, ", true)
	f.Add(`\`, `"a" `, false)
	f.Fuzz(func(t *testing.T, value, before string, mysql bool) {
		engine := "postgresql"
		if mysql {
			engine = "mysql"
			value = strings.ReplaceAll(value, `\`, `\\`)
		}
		before = strings.Map(func(r rune) rune {
			if strings.ContainsRune("'\"`$\\-/*#", r) {
				return -1
			}
			return r
		}, before)
		const secret = "Xk7secretXk7"
		in := before + " '" + strings.ReplaceAll(value, "'", "''") + secret + "' = a"
		out := MaskSQL(engine, in)
		if strings.Contains(out, secret) {
			t.Errorf("%q became %q", in, out)
		}
		if again := MaskSQL(engine, out); again != out {
			t.Errorf("%q became %q", out, again)
		}
	})
}

// FuzzRedact: no panic, what is masked stays masked, and a token behind a slash
// is never written.
func FuzzRedact(f *testing.F) {
	f.Add("/v1/x", 0)
	f.Add("%", 3)
	f.Fuzz(func(t *testing.T, s string, n int) {
		var x Redactor
		once := x.Text(s)
		if again := x.Text(once); len(again) > len(once) {
			t.Errorf("%q became %q", once, again)
		}
		tok := tokens[uint(n)%uint(len(tokens))]
		// What a parameter is worth does not matter, nor what stands around it.
		const secret = "hunter2hunter2"
		if out := x.Text(s + "?api_key=" + secret + "&" + s); strings.Count(out, secret) > 2*strings.Count(s, secret) {
			t.Errorf("%q shows a parameter", out)
		}
		if out := x.Text("/" + s + "/" + tok + "/" + s); strings.Contains(out, "/"+tok+"/") {
			t.Errorf("%q stays", out)
		}
	})
}
