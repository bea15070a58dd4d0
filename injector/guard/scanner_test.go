package guard_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
)

// A credential with every character that some encoding changes.
const cred = `sk-AbC/9+d&<"e'\f%Zz=~01`

func percentAll(s, format string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}

func mixed(s string) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		switch i % 5 {
		case 0:
			fmt.Fprintf(&b, "%%%02X", c)
		case 1:
			fmt.Fprintf(&b, `\u00%02x`, c)
		case 2:
			fmt.Fprintf(&b, "&#%d;", c)
		case 3:
			fmt.Fprintf(&b, "&#x%X;", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func jsonText(v string) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func xmlText(v string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(v))
	return b.String()
}

func wrapped(s string, width int, nl string) string {
	var b strings.Builder
	for i := 0; i < len(s); i += width {
		b.WriteString(s[i:min(i+width, len(s))] + nl)
	}
	return b.String()
}

// encodings returns cred in each form that the guard promises to find. Each is
// checked below to be absent from masked output, by decoding.
func encodings(s string) map[string]string {
	std := base64.StdEncoding.EncodeToString
	return map[string]string{
		"verbatim":           s,
		"base64":             std([]byte(s)),
		"base64 offset 1":    std([]byte("x" + s + "yz")),
		"base64 offset 2":    std([]byte("xy" + s + "z")),
		"base64 offset 3":    std([]byte("user:" + s + "!")),
		"base64url":          base64.RawURLEncoding.EncodeToString([]byte("ab" + s)),
		"base64 unpadded":    base64.RawStdEncoding.EncodeToString([]byte(s + "q")),
		"base64 in query":    url.QueryEscape(std([]byte(s))),
		"base64 in json":     strings.ReplaceAll(std([]byte("u:"+s)), "/", `\/`),
		"base64 wrapped":     wrapped(std([]byte("abcdefg"+s)), 20, "\r\n"),
		"base64 json wrap":   wrapped(std([]byte("abcdefg"+s)), 20, `\n`),
		"query":              url.QueryEscape(s),
		"path":               url.PathEscape(s),
		"percent upper":      percentAll(s, "%%%02X"),
		"percent lower":      percentAll(s, "%%%02x"),
		"percent twice":      url.QueryEscape(url.QueryEscape(s)),
		"json":               jsonText(s),
		"json slash":         strings.ReplaceAll(jsonText(s), "/", `\/`),
		"json unicode lower": percentAll(s, `\u%04x`),
		"json unicode upper": percentAll(s, `\u%04X`),
		"js hex":             percentAll(s, `\x%02x`),
		"html":               html.EscapeString(s),
		"xml":                xmlText(s),
		"xml decimal":        percentAll(s, "&#%d;"),
		"xml hex":            percentAll(s, "&#x%x;"),
		"html forgiven":      percentAll(s, "&#%d"),
		"html forgiven hex":  percentAll(s, "&#X%x"),
		"html zeros":         percentAll(s, "&#0000%d;"),
		"hex lower":          hex.EncodeToString([]byte(s)),
		"hex upper":          strings.ToUpper(hex.EncodeToString([]byte(s))),
		"mixture":            mixed(s),
	}
}

func response(body io.Reader, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return &http.Response{StatusCode: 200, Status: "200 OK", Header: h, Body: io.NopCloser(body), ContentLength: -1}
}

// parts is a body that arrives in the given pieces.
type parts struct{ p [][]byte }

func (s *parts) Read(p []byte) (int, error) {
	if len(s.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.p[0])
	if s.p[0] = s.p[0][n:]; len(s.p[0]) == 0 {
		s.p = s.p[1:]
	}
	return n, nil
}

func split(text string, at int) *parts {
	return &parts{[][]byte{[]byte(text[:at]), []byte(text[at:])}}
}

func TestMaskEncodingsAtEverySplit(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred))
	for name, enc := range encodings(cred) {
		t.Run(name, func(t *testing.T) {
			text := `{"echo": [` + enc + `], "s%2`
			whole, n := p.Mask(text)
			if n == 0 || len(whole) != len(text) {
				t.Fatalf("Mask(%q) = %q, %d", text, whole, n)
			}
			if !strings.HasPrefix(whole, `{"echo": [`) || !strings.HasSuffix(whole, `], "s%2`) {
				t.Fatalf("masked the neighbourhood: %q", whole)
			}
			// At most the digits that base64 shares with the neighbours remain.
			if kept := len(enc) - strings.Count(whole, "*"); kept > 16 || !strings.Contains(name, "base64") && kept > 2 {
				t.Errorf("%d bytes of %q remain: %q", kept, enc, whole)
			}
			for at := range len(text) + 1 {
				readers := []io.Reader{split(text, at)}
				if at == 0 {
					readers = append(readers, iotest.OneByteReader(split(text, at)))
				}
				for _, r := range readers {
					resp := response(r, "Content-Type", "text/plain")
					g, err := guard.Response(resp, guard.Options{Patterns: p})
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(resp.Body)
					if err != nil || string(got) != whole {
						t.Fatalf("split at %d: got %q, %v, want %q", at, got, err, whole)
					}
					if g.Masked() != n || g.Leaked() {
						t.Fatalf("split at %d: masked %d, leaked %v", at, g.Masked(), g.Leaked())
					}
				}
			}
		})
	}
}

