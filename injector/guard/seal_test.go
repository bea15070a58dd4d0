package guard_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
)

var (
	handleRE = regexp.MustCompile(`attache-sealed-[0-9a-f]{32}`)
	alice    = guard.Who{Workload: "spiffe://x/agent/a", Run: "r1", Task: "t1", Host: "api.example.com"}
)

const issued = "ghs_0123456789abcdefABCDEF"

func vault() *guard.Vault { return guard.NewVault(100, time.Hour, nil) }

func read(t *testing.T, resp *http.Response, o guard.Options) (string, *guard.Guarded) {
	t.Helper()
	g, err := guard.Response(resp, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ContentLength >= 0 && int(resp.ContentLength) != len(b) {
		t.Errorf("ContentLength %d, body has %d", resp.ContentLength, len(b))
	}
	if cl := resp.Header.Get("Content-Length"); cl != "" && cl != strconv.Itoa(len(b)) {
		t.Errorf("Content-Length %s, body has %d", cl, len(b))
	}
	return string(b), g
}

func get(t *testing.T, rawURL string, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestSealBodies(t *testing.T) {
	tests := []struct {
		name, kind, body string
		sealed           int
	}{
		{"token answer", "application/json", `{"access_token":"` + issued + `","token_type":"Bearer","refresh_token": "r-1","expires_in":3600}`, 2},
		{"github", "application/vnd.github+json; charset=utf-8", `{"token":"` + issued + `","expires_at":"x"}`, 1},
		{"nested", "application/json", `{"a":{"Credentials":{"SecretAccessKey":"` + issued + `","SessionToken":"s"}}}`, 2},
		{"array", "application/json", `[{"api_key":"` + issued + `"},{"client_secret":"` + issued + `2"}]`, 2},
		{"camel", "application/json", `{"accessToken" : "` + issued + `"}`, 1},
		{"escaped name", "application/json", `{"access\u005ftoken":"` + issued + `"}`, 1},
		{"escaped value", "application/json", `{"access_token":"` + strings.Replace(issued, "g", `\u0067`, 1) + `\"\\"}`, 1},
		{"prefixed", "application/json", ")]}'\n" + `{"id_token":"` + issued + `"}`, 1},
		{"broken", "application/json", `{"access_token":"` + issued + `"`, 1},
		{"cut off", "application/json", `{"access_token":"` + issued, 1},
		{"ndjson", "application/x-ndjson", `{"a":1}` + "\n" + `{"access_token":"` + issued + `"}` + "\n", 1},
		{"form", "application/x-www-form-urlencoded", "access_token=" + issued + "&scope=a%2Cb&token_type=bearer", 1},
		{"ordinary words", "application/json", `{"token":" the","secret":"no","key":"` + issued + `","tokens":3,"api_key":null}`, 0},
		{"text within text", "application/json", `{"content":"{\"access_token\":\"` + issued + `\"}"}`, 0},
		{"text that is JSON", "text/plain; charset=utf-8", "\ufeff \n" + `{"access_token":"` + issued + `"}`, 1},
		{"no type", "", `[{"access_token":"` + issued + `"}]`, 1},
		{"text that is none", "text/plain", `see {"access_token":"` + issued + `"}`, 0},
		{"blank text", "text/plain", " \n ", 0},
		{"empty", "", "", 0},
		{"other type", "text/html", `{"access_token":"` + issued + `"}`, 0},
		{"too deep", "application/json", `[[[[[[[{"access_token":"` + issued + `"}]]]]]]]`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, mode := range []string{"length", "chunked", "bytes", "gzip", "gzip chunked", "pass"} {
				body, o := tt.body, guard.Options{Vault: vault(), Who: alice}
				h := []string{"Content-Type", tt.kind}
				if strings.HasPrefix(mode, "gzip") {
					body = string(zip(tt.body, 1000))
					h = append(h, "Content-Encoding", "gzip")
				}
				var src io.Reader = strings.NewReader(body)
				if mode == "bytes" {
					src = iotest.OneByteReader(src)
				}
				resp := response(src, h...)
				if mode == "length" || mode == "gzip" {
					resp.ContentLength = int64(len(body))
					resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
				}
				want := tt.sealed
				if mode == "pass" {
					o.Answers, want = v1alpha1.AnswersPass, 0
				}
				got, g := read(t, resp, o)
				if g.Sealed() != want || len(handleRE.FindAllString(got, -1)) != want {
					t.Fatalf("%s: sealed %d, want %d: %q", mode, g.Sealed(), want, got)
				}
				if want > 0 && strings.Contains(got, issued[1:]) {
					t.Fatalf("%s: the token passed: %q", mode, got)
				}
				if want == 0 && resp.Header.Get("Content-Encoding") == "" && got != tt.body {
					t.Fatalf("%s: altered: %q", mode, got)
				}
				if want == 0 && resp.Header.Get("Content-Encoding") != "" && got != body {
					t.Fatalf("%s: altered the coded body", mode)
				}
				if want > 0 && resp.Header.Get("Content-Encoding") != "" {
					t.Fatalf("%s: still says it is coded", mode)
				}
			}
		})
	}
}

func TestSealedValueIsValidJSON(t *testing.T) {
	v := vault()
	resp := response(strings.NewReader(`{"access_token":"a\"b\\c","n":1}`), "Content-Type", "application/json")
	got, _ := read(t, resp, guard.Options{Vault: v, Who: alice})
	var m struct {
		AccessToken string `json:"access_token"`
		N           int
	}
	if err := json.Unmarshal([]byte(got), &m); err != nil || m.N != 1 {
		t.Fatalf("%q: %v", got, err)
	}
	r := get(t, "https://api.example.com/", "Authorization", "Bearer "+m.AccessToken)
	v.Unseal(r, alice)
	if a := r.Header.Get("Authorization"); a != `Bearer a"b\c` {
		t.Errorf("opened %q", a)
	}
}

func TestSealFixesValidators(t *testing.T) {
	h := []string{
		"Content-Type", "application/json", "Etag", `"v1"`, "Accept-Ranges", "bytes",
		"Content-Digest", "sha-256=:x:", "Content-Md5", "x",
	}
	resp := response(strings.NewReader(`{"access_token":"`+issued+`"}`), h...)
	resp.Trailer = http.Header{"Digest": nil}
	_, _ = read(t, resp, guard.Options{Vault: vault(), Who: alice})
	if got := resp.Header.Get("Etag"); got != `W/"v1"` {
		t.Errorf("Etag %q", got)
	}
	for _, name := range []string{"Accept-Ranges", "Content-Digest", "Content-Md5"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("%s is still there", name)
		}
	}
	if len(resp.Trailer) != 0 {
		t.Errorf("trailer %v", resp.Trailer)
	}
	// Nothing sealed: nothing touched.
	resp = response(strings.NewReader(`{"a":1}`), h...)
	resp.ContentLength = 7
	_, _ = read(t, resp, guard.Options{Vault: vault(), Who: alice})
	if resp.Header.Get("Etag") != `"v1"` || resp.Header.Get("Content-Digest") == "" {
		t.Errorf("header of an unaltered answer changed: %v", resp.Header)
	}
}

