package guard_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
)

// send makes a guarded call to a real server, as the pipeline does.
func send(t *testing.T, h http.HandlerFunc, o guard.Options, header ...string) (*http.Response, *guard.Guarded, error) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	r := get(t, srv.URL, header...)
	guard.Request(r, false)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	g, err := guard.Response(resp, o)
	return resp, g, err
}

func TestEchoingServer(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred2))
	resp, g, err := send(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Www-Authenticate", `Bearer error_description="bad token `+cred2+`"`)
		h.Set("Location", "/login?t="+cred2)
		h.Add("Set-Cookie", "theme="+cred2)
		h.Set("Trailer", "X-Tail")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "you sent "+cred2)
		h.Set("X-Tail", "again "+cred2)
	}, guard.Options{Patterns: p})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	stars := strings.Repeat("*", len(cred2))
	if string(body) != "you sent "+stars {
		t.Errorf("body %q", body)
	}
	for _, got := range []string{
		resp.Header.Get("Www-Authenticate"), resp.Header.Get("Location"),
		resp.Header.Get("Set-Cookie"), resp.Trailer.Get("X-Tail"),
	} {
		if !strings.Contains(got, stars) || strings.Contains(got, cred2) {
			t.Errorf("field %q", got)
		}
	}
	if g.Masked() != 5 {
		t.Errorf("masked %d, want 5", g.Masked())
	}
}

func TestReasonPhraseAndEarlyHints(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred2))
	resp := response(http.NoBody)
	resp.Status = "400 no " + cred2
	if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil || strings.Contains(resp.Status, cred2) {
		t.Errorf("Status %q, %v", resp.Status, err)
	}
	hints := http.Header(textproto.MIMEHeader{"Link": {"</" + cred2 + ">; rel=preload"}})
	if n := p.Header(hints); n != 1 || strings.Contains(hints.Get("Link"), cred2) {
		t.Errorf("1xx: %v", hints)
	}
}

// TestEventsPassOneByOne: the server makes the next event only when the client
// has the one before, plain and with gzip.
func TestEventsPassOneByOne(t *testing.T) {
	for _, coding := range []string{"", "gzip"} {
		t.Run("coding "+coding, func(t *testing.T) {
			next := make(chan struct{}, 1)
			resp, _, err := send(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				var out io.Writer = w
				flush := w.(http.Flusher).Flush
				if coding == "gzip" {
					w.Header().Set("Content-Encoding", "gzip")
					z := gzip.NewWriter(w)
					out, flush = z, func() { _ = z.Flush(); w.(http.Flusher).Flush() }
					defer func() { _ = z.Close() }()
				}
				for i := range 5 {
					_, _ = fmt.Fprintf(out, "data: {\"access_token\":\"t%d\"}\n\n", i)
					flush()
					select {
					case <-next:
					case <-r.Context().Done():
						return
					}
				}
			}, guard.Options{Patterns: guard.NewPatterns(secret.New(cred2)), Vault: vault(), Who: alice})
			if err != nil {
				t.Fatal(err)
			}
			var body io.Reader = resp.Body
			if coding == "gzip" {
				if body, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 4096)
			for i := range 5 {
				want, got := fmt.Sprintf("data: {\"access_token\":\"t%d\"}\n\n", i), ""
				for len(got) < len(want) { // hangs, and times out, if the guard holds the event
					n, err := body.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					got += string(buf[:n])
				}
				if got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				next <- struct{}{}
			}
		})
	}
}

func TestGzipEchoIsCut(t *testing.T) {
	resp, g, err := send(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, strings.Repeat("fine ", 100)+cred2)
		_ = z.Close()
	}, guard.Options{Patterns: guard.NewPatterns(secret.New(cred2))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, guard.ErrLeak) || !g.Leaked() {
		t.Errorf("err = %v", err)
	}
}