func TestCutWhereMaskingWouldShow(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred))
	tests := []struct {
		name   string
		header []string
		status int
		cut    bool
	}{
		{"plain", nil, 200, false},
		{"digest", []string{"Digest", "sha-256=abc"}, 200, true},
		{"content digest", []string{"Content-Digest", "sha-256=:abc:"}, 200, true},
		{"repr digest", []string{"Repr-Digest", "sha-256=:abc:"}, 200, true},
		{"md5", []string{"Content-Md5", "abc"}, 200, true},
		{"aws checksum", []string{"X-Amz-Checksum-Crc32", "abc"}, 200, true},
		{"range", []string{"Content-Range", "bytes 0-9/10"}, 200, true},
		{"partial", nil, 206, true},
	}
	text := "before " + cred + " after"
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for at := range len(text) + 1 {
				resp := response(split(text, at), tt.header...)
				resp.StatusCode = tt.status
				g, err := guard.Response(resp, guard.Options{Patterns: p})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if !tt.cut {
					if err != nil || strings.Contains(string(got), cred) || g.Masked() != 1 {
						t.Fatalf("got %q, %v", got, err)
					}
					continue
				}
				if !errors.Is(err, guard.ErrLeak) || !g.Leaked() || string(got) != "before " {
					t.Fatalf("split at %d: got %q, %v, want the stream cut", at, got, err)
				}
			}
		})
	}
}

func TestTrailerAnnouncesDigest(t *testing.T) {
	resp := response(strings.NewReader(cred))
	resp.Trailer = http.Header{"Content-Digest": nil}
	if _, err := guard.Response(resp, guard.Options{Patterns: guard.NewPatterns(secret.New(cred))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, guard.ErrLeak) {
		t.Fatalf("err = %v, want ErrLeak", err)
	}
}

func TestShortSecretsOnlyVerbatim(t *testing.T) {
	p := guard.NewPatterns(secret.New("hunter2"))
	if !p.Contains("password=hunter2!") {
		t.Error("verbatim not found")
	}
	if p.Contains(base64.StdEncoding.EncodeToString([]byte("hunter2"))) {
		t.Error("a short secret is looked for in base64")
	}
	// As a Basic password it is found in the combination.
	p = guard.NewPatterns(secret.New("hunter2"), guard.Basic("bob", secret.New("hunter2")))
	if !p.Contains("Basic " + base64.StdEncoding.EncodeToString([]byte("bob:hunter2"))) {
		t.Error("Basic combination not found")
	}
	one := guard.NewPatterns(secret.New("q"))
	if got, _ := one.Mask("a q b"); got != "a * b" {
		t.Errorf("one byte: %q", got)
	}
	if guard.NewPatterns(secret.Value{}) != nil {
		t.Error("patterns of nothing")
	}
}

func TestPatternsPrintNothing(t *testing.T) {
	p := guard.NewPatterns(secret.New("supersecretvalue"))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{p, *p, struct{ P *guard.Patterns }{p}, struct{ P guard.Patterns }{*p}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, "super") || strings.Contains(got, "115") {
				t.Errorf("%s prints %q", verb, got)
			}
		}
	}
}

func TestBytesWaitOnlyWhileAMatchIsPossible(t *testing.T) {
	p := guard.NewPatterns(secret.New("sk-abcdefghijkl"))
	frames := []struct{ in, out string }{
		{"data: hello\n\n", "data: hello\n\n"},
		{"data: x sk-ab", "data: x "},
		{"cX\n\n", "sk-abcX\n\n"},
		{"the end s", "the end "},
		{"", "s"},
	}
	var src parts
	resp := response(&src)
	if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for _, f := range frames {
		src.p = nil
		if f.in != "" {
			src.p = [][]byte{[]byte(f.in)}
		}
		n, err := resp.Body.Read(buf)
		if string(buf[:n]) != f.out {
			t.Fatalf("after %q got %q, %v, want %q", f.in, buf[:n], err, f.out)
		}
	}
}