// What is too long to be read first is examined as it passes, to its end.
func TestLargeBodiesAreSealed(t *testing.T) {
	pad := strings.Repeat(" ", 1<<20+64<<10)
	for _, tt := range []struct {
		name, kind, coding string
		length, digest     bool
	}{
		{"json", "application/json", "", true, false},
		{"json, no length", "application/json", "", false, false},
		{"json, no length, digest", "application/json", "", false, true},
		{"gzip", "application/json", "gzip", true, false},
		{"gzip, no length", "application/json", "gzip", false, false},
		{"text", "text/plain", "", true, false},
		{"text, no length", "text/plain", "", false, false},
		{"text, gzip", "text/plain", "gzip", true, false},
		{"no type", "", "", true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plain := `{"pad":1,` + pad + `"access_token":"` + issued + `","echo":"` + cred2 + `","end":1}` + pad
			body, h := plain, []string{"Content-Type", tt.kind}
			if tt.coding != "" { // the first is far shorter coded
				body, h = string(zip(plain, len(plain))), append(h, "Content-Encoding", tt.coding)
			}
			if tt.digest {
				h = append(h, "Content-Digest", "sha-256=:x:")
			}
			if tt.length {
				h = append(h, "Content-Length", strconv.Itoa(len(body)))
			}
			resp := response(strings.NewReader(body), h...)
			if tt.length {
				resp.ContentLength = int64(len(body))
			}
			got, g := read(t, resp, guard.Options{Vault: vault(), Who: alice, Patterns: guard.NewPatterns(secret.New(cred2))})
			if strings.Contains(got, issued) || g.Sealed() != 1 {
				t.Errorf("sealed %d, want 1; the token passed: %t", g.Sealed(), strings.Contains(got, issued))
			}
			if strings.Contains(got, cred2) || g.Masked() != 1 {
				t.Error("the echo guard did not run")
			}
			if resp.ContentLength >= 0 || resp.Header.Get("Content-Length") != "" || resp.Header.Get("Content-Digest") != "" || resp.Header.Get("Content-Encoding") != "" {
				t.Errorf("the header is of another body: %v", resp.Header)
			}
			if !strings.HasSuffix(got, `,"end":1}`+pad) {
				t.Error("the end is missing")
			}
		})
	}
}