func TestSealedTrailersStillArrive(t *testing.T) {
	for kind, text := range map[string]string{
		"application/x-www-form-urlencoded": "access_token=" + issued,
		"application/json":                  `{"access_token":"` + issued + `"}`,
	} {
		resp, g, err := send(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.(http.Flusher).Flush() // of unknown length
			_, _ = io.WriteString(w, text)
			w.Header().Set(http.TrailerPrefix+"X-Tail", "end")
			w.Header().Set(http.TrailerPrefix+"Content-Digest", "sha-256=:x:")
		}, guard.Options{Vault: vault(), Who: alice})
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || g.Sealed() != 1 || strings.Contains(string(body), issued) {
			t.Fatalf("%s: %q, %v", kind, body, err)
		}
		if resp.Trailer.Get("X-Tail") != "end" || resp.Trailer.Get("Content-Digest") != "" {
			t.Errorf("%s: trailer %v", kind, resp.Trailer)
		}
	}
}

// TestTrailersAreSealed: credentials that come late are no less credentials.
func TestTrailersAreSealed(t *testing.T) {
	v := vault()
	for _, kind := range []string{"text/plain", "application/json"} {
		resp, g, err := send(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, `{"a":1}`)
			w.Header().Set(http.TrailerPrefix+"X-Auth-Token", issued)
			w.Header().Set(http.TrailerPrefix+"Set-Cookie", "session="+issued)
		}, guard.Options{Vault: v, Who: alice})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		handle := resp.Trailer.Get("X-Auth-Token")
		if !handleRE.MatchString(handle) || !handleRE.MatchString(resp.Trailer.Get("Set-Cookie")) || g.Sealed() != 2 {
			t.Errorf("%s: trailer %v, %d sealed", kind, resp.Trailer, g.Sealed())
		}
		if !v.Holds(alice, handle) {
			t.Errorf("%s: the handle does not open", kind)
		}
	}
}

// TestBackReferenceAcrossTheWindow: the decoder's window is full in the middle
// of a copy that begins the credential.
func TestBackReferenceAcrossTheWindow(t *testing.T) {
	const begin = "zz!injected-credential-01234"
	head := strings.Repeat("0123456789 lorem ipsum\n", 1400) + begin + "#"
	before := head + strings.Repeat("x", 32768-2-len(head))
	enc := zip(before+begin+cred2[len(begin)-3:], 1<<20)
	resp := response(bytes.NewReader(enc), "Content-Encoding", "gzip")
	if _, err := guard.Response(resp, guard.Options{Patterns: guard.NewPatterns(secret.New(cred2))}); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if !errors.Is(err, guard.ErrLeak) {
		t.Fatalf("err = %v", err)
	}
	var plain []byte
	if z, err := gzip.NewReader(bytes.NewReader(got)); err == nil {
		plain, _ = io.ReadAll(z)
	}
	if len(plain) > len(before) {
		t.Errorf("passed %q", plain[len(before):])
	}
}

func TestRequestAsksForWhatCanBeScanned(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "identity",
		"br":                           "identity",
		"zstd, br;q=0.5":               "identity",
		"gzip, deflate, br, zstd":      "gzip, deflate",
		"gzip;q=0.5, br;q=1, *;q=0.1":  "gzip;q=0.5",
		"GZIP , identity;q=0, deflate": "GZIP, identity;q=0, deflate",
	} {
		r := get(t, "https://h/", "Range", "bytes=1-", "If-Range", "x", "Sec-Websocket-Extensions", "permessage-deflate")
		if in != "" {
			r.Header.Set("Accept-Encoding", in)
		}
		guard.Request(r, false)
		if got := r.Header.Get("Accept-Encoding"); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
		if r.Header.Get("Range") == "" || r.Header.Get("Sec-Websocket-Extensions") != "" {
			t.Errorf("header %v", r.Header)
		}
		guard.Request(r, true)
		if r.Header.Get("Range") != "" || r.Header.Get("If-Range") != "" {
			t.Error("Range is left on a rule with echoRisk")
		}
	}
}