func zip(text string, flushEvery int) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for i := 0; i < len(text); i += flushEvery {
		_, _ = w.Write([]byte(text[i:min(i+flushEvery, len(text))]))
		_ = w.Flush()
	}
	_ = w.Close()
	return b.Bytes()
}

// TestCompressedIsCutBeforeTheMatchPasses decodes what got through: of the
// credential nothing may be there, however the upstream flushes.
func TestCompressedIsCutBeforeTheMatchPasses(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred))
	long := strings.Repeat("0123456789 lorem ipsum\n", 4000)
	for _, flush := range []int{1, 7, 1 << 20} {
		for _, before := range []string{"before ", long} {
			if flush == 1 && before == long { // slow, and no different
				continue
			}
			enc := zip(before+cred+" after", flush)
			for _, step := range []int{1, 5, 4096, 1 << 20} {
				var src parts
				for i := 0; i < len(enc); i += step {
					src.p = append(src.p, enc[i:min(i+step, len(enc))])
				}
				resp := response(&src, "Content-Encoding", "gzip")
				g, err := guard.Response(resp, guard.Options{Patterns: p})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if !errors.Is(err, guard.ErrLeak) || !g.Leaked() {
					t.Fatalf("flush %d step %d: err = %v, want ErrLeak", flush, step, err)
				}
				if !bytes.HasPrefix(enc, got) {
					t.Fatal("the bytes were altered")
				}
				var plain []byte
				if z, err := gzip.NewReader(bytes.NewReader(got)); err == nil {
					plain, _ = io.ReadAll(z)
				}
				if !strings.HasPrefix(before, string(plain)) {
					t.Fatalf("flush %d step %d: passed %q", flush, step, plain[len(before):])
				}
				if len(before)-len(plain) > 64<<10 { // two windows of the decoder
					t.Fatalf("flush %d step %d: only %d of %d innocent bytes passed", flush, step, len(plain), len(before))
				}
			}
		}
	}
}

func TestCompressedPassesUnaltered(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred))
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10) // stored blocks
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for _, text := range []string{"", "x", strings.Repeat("abc sk-AbC/ ", 50000), string(noise)} {
		enc := append(zip(text, 1<<20), zip("second member", 5)...)
		resp := response(iotest.HalfReader(bytes.NewReader(enc)), "Content-Encoding", "gzip")
		if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, enc) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(enc), err)
		}
		if resp.Header.Get("Content-Encoding") != "gzip" {
			t.Error("Content-Encoding went")
		}
	}
}

func TestUndecodableIsRefused(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred))
	for _, ce := range []string{"br", "zstd", "gzip, gzip", "gzip, br"} {
		if _, err := guard.Response(response(strings.NewReader("x"), "Content-Encoding", ce), guard.Options{Patterns: p}); !errors.Is(err, guard.ErrUndecodable) {
			t.Errorf("%s: %v", ce, err)
		}
	}
	good := zip("hello", 100)
	for name, enc := range map[string][]byte{
		"garbage":  []byte("not gzip at all"),
		"trailing": append(bytes.Clone(good), cred...),
		"damaged":  append(bytes.Clone(good[:len(good)-8]), "12345678"...),
	} {
		resp := response(bytes.NewReader(enc), "Content-Encoding", "gzip")
		if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if !errors.Is(err, guard.ErrUndecodable) || bytes.Contains(got, []byte(cred)) {
			t.Errorf("%s: passed %q, %v", name, got, err)
		}
	}
}

type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n <= 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.n)
	clear(p[:n])
	z.n -= n
	return int(n), nil
}

func TestBombIsCut(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, &zeros{40 << 20}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(cred))
	_ = w.Close()
	resp := response(&b, "Content-Encoding", "gzip")
	if _, err := guard.Response(resp, guard.Options{Patterns: guard.NewPatterns(secret.New(cred))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, guard.ErrUndecodable) {
		t.Fatalf("err = %v, want ErrUndecodable: scanning must neither go on for ever nor stop", err)
	}
}

// oracle decodes everything it can think of and searches plainly.
func oracle(text, s string) bool {
	for _, v := range []string{text, unpercent(text), unpercent(unpercent(text)), unjson(text), unhtml(text)} {
		if strings.Contains(v, s) {
			return true
		}
	}
	low := strings.ToLower(text)
	if strings.Contains(low, hex.EncodeToString([]byte(s))) {
		return true
	}
	for i := range len(text) {
		j := i
		for j < len(text) && (text[j] >= '0' && text[j] <= '9' || text[j] >= 'A' && text[j] <= 'Z' ||
			text[j] >= 'a' && text[j] <= 'z' || strings.IndexByte("+/-_", text[j]) >= 0) {
			j++
		}
		run := strings.NewReplacer("-", "+", "_", "/").Replace(text[i:j])
		for _, r := range []string{run, run[:max(len(run)-1, 0)]} {
			b, _ := base64.RawStdEncoding.DecodeString(r)
			if strings.Contains(string(b), s) {
				return true
			}
		}
	}
	return false
}