// Text of known length that is no JSON, and objects that are stored coded, keep
// every byte and header.
func TestLargeBodiesKeptAsTheyAre(t *testing.T) {
	text := "no JSON " + strings.Repeat("x", 2<<20)
	q := get(t, "https://api.example.com/log.json.gz", "Accept-Encoding", "identity")
	noise := make([]byte, 2<<20)
	_, _ = rand.Read(noise)
	coded := string(zip(`{"access_token":"`+issued+`"}`+string(noise), 4<<20))
	if len(coded) <= 1<<20 {
		t.Fatalf("%d bytes are no test", len(coded))
	}
	for _, tt := range []struct{ name, kind, coding, body string }{
		{"text", "text/plain", "", text}, {"stored", "application/json", "gzip", coded},
	} {
		resp := response(strings.NewReader(tt.body), "Content-Type", tt.kind, "Content-Length", strconv.Itoa(len(tt.body)), "Etag", `"v"`)
		if tt.coding != "" {
			resp.Header.Set("Content-Encoding", tt.coding)
		}
		resp.Request, resp.ContentLength = q, int64(len(tt.body))
		got, _ := read(t, resp, guard.Options{Vault: vault(), Who: alice})
		if got != tt.body || resp.ContentLength != int64(len(got)) || resp.Header.Get("Etag") != `"v"` || resp.Header.Get("Content-Encoding") != tt.coding {
			t.Errorf("%s: altered, header %v", tt.name, resp.Header)
		}
	}
}

// A text that never ends does not wait in memory.
func TestEndlessValuePasses(t *testing.T) {
	body := `{"access_token":"` + strings.Repeat("x", 8<<20) + `","refresh_token":"` + issued + `"}`
	resp := response(strings.NewReader(body), "Content-Type", "application/json")
	got, g := read(t, resp, guard.Options{Vault: vault(), Who: alice})
	if g.Sealed() != 1 || strings.Contains(got, issued) || len(got) < 8<<20 {
		t.Errorf("sealed %d of %d bytes", g.Sealed(), len(got))
	}
}

// Nothing waits for the first byte of an answer that may be a stream.
func TestTextStreamStaysLive(t *testing.T) {
	var src parts
	resp := response(&src, "Content-Type", "text/plain")
	if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for _, line := range []string{"\n", "starting {\n", `{"access_token":"abc`} {
		src.p = [][]byte{[]byte(line)}
		if n, err := resp.Body.Read(buf); err != nil || string(buf[:n]) != line {
			t.Fatalf("got %q, %v, want %q at once", buf[:n], err, line)
		}
	}
}

const cred2 = "injected-credential-0123456789"

