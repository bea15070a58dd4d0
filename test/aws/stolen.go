package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/attache-dev/attache/audit"
)

// call is one request to S3, made by the agent first, by a thief after it.
type call struct {
	name, method, target, body string
	source                     string // X-Amz-Copy-Source
}

// calls need other rights each: an action, a key, or a prefix that differs.
func calls() []call {
	const p = "/alpha/desk/thief/"
	return []call{
		{name: "GetObject", method: "GET", target: "/alpha/readonly/seed"},
		{name: "GetObject, other key", method: "GET", target: p + "b"},
		{name: "GetObject, key with a suffix", method: "GET", target: p + "bb"},
		{name: "PutObject", method: "PUT", target: p + "put", body: "by the agent"},
		{name: "PutObject, key with a suffix", method: "PUT", target: p + "put2", body: "by the agent"},
		{name: "DeleteObject", method: "DELETE", target: p + "gone"},
		{name: "ListObjectsV2", method: "GET", target: "/alpha?list-type=2&prefix=desk%2Fthief%2F"},
		{name: "ListObjectsV2, other prefix", method: "GET", target: "/alpha?list-type=2&prefix=desk%2Fthief%2Fb"},
		{name: "GetBucketLocation", method: "GET", target: "/alpha?location="},
		{name: "CreateMultipartUpload", method: "POST", target: p + "parts?uploads="},
		{name: "DeleteObjects", method: "POST", target: "/alpha?delete=", body: `<Delete><Object><Key>desk/thief/x</Key></Object><Object><Key>desk/thief/y</Key></Object></Delete>`},
	}
}

// outside are calls that the role allows and no session of this suite may do.
func outside() []call {
	return []call{
		{name: "other bucket", method: "GET", target: "/gamma/seed"},
		{name: "other bucket, put", method: "PUT", target: "/gamma/new", body: "x"},
		{name: "other bucket, delete", method: "DELETE", target: "/gamma/seed"},
		{name: "other bucket, list", method: "GET", target: "/gamma?list-type=2"},
		{name: "other key", method: "GET", target: "/alpha/private/seed"},
		{name: "other key, put", method: "PUT", target: "/alpha/private/new", body: "x"},
		{name: "key never used", method: "GET", target: "/alpha/desk/never"},
		{name: "key never used, put", method: "PUT", target: "/alpha/desk/never", body: "x"},
		{name: "other action", method: "DELETE", target: "/alpha/readonly/seed"},
		{name: "tags", method: "GET", target: "/alpha/readonly/seed?tagging="},
		{name: "versions", method: "GET", target: "/alpha?versions="},
		{name: "bucket policy", method: "GET", target: "/alpha?policy="},
		{name: "whole bucket", method: "GET", target: "/alpha?list-type=2"},
		{name: "new bucket", method: "PUT", target: "/delta-by-thief"},
		{name: "copy", method: "PUT", target: "/alpha/desk/never", source: "/alpha/private/seed"},
	}
}

// send makes the call at MinIO itself with these keys.
func (w *world) send(ctx context.Context, c call, keys aws.Credentials) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, "https://"+storeHost+c.target, strings.NewReader(c.body))
	if err != nil {
		return 0, "", err
	}
	sum, digest := sha256.Sum256([]byte(c.body)), md5.Sum([]byte(c.body))
	hash := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", hash)
	req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(digest[:]))
	if c.source != "" {
		req.Header.Set("X-Amz-Copy-Source", c.source)
	}
	if err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(ctx, keys, req, hash, "s3", region, time.Now()); err != nil {
		return 0, "", err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	return res.StatusCode, string(b), err
}

// script is the calls as an agent makes them, one after the other.
func script(cs []call) string {
	var b strings.Builder
	b.WriteString(`c() { curl -sS -o answer -w '{"step":"%{http_code}"}\n' --aws-sigv4 aws:amz:us-east-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$@"; }` + "\n")
	for _, c := range cs {
		digest := md5.Sum([]byte(c.body))
		fmt.Fprintf(&b, "c -X %s -H 'Content-Md5: %s' -H 'Content-Type: application/octet-stream'", c.method, base64.StdEncoding.EncodeToString(digest[:]))
		if c.body != "" {
			fmt.Fprintf(&b, " --data-binary '%s'", c.body)
		}
		fmt.Fprintf(&b, " '$ENDPOINT%s'\n", c.target)
	}
	return strings.ReplaceAll(b.String(), "'$ENDPOINT", `"$ENDPOINT"'`)
}