// manyZeros is a character reference with more zeros than the scanner reads.
var manyZeros = regexp.MustCompile(`&#([xX]?)0{6}`)

func unhtml(s string) string { return html.UnescapeString(manyZeros.ReplaceAllString(s, "& #$1")) }

func unpercent(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.Write(v)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unjson(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			if s[i+1] == 'u' && i+5 < len(s) && s[i+2:i+4] == "00" {
				if v, err := hex.DecodeString(s[i+4 : i+6]); err == nil {
					b.Write(v)
					i += 5
					continue
				}
			}
			if strings.IndexByte(`"\/`, s[i+1]) >= 0 {
				b.WriteByte(s[i+1])
				i++
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func FuzzScanner(f *testing.F) {
	for _, enc := range encodings(cred) {
		f.Add(cred, "a "+enc+" b", uint16(7))
	}
	f.Add("aaaaaaaaaaaa", "aaaaaaaaaaa aaaaaaaaaaaaaaaaaaaa", uint16(3))
	f.Add("%%%%%%%%%%", "%%%25%%25%%%%%%%%25%%%%", uint16(1))
	f.Fuzz(func(t *testing.T, s, text string, at uint16) {
		if len(s) < 8 || len(s) > 64 || len(text) > 2000 {
			t.Skip()
		}
		for _, c := range []byte(s) {
			if c < ' ' || c > '~' { // what Apply accepts of ASCII
				t.Skip()
			}
		}
		p := guard.NewPatterns(secret.New(s))
		whole, n := p.Mask(text)
		if len(whole) != len(text) {
			t.Fatalf("length changed: %q -> %q", text, whole)
		}
		if oracle(text, s) && n == 0 {
			t.Fatalf("%q not found in %q", s, text)
		}
		if !strings.Contains(s, "*") && strings.Contains(whole, s) {
			t.Fatalf("%q survives in %q", s, whole)
		}
		resp := response(split(text, int(at)%(len(text)+1)))
		if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != whole {
			t.Fatalf("streamed %q, %v, whole %q", got, err, whole)
		}
	})
}

func token(n int) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = digits[rnd.IntN(len(digits))]
	}
	return string(b)
}

func benchBody(kind string) []byte {
	var b bytes.Buffer
	rnd := rand.New(rand.NewPCG(5, 6))
	for b.Len() < 10<<20 {
		switch kind {
		case "json":
			fmt.Fprintf(&b, `{"id":%d,"name":"user-%d","url":"https://api.example.com/v1/items/%d?page=2","text":"The quick brown fox said \"hello\"\n"},`, rnd.Int(), rnd.Int(), rnd.Int())
		case "base64":
			v := make([]byte, 57)
			for i := range v {
				v[i] = byte(rnd.Uint32())
			}
			b.WriteString(base64.StdEncoding.EncodeToString(v) + "\n")
		case "percent":
			fmt.Fprintf(&b, "%%%02X%%%02x", rnd.IntN(256), rnd.IntN(256))
		default:
			fmt.Fprintf(&b, "%c", rnd.IntN(256))
		}
	}
	return b.Bytes()
}

func BenchmarkScan(b *testing.B) {
	for _, n := range []int{40, 1200} {
		p := guard.NewPatterns(secret.New(token(n)))
		for _, kind := range []string{"json", "base64", "percent", "binary"} {
			body := benchBody(kind)
			b.Run(fmt.Sprintf("%s/token%d", kind, n), func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				buf := make([]byte, 32<<10)
				for b.Loop() {
					resp := response(bytes.NewReader(body))
					if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
						b.Fatal(err)
					}
					if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); err != nil || n != int64(len(body)) {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{40, 1200} {
		s := secret.New(token(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				guard.NewPatterns(s)
			}
		})
	}
}

func TestScanAllocatesNothingPerChunk(t *testing.T) {
	p := guard.NewPatterns(secret.New(token(40)))
	src := &zeros{1 << 40}
	resp := response(src)
	if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 32<<10)
	if n := testing.AllocsPerRun(100, func() { _, _ = resp.Body.Read(buf) }); n != 0 {
		t.Errorf("%v allocations a chunk", n)
	}
}