func TestJSONStreamStaysLive(t *testing.T) {
	var src parts
	resp := response(&src, "Content-Type", "application/json")
	if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice, Patterns: guard.NewPatterns(secret.New(cred2))}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for _, event := range []string{`{"type":"ADDED","n":1}` + "\n", `[{"text":"x"}` + "\n,"} {
		src.p = [][]byte{[]byte(event)}
		n, err := resp.Body.Read(buf)
		if err != nil || string(buf[:n]) != event {
			t.Fatalf("got %q, %v, want %q at once", buf[:n], err, event)
		}
	}
	src.p = [][]byte{[]byte(`{"access_token":"abc`)}
	n, _ := resp.Body.Read(buf)
	if string(buf[:n]) != "{" {
		t.Fatalf("half a token passed: %q", buf[:n])
	}
}

func TestSealHeaders(t *testing.T) {
	tests := []struct {
		name, header, value, want string // %s is the handle
		host                      string
	}{
		{"session", "Set-Cookie", "session=abc; Path=/; Secure", "session=%s; Path=/; Secure", ""},
		{"quoted", "Set-Cookie", `auth_token="abc"; Path=/`, `auth_token=%s; Path=/`, ""},
		{"http only", "Set-Cookie", "x=abc; HttpOnly", "x=%s; HttpOnly", ""},
		{"theme", "Set-Cookie", "theme=dark; Path=/", "theme=dark; Path=/", ""},
		{"csrf", "Set-Cookie", "csrf_token=abc", "csrf_token=abc", ""},
		{"removal", "Set-Cookie", "session=; Max-Age=0", "session=; Max-Age=0", ""},
		{"aws", "Location", "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=ab%2Fc&x=1", "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=%s&x=1", "b.s3.amazonaws.com"},
		{"google", "Location", "https://s.example/k?X-Goog-Signature=ab", "https://s.example/k?X-Goog-Signature=%s", "s.example"},
		{"azure", "Location", "/k?sv=1&sig=ab", "/k?sv=1&sig=%s", ""},
		{"token", "Location", "//Codeload.Example./z?token=ab#x", "//Codeload.Example./z?token=%s#x", "codeload.example"},
		{"fragment", "Location", "https://app.example/cb#access_token=ab&state=1", "https://app.example/cb#access_token=%s&state=1", ""},
		{"password", "Location", "https://u:ab@h.example/x", "https://u:%s@h.example/x", "h.example"},
		{"harmless", "Location", "/items?key=7&page=2", "/items?key=7&page=2", ""},
		{"link", "Link", `<https://h.example/a?token=ab>; rel="next", </b>; rel="prev"`, `<https://h.example/a?token=%s>; rel="next", </b>; rel="prev"`, "h.example"},
		{"subject token", "X-Subject-Token", "ab", "%s", ""},
		{"bearer", "Authorization", "Bearer ab", "Bearer %s", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp := response(http.NoBody, tt.header, tt.value)
			g, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice})
			if err != nil {
				t.Fatal(err)
			}
			got := resp.Header.Get(tt.header)
			want := strings.Replace(tt.want, "%s", handleRE.FindString(got), 1)
			if got != want || g.Sealed() != strings.Count(tt.want, "%s") {
				t.Errorf("got %q (%d sealed), want %q", got, g.Sealed(), tt.want)
			}
			resp = response(http.NoBody, tt.header, tt.value)
			if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice, Answers: v1alpha1.AnswersPass}); err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get(tt.header); got != tt.value {
				t.Errorf("pass altered it: %q", got)
			}
		})
	}
}