// agent runs one command with the suite's configuration, or that of config.
func (s *suite) agent(ctx context.Context, name, command, config string) (*run, error) {
	if config == "" {
		config = filepath.Join(s.dir, "config")
	}
	r := &run{s: s, client: client{name: name, version: "true", command: command, env: []string{direct}, plain: true}, dir: filepath.Join(s.dir, name), config: config}
	return r, r.do(ctx)
}

// stolen lets an agent make calls, takes the session of each from the tap,
// and tries every other call with it at MinIO: only the one that it was minted
// for may succeed. Then it tries what no session may with all of the suite.
func (s *suite) stolen(ctx context.Context) []error {
	for _, k := range []string{"b", "bb"} {
		if err := s.w.store(ctx, "alpha", "desk/thief/"+k, []byte(k)); err != nil {
			return []error{err}
		}
	}
	r, err := s.agent(ctx, "thief", script(calls()), "")
	if err != nil {
		return []error{err}
	}
	loot, err := r.loot(calls())
	if err != nil {
		return []error{err}
	}
	var errs []error
	for i, minted := range calls() {
		for j, c := range calls() {
			status, body, err := s.w.send(ctx, c, loot[i].Keys)
			switch {
			case err != nil:
				errs = append(errs, err)
			case i == j && status >= 300:
				errs = append(errs, fmt.Errorf("the session for %s is refused for it: %d %s", minted.name, status, brief(body)))
			case i != j && !refused(status, body):
				errs = append(errs, fmt.Errorf("the session for %s does %s: %d %s", minted.name, c.name, status, brief(body)))
			}
		}
	}
	tried, more := s.stolenAll(ctx)
	if tried < len(calls()) {
		errs = append(errs, fmt.Errorf("only %d sessions were tried", tried))
	}
	fmt.Printf("        %d sessions against each other's calls; %d against %d calls out of scope\n", len(loot), tried, len(outside()))
	return append(errs, more...)
}

// loot are the sessions of the agent's calls, in their order.
func (r *run) loot(cs []call) ([]session, error) {
	byHandle := map[string]session{}
	for _, s := range r.s.w.tap.minted() {
		byHandle[s.Handle] = s
	}
	recs := slices.Clone(r.records)
	if len(recs) != len(cs) {
		return nil, fmt.Errorf("%d records of %d calls", len(recs), len(cs))
	}
	slices.SortFunc(recs, func(a, b audit.Record) int { return a.Time.Compare(b.Time) })
	var out []session
	for i, rec := range recs {
		if rec.Credential == nil || rec.Result == nil || rec.Result.Status >= 300 {
			return nil, fmt.Errorf("the agent's own %s failed: %s: %+v", cs[i].name, describe(rec), rec.Decision)
		}
		s, ok := byHandle[rec.Credential.Handle]
		if !ok {
			return nil, fmt.Errorf("no session for %s", describe(rec))
		}
		out = append(out, s)
	}
	return out, nil
}

// refused: MinIO knows the session and says no. A session that ended gets
// another code, and proves nothing.
func refused(status int, body string) bool {
	denied := strings.Contains(body, "<Code>AccessDenied</Code>")
	if status == http.StatusOK { // DeleteObjects says it key by key
		return denied && strings.Contains(body, "<DeleteResult") && !strings.Contains(body, "<Deleted>")
	}
	return denied && status == http.StatusForbidden
}

// sessionLife is how long our sessions are good for anything, by their policy.
const sessionLife = 15 * time.Minute

