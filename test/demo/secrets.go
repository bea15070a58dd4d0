package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// secrets collects every secret that the servers saw: what the agent must not
// find anywhere.
type secrets struct {
	mu     sync.Mutex // guards the rest
	byText map[string]string
	tokens []string // access tokens
}

// add notes a value. A JWT's signature is looked for by itself: without it the
// rest is only text.
func (s *secrets) add(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byText == nil {
		s.byText = map[string]string{}
	}
	if _, known := s.byText[value]; known || value == "" {
		return
	}
	s.byText[value] = fmt.Sprintf("%s #%d", name, len(s.byText)+1)
	if parts := strings.Split(value, "."); len(parts) == 3 {
		s.byText[parts[2]] = s.byText[value] + " (signature)"
	}
}

// noteRequest keeps the secrets of a call to the authorization server.
func (s *secrets) noteRequest(r *http.Request, body []byte) {
	if r.URL.Path != "/token" && r.URL.Path != "/token/revocation" {
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return
	}
	for _, k := range []string{"client_assertion", "subject_token", "actor_token", "token"} {
		s.add(strings.ReplaceAll(k, "_", " "), form.Get(k))
	}
}

// noteAnswer keeps the tokens that the authorization server issued.
func (s *secrets) noteAnswer(path string, body []byte) {
	var a struct {
		Token string `json:"access_token"`
	}
	if path != "/token" || json.Unmarshal(body, &a) != nil || a.Token == "" {
		return
	}
	s.add("access token", a.Token)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = append(s.tokens, a.Token)
}

// named returns name to value.
func (s *secrets) named() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]string, len(s.byText))
	for text, name := range s.byText {
		out[name] = text
	}
	return out
}

// issued returns the access tokens, oldest first.
func (s *secrets) issued() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tokens)
}

// canaries are planted where secrets could be: in the agent's environment, its
// files and an answer; each plain, in base64 and in gzip. A search that does
// not find them finds nothing else either.
type canaries struct{ env, file, answer [3]string }

func newCanaries() (c canaries) {
	for _, place := range []*[3]string{&c.env, &c.file, &c.answer} {
		for i := range place {
			place[i] = "canary" + random()
		}
	}
	return c
}

// named returns name to value.
func (c canaries) named() map[string]string {
	out := map[string]string{}
	for place, vs := range map[string][3]string{"environment": c.env, "file": c.file, "answer": c.answer} {
		for i, form := range []string{"plain", "base64", "gzip"} {
			out[place+", "+form] = vs[i]
		}
	}
	return out
}

func (c canaries) environ() []string {
	return []string{"DEMO_MARK_A=" + c.env[0], "DEMO_MARK_B=" + b64(c.env[1]), "DEMO_MARK_C=" + b64gzip(c.env[2])}
}

func (c canaries) writeFiles(dir string) error {
	for name, data := range map[string][]byte{"a.txt": []byte(c.file[0]), "b.txt": []byte(b64(c.file[1])), "c.gz": gz(c.file[2])} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func gz(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte("text around " + s + " and behind it")) // a buffer takes everything
	_ = w.Close()
	return b.Bytes()
}

func b64(s string) string     { return base64.StdEncoding.EncodeToString([]byte("x" + s + " ")) }
func b64gzip(s string) string { return base64.StdEncoding.EncodeToString(gz(s)) }