func TestLocationOpensAtItsHost(t *testing.T) {
	v := vault()
	resp := response(http.NoBody, "Location", "https://b.s3.example/k?a=%2f&X-Amz-Signature=ab%2Fc&z")
	if _, err := guard.Response(resp, guard.Options{Vault: v, Who: alice}); err != nil {
		t.Fatal(err)
	}
	follow := func(host string) (string, guard.Opened) {
		r := get(t, resp.Header.Get("Location"))
		who := alice
		who.Host = host
		o := v.Unseal(r, who)
		return r.URL.RawQuery, o
	}
	if got, o := follow("b.s3.example"); got != "a=%2f&X-Amz-Signature=ab%2Fc&z" || len(o.Secrets) != 1 {
		t.Errorf("opened %q, %v", got, o.Names)
	}
	if got, o := follow("api.example.com"); got != "a=%2f&z" || len(o.Removed) != 1 {
		t.Errorf("at another host: %q, %v", got, o.Removed)
	}
	// A link to http opens there, one to https only there.
	for _, scheme := range []string{"http", "https"} {
		resp := response(http.NoBody, "Location", scheme+"://b.s3.example/k?sig="+scheme)
		if _, err := guard.Response(resp, guard.Options{Vault: v, Who: alice}); err != nil {
			t.Fatal(err)
		}
		for _, cleartext := range []bool{false, true} {
			r := get(t, resp.Header.Get("Location"))
			o := v.Unseal(r, guard.Who{Workload: alice.Workload, Run: alice.Run, Task: alice.Task, Host: "b.s3.example", Cleartext: cleartext})
			if opened := len(o.Secrets) == 1; opened != (cleartext == (scheme == "http")) {
				t.Errorf("a link to %s followed with cleartext=%v: opened %v", scheme, cleartext, opened)
			}
		}
	}
}

// sealOne seals one value of each place and returns their handles.
func sealOne(t *testing.T, v *guard.Vault, who guard.Who) (token, cookie, sig string) {
	t.Helper()
	resp := response(strings.NewReader(`{"access_token":"`+issued+`"}`),
		"Content-Type", "application/json", "Set-Cookie", "session=cookie-value", "Location", "/x?sig=sig-value")
	body, _ := read(t, resp, guard.Options{Vault: v, Who: who})
	find := func(s string) string {
		h := handleRE.FindString(s)
		if h == "" {
			t.Fatalf("no handle in %q", s)
		}
		return h
	}
	return find(body), find(resp.Header.Get("Set-Cookie")), find(resp.Header.Get("Location"))
}

func TestUnsealPlaces(t *testing.T) {
	v := vault()
	token, cookie, sig := sealOne(t, v, alice)
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	tests := []struct {
		name, query, header, value string
		want                       string // of the header, or of the query; "" if it must be gone
	}{
		{"bearer", "", "Authorization", "Bearer " + token, "Bearer " + issued},
		{"bare", "", "X-Api-Key", token, issued},
		{"basic", "", "Authorization", basic("x-access-token:" + token), basic("x-access-token:" + issued)},
		{"basic user", "", "Authorization", basic(token + ":"), basic(issued + ":")},
		{"cookie", "", "Cookie", "a=1; session=" + cookie + "; b=2", "a=1; session=cookie-value; b=2"},
		{"token in cookie", "", "Cookie", "auth=" + token, "auth=" + issued},
		{"param", "a=1&access_token=" + token, "", "", "a=1&access_token=" + issued},
		{"signature", "sig=" + sig + "&b=%20", "", "", "sig=sig-value&b=%20"},

		// What the agent could read back must not be opened.
		{"other header", "", "X-Note", "look: " + token, ""},
		{"other header bare", "", "X-Note", token, ""},
		{"referer", "", "Referer", "https://api.example.com/x?sig=" + sig, ""},
		{"other param", "title=" + token, "", "", ""},
		{"other cookie", "", "Cookie", "note=" + cookie, ""},
		{"cookie as token", "", "Authorization", "Bearer " + cookie, ""},
		{"embedded", "", "Authorization", "Bearer x" + token, ""},
		{"name of a cookie", "", "Cookie", token + "=1", ""},
		{"name of a param", token + "=1", "", "", ""},
		{"percent", "title=" + strings.Replace(token, "a", "%61", 1), "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := get(t, "https://api.example.com/x?"+tt.query)
			if tt.header != "" {
				r.Header.Set(tt.header, tt.value)
			}
			o := v.Unseal(r, alice)
			got := r.URL.RawQuery
			if tt.header != "" {
				got = r.Header.Get(tt.header)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if opened := len(o.Secrets); (opened == 1) != (tt.want != "") || opened+len(o.Removed) != 1 {
				t.Errorf("opened %v, removed %v", o.Names, o.Removed)
			}
		})
	}
}