// stolenAll tries what no session may with every session that still lives.
func (s *suite) stolenAll(ctx context.Context) (tried int, errs []error) {
	for _, stolen := range s.w.tap.minted() {
		if time.Since(stolen.Asked) > sessionLife-time.Minute {
			continue
		}
		tried++
		for _, c := range outside() {
			status, body, err := s.w.send(ctx, c, stolen.Keys)
			if err == nil && !refused(status, body) {
				err = fmt.Errorf("a session does %s: %d %s; its policy: %s", c.name, status, brief(body), stolen.Policy)
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	// And none without its own token, or with another's.
	all := s.w.tap.minted()
	if len(all) < 2 {
		return tried, append(errs, errors.New("fewer than two sessions"))
	}
	mixed := all[len(all)-1].Keys
	mixed.SessionToken = all[len(all)-2].Keys.SessionToken
	if status, body, err := s.w.send(ctx, calls()[0], mixed); err != nil || status != http.StatusForbidden {
		errs = append(errs, fmt.Errorf("keys of one session with the token of another: %d %s (%v)", status, brief(body), err))
	}
	return tried, errs
}

// cached: two requests on one session, each with its own record and line.
func (s *suite) cached(ctx context.Context) []error {
	c := calls()[0]
	r, err := s.agent(ctx, "cached", script([]call{c, c}), "")
	if err != nil {
		return []error{err}
	}
	loot, err := r.loot([]call{c, c})
	if err != nil {
		return []error{err}
	}
	errs := r.checkJoin(ctx)
	if loot[0].Handle != loot[1].Handle {
		errs = append(errs, errors.New("the two requests had a session each"))
	}
	lines, _ := s.w.log.all()
	var ids []string
	for _, l := range lines {
		if l.AccessKey == loot[0].Keys.AccessKeyID && l.record() != "" {
			ids = append(ids, l.RequestID)
		}
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 2 {
		errs = append(errs, fmt.Errorf("MinIO's log has %d lines of the session, want 2", len(ids)))
	}
	return errs
}

// escaped is a call whose key needs an escape.
func escaped(key string) call {
	return call{name: key, method: "GET", target: "/alpha/desk/escape/" + key}
}

// escapes tries whether MinIO honours ${*}, ${?} and ${$}. It does not: a
// session whose policy has one is refused for its own call, and reaches keys
// that spell the escape. So its providers have noEscapes, and Attaché refuses.
func (s *suite) escapes(ctx context.Context) []error {
	awkward := []string{"a%2Ab", "a%3Fb", "a%24b"} // a*b, a?b, a$b
	for _, k := range []string{"a*b", "a?b", "a$b", "aXb", "a${X}b"} {
		if err := s.w.store(ctx, "alpha", "desk/escape/"+k, []byte(k)); err != nil {
			return []error{err}
		}
	}
	var cs []call
	for _, k := range awkward {
		cs = append(cs, escaped(k))
	}
	r, err := s.agent(ctx, "noescapes", strings.ReplaceAll(script(cs), "-o answer", ""), "")
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, rec := range r.records {
		if rec.Result == nil || rec.Result.Outcome != audit.OutcomeDenied {
			errs = append(errs, fmt.Errorf("%s was sent although its server honours no escapes", describe(rec)))
		}
	}
	return append(errs, s.withoutNoEscapes(ctx, cs)...)
}

// withoutNoEscapes is what would happen if the provider said otherwise.
func (s *suite) withoutNoEscapes(ctx context.Context, cs []call) []error {
	config := filepath.Join(s.dir, "config-escapes")
	documents := bytes.Replace(s.w.agentConfig(nil), []byte("noEscapes: true\n"), []byte("noEscapes: false\n"), 1)
	if err := writeConfig(config, documents); err != nil {
		return []error{err}
	}
	before := len(s.w.tap.minted())
	if _, err := s.agent(ctx, "escapes", script(cs), config); err != nil {
		return []error{err}
	}
	var errs []error
	stars := 0
	for _, m := range s.w.tap.minted()[before:] {
		if !strings.Contains(m.Policy, "desk/escape/a${*}b") {
			continue
		}
		stars++
		for _, t := range []struct {
			key  string
			want bool // that MinIO refuses
		}{{"a%2Ab", true}, {"aXb", true}, {"a%24%7BX%7Db", false}} {
			status, body, err := s.w.send(ctx, escaped(t.key), m.Keys)
			if err != nil || refused(status, body) != t.want {
				errs = append(errs, fmt.Errorf("MinIO changed: a policy for a${*}b and key %s: %d %s (%v)", t.key, status, brief(body), err))
			}
		}
	}
	if stars != 1 {
		errs = append(errs, fmt.Errorf("%d sessions with an escape, want 1", stars))
	}
	return errs
}