func TestUpgradedConnectionIsMaskedAndWritable(t *testing.T) {
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	context.AfterFunc(ctx, func() { _ = near.Close() })
	resp := &http.Response{StatusCode: http.StatusSwitchingProtocols, Header: http.Header{}, Body: near}
	if _, err := guard.Response(resp, guard.Options{Patterns: guard.NewPatterns(secret.New(cred2))}); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 2)
		_, _ = io.ReadFull(far, buf)
		_, _ = io.WriteString(far, string(buf)+cred2)
		_ = far.Close()
	}()
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatal("not writable any more")
	}
	if _, err := io.WriteString(rw, "hi"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rw); err != nil || string(got) != "hi"+strings.Repeat("*", len(cred2)) {
		t.Errorf("got %q, %v", got, err)
	}
}

// On a conversation each message passes at once, whatever it ends with: the
// peer may wait for it. What completes a match is masked all the same.
func TestConversationNeverStalls(t *testing.T) {
	const secretText = "tok-abcdefghijklmnopqrstuvwxyz012345"
	p := guard.NewPatterns(secret.New(secretText))
	for _, kind := range []string{"upgrade", "gRPC"} {
		t.Run(kind, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			resp := &http.Response{StatusCode: http.StatusSwitchingProtocols, Header: http.Header{}, Body: near}
			if kind == "gRPC" {
				resp.StatusCode = http.StatusOK
				resp.Header.Set("Content-Type", "application/grpc+proto")
				resp.ContentLength = -1
			}
			if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
				t.Fatal(err)
			}
			ask := func(message string) string {
				t.Helper()
				go func() { _, _ = io.WriteString(far, message) }()
				_ = near.SetReadDeadline(time.Now().Add(30 * time.Second))
				got := make([]byte, len(message))
				if n, err := io.ReadFull(resp.Body, got); err != nil {
					t.Fatalf("%q: got %q, %v", message, got[:n], err)
				}
				return string(got)
			}
			for _, m := range []string{"ends with t", "with to", "tok-", "d", "Z", "dG9"} {
				if got := ask(m); got != m {
					t.Errorf("%q became %q", m, got)
				}
			}
			if got := ask(secretText); got != strings.Repeat("*", len(secretText)) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// Wherever an echo is split, no more than the few bytes that may pass do.
func TestConversationMasksAtEverySplit(t *testing.T) {
	const secretText = "tok-abcdefghijklmnopqrstuvwxyz012345"
	p := guard.NewPatterns(secret.New(secretText))
	for _, enc := range encodings(secretText) {
		text := "<" + enc + ">"
		for at := range len(text) {
			resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/grpc"}}, ContentLength: -1, Body: io.NopCloser(split(text, at))}
			if _, err := guard.Response(resp, guard.Options{Patterns: p}); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || len(b) != len(text) {
				t.Fatalf("split at %d: got %d bytes, %v", at, len(b), err)
			}
			whole, found := p.Mask(text)
			shown := 0
			for i := range b {
				if b[i] != whole[i] {
					shown++
				}
			}
			if found == 0 || shown > 4 {
				t.Errorf("%q split at %d: got %q, whole %q", text, at, b, whole)
			}
		}
	}
}

func TestHeadAndEmpty(t *testing.T) {
	p := guard.NewPatterns(secret.New(cred2))
	resp, _, err := send(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	}, guard.Options{Patterns: p, Vault: vault(), Who: alice})
	if err != nil || resp.Body != http.NoBody {
		t.Errorf("204: %v", err)
	}
	head := response(strings.NewReader(""), "Content-Type", "application/json", "Content-Length", "70", "Content-Encoding", "br")
	head.ContentLength = 70
	head.Request = &http.Request{Method: http.MethodHead}
	if _, err := guard.Response(head, guard.Options{Patterns: p, Vault: vault(), Who: alice}); err != nil || head.ContentLength != 70 {
		t.Errorf("HEAD: %v", err)
	}
}

func TestCacheCompilesOnce(t *testing.T) {
	c := guard.NewCache(2)
	n := 0
	build := func() []secret.Value { n++; return []secret.Value{secret.New(cred2)} }
	a := c.Get("cred_1", build)
	if b := c.Get("cred_1", build); a != b || n != 1 {
		t.Errorf("compiled %d times", n)
	}
	c.Drop("cred_1")
	c.Get("cred_1", build)
	if n != 2 {
		t.Error("Drop kept it")
	}
}