func TestHandleOpensOnlyForItsOwner(t *testing.T) {
	v := vault()
	token, _, _ := sealOne(t, v, alice)
	tests := map[string]func(*guard.Who){
		"workload": func(w *guard.Who) { w.Workload = "spiffe://x/agent/b" },
		"run":      func(w *guard.Who) { w.Run = "r2" },
		"task":     func(w *guard.Who) { w.Task = "" },
		"host":     func(w *guard.Who) { w.Host = "evil.example.com" },
		"scheme":   func(w *guard.Who) { w.Cleartext = true },
	}
	for name, change := range tests {
		who := alice
		change(&who)
		r := get(t, "https://h/", "Authorization", "Bearer "+token)
		if o := v.Unseal(r, who); len(o.Secrets) != 0 || len(r.Header) != 0 || v.Holds(who, token) {
			t.Errorf("another %s opened it or let it travel: %v", name, r.Header)
		}
	}
	if !v.Holds(alice, token) {
		t.Error("the owner does not hold it")
	}
}

func TestVaultForgets(t *testing.T) {
	now := time.Unix(1000, 0)
	v := guard.NewVault(40, time.Minute, func() time.Time { return now })
	token, _, _ := sealOne(t, v, alice)
	again, _, _ := sealOne(t, v, alice)
	if again != token {
		t.Error("the same value has two handles")
	}
	now = now.Add(time.Minute)
	if v.Holds(alice, token) {
		t.Error("held after its time")
	}
	r := get(t, "https://h/", "Authorization", "Bearer "+token)
	if o := v.Unseal(r, alice); len(o.Secrets) != 0 {
		t.Error("opened after its time")
	}

	v = guard.NewVault(8, time.Minute, nil)
	bob := alice
	bob.Workload = "bob"
	theirs := sealCookie(t, v, bob, 1)[0]
	mine := sealCookie(t, v, alice, 50)
	if v.Len() > 8 || !v.Holds(bob, theirs) {
		t.Errorf("%d values; one workload's flood drove out another's: %v", v.Len(), !v.Holds(bob, theirs))
	}
	if v.Holds(alice, mine[0]) || !v.Holds(alice, mine[49]) {
		t.Error("not the oldest went")
	}
	v.Drop(alice.Workload, alice.Run, alice.Task)
	if v.Holds(alice, mine[49]) || !v.Holds(bob, theirs) || v.Len() != 1 {
		t.Errorf("Drop left %d", v.Len())
	}
	for i := range 100 {
		w := alice
		w.Run = fmt.Sprint(i)
		sealCookie(t, v, w, 1)
	}
	if v.Len() > 8 {
		t.Errorf("%d values in a vault for 8", v.Len())
	}
}

func sealCookie(t *testing.T, v *guard.Vault, who guard.Who, n int) []string {
	t.Helper()
	var out []string
	for i := range n {
		resp := response(http.NoBody, "Set-Cookie", fmt.Sprintf("sid=%d", i))
		if _, err := guard.Response(resp, guard.Options{Vault: v, Who: who}); err != nil {
			t.Fatal(err)
		}
		out = append(out, handleRE.FindString(resp.Header.Get("Set-Cookie")))
	}
	return out
}

func TestUpstreamErrorWhileExamining(t *testing.T) {
	boom := errors.New("boom")
	resp := response(io.MultiReader(strings.NewReader(`{"access_token":"`+issued), iotest.ErrReader(boom)), "Content-Type", "application/json")
	resp.ContentLength = 500
	if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice}); !errors.Is(err, boom) {
		t.Errorf("err = %v", err)
	}
}

// TestLongStringsHideNothing: the end of a string too long for a name is found
// wherever the stream is cut, escapes included.
func TestLongStringsHideNothing(t *testing.T) {
	const long = 3000
	for _, end := range []string{``, `\\`, `\"`, `\\\"`, `,\"access_token\":\"`, `\\\\`} {
		text := `{"a":"` + strings.Repeat("x", long) + end + `","access_token":"` + issued + `","b":1}`
		if !json.Valid([]byte(text)) {
			t.Fatal(text)
		}
		for at := long; at < long+30; at++ {
			got, _ := read(t, response(split(text, at), "Content-Type", "application/json"), guard.Options{Vault: vault(), Who: alice})
			if strings.Contains(got, issued) || !json.Valid([]byte(got)) {
				t.Fatalf("%q cut at %d: got %q", end, at, got[long:])
			}
		}
	}
}

// BenchmarkSealJSON is a list as APIs answer it, in one stream.
func BenchmarkSealJSON(b *testing.B) {
	text := []byte("[" + strings.Repeat(`{"id":"item_0123456789","object":"thing","created_at":1700000000,"description":"some words about it","tags":["a","b"],"next":null},`, 5000) + "{}]")
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		resp := response(bytes.NewReader(text), "Content-Type", "application/json")
		if _, err := guard.Response(resp, guard.Options{Vault: vault(), Who: alice}); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzSealJSON(f *testing.F) {
	f.Add(`{"access_token":"`+issued+`"}`, uint16(5))
	f.Add(`[{"a":[1,2,{"api_key" : "\u0041bc"}]}, "x\\"]`, uint16(17))
	f.Add(`{"access_token`, uint16(3))
	f.Fuzz(func(t *testing.T, text string, at uint16) {
		o := guard.Options{Vault: vault(), Who: alice}
		whole := response(strings.NewReader(text), "Content-Type", "application/json")
		whole.ContentLength = int64(len(text))
		want, _ := read(t, whole, o)
		got, _ := read(t, response(split(text, int(at)%(len(text)+1)), "Content-Type", "application/json"), o)
		if got != want {
			t.Fatalf("streamed %q, whole %q", got, want)
		}
		if !json.Valid([]byte(text)) {
			return
		}
		if !json.Valid([]byte(got)) {
			t.Fatalf("%q became invalid: %q", text, got)
		}
		var m map[string]any
		if json.Unmarshal([]byte(got), &m) == nil {
			if v, ok := m["access_token"].(string); ok && v != "" && !handleRE.MatchString(v) {
				t.Fatalf("%q passed in %q", v, got)
			}
		}
	})
}

func FuzzUnseal(f *testing.F) {
	v := vault()
	f.Add("Bearer HANDLE", "a=HANDLE&b=%41&access_token=HANDLE", "session=HANDLE; x=1")
	f.Add("", "access_toke%4HANDLE&b=%4HANDLE", "")
	f.Add("", "aHANDLEb=1", "aHANDLEb=1; HANDLE=HANDLE")
	f.Add("Basic SEFORExF", ";=HANDLE", "HANDLE")
	f.Fuzz(func(t *testing.T, header, query, cookie string) {
		token, _, _ := sealOne(t, v, alice)
		mallory := alice
		mallory.Workload = "mallory"
		for _, who := range []guard.Who{alice, mallory} {
			r := &http.Request{URL: &url.URL{RawQuery: strings.ReplaceAll(query, "HANDLE", token)}, Header: http.Header{
				"Authorization": {strings.ReplaceAll(header, "HANDLE", token)},
				"X-Other":       {strings.ReplaceAll(header, "HANDLE", token)},
				"Cookie":        {strings.ReplaceAll(cookie, "HANDLE", token)},
			}}
			o := v.Unseal(r, who)
			text := fmt.Sprint(r.Header, r.URL.RawQuery)
			if strings.Contains(text, token) {
				t.Fatalf("a handle travels: %q", text)
			}
			if who == mallory && (strings.Contains(text, issued) || len(o.Secrets) > 0) {
				t.Fatalf("opened for a stranger: %q", text)
			}
			if strings.Contains(r.Header.Get("X-Other"), issued) {
				t.Fatal("opened in a header that may be read back")
			}
		}
	})
}
