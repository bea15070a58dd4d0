package http1

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// readHead returns the next request's head without its last empty line. Every
// line of it ends in CRLF.
func (k *conn) readHead() (string, error) {
	in := &k.in
	limit := k.s.maxHeaderBytes() + len("\r\n\r\n")
	lines, lineStart, scanned := 0, 0, 0
	for {
		data := in.buffered()
		i := bytes.IndexByte(data[scanned:], '\n')
		if i < 0 {
			scanned = len(data)
			if err := k.moreHead(lines, limit); err != nil {
				return "", err
			}
			continue
		}
		end := scanned + i
		if end == 0 || data[end-1] != '\r' {
			return "", bad(KindBareLF, "a line ends in LF without CR (RFC 9112 section 2.2)")
		}
		if end-1 == lineStart {
			if lines == 0 {
				return "", bad(KindMethod, "the request line is empty")
			}
			head := string(data[:lineStart])
			in.r += end + 1
			return head, nil
		}
		lines++
		if lines-1 > k.s.maxHeaders() {
			return "", &refusal{http.StatusRequestHeaderFieldsTooLarge, KindHeaderCount, "the request has too many header fields"}
		}
		lineStart, scanned = end+1, end+1
	}
}

// moreHead reads more of a head of which lines are complete.
func (k *conn) moreHead(lines, limit int) error {
	in := &k.in
	have := len(in.buffered())
	if have >= limit {
		if lines == 0 {
			return &refusal{http.StatusRequestURITooLong, KindTargetLength, "the request line is too long"}
		}
		return &refusal{http.StatusRequestHeaderFieldsTooLarge, KindHeaderBytes, "the request's header is too large"}
	}
	if have == 0 {
		return k.idle(limit)
	}
	if lines == 0 && !isToken(in.buf[in.r]) {
		return bad(KindMethod, "this is not HTTP")
	}
	if !k.headTimed {
		// The head comes in parts. The deadline counts from here and is not
		// moved by further bytes.
		k.headTimed = true
		in.deadline = time.Now().Add(k.s.headerTimeout())
		_ = k.nc.SetReadDeadline(in.deadline)
	}
	err := in.fill(limit)
	if isTimeout(err) {
		return &refusal{http.StatusRequestTimeout, KindTimeout, "the request's header did not arrive in time"}
	}
	return err
}

// idle waits for the first byte of a request.
func (k *conn) idle(limit int) error {
	k.headTimed = false
	wait := k.s.idleTimeout()
	mayPark := k.s.Park != nil && !k.staying && wait > 2*parkAfter
	if mayPark {
		wait = parkAfter
	}
	k.in.setDeadline(wait)
	// Deadline first, then the state: Shutdown's own deadline must win.
	k.state.Store(stateIdle)
	if k.s.draining.Load() {
		return io.EOF
	}
	err := k.in.fill(limit)
	if mayPark && isTimeout(err) && k.state.Load() == stateIdle {
		// It stays idle, for Shutdown. Under TLS the read has shown that no
		// record is there whole: the rest of one will wake us.
		k.parking, k.in.err = true, nil
		return err
	}
	if !k.state.CompareAndSwap(stateIdle, stateActive) {
		return io.EOF
	}
	return err
}

// fields is what the parser notes of the fields that frame a message.
type fields struct {
	host, length, coding     string
	hosts, lengths, codings  int
	close, keepAlive, expect bool
	trailer                  bool
	response                 bool // of a response, where Host means nothing
}

// parse reads a head. The strings of the request share one copy of it.
func (k *conn) parse(head string, x *exchange) (*http.Request, error) {
	k.headTimed = false
	line, rest, _ := strings.Cut(head, "\r\n")
	req := http.Request{ProtoMajor: 1, URL: &x.url, RemoteAddr: k.remote, TLS: k.tls, Body: http.NoBody}
	if err := parseLine(line, &req); err != nil {
		return nil, err
	}
	var f fields
	var err error
	if req.Header, err = parseFields(rest, &f); err != nil {
		return nil, err
	}
	if err := parseTarget(&req); err != nil {
		return nil, err
	}
	if err := setHost(&req, &f); err != nil {
		return nil, err
	}
	if err := k.setBody(&req, &f, x); err != nil {
		return nil, err
	}
	req.Close = f.close || req.ProtoMinor == 0 && !f.keepAlive
	if f.trailer && req.Body != http.NoBody && x.body.kind == bodyChunked {
		if req.Trailer, err = declaredTrailer(req.Header); err != nil {
			return nil, err
		}
	}
	delete(req.Header, "Trailer")
	r := req.WithContext(&x.ctx)
	x.body.req = r
	return r, nil
}

// parseLine reads METHOD SP TARGET SP VERSION: RFC 9112 section 3.
func parseLine(line string, req *http.Request) error {
	method, rest, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 {
		return bad(KindMethod, "the request line must be: method, target, version")
	}
	if method == "" || !allToken(method) {
		return bad(KindMethod, "the method is not a token")
	}
	switch version {
	case "HTTP/1.1":
		req.ProtoMinor = 1
	case "HTTP/1.0":
	default:
		if len(version) == len("HTTP/1.1") && strings.HasPrefix(version, "HTTP/") {
			return &refusal{http.StatusHTTPVersionNotSupported, KindVersion, "the version must be HTTP/1.1 or HTTP/1.0"}
		}
		return bad(KindVersion, "the request line must end in HTTP/1.1")
	}
	if target == "" {
		return bad(KindTarget, "the target is missing")
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return bad(KindTarget, "the target holds a byte that must be percent-encoded")
		}
	}
	req.Method, req.RequestURI, req.Proto = method, target, version
	return nil
}

// parseFields reads the field lines. A key that is written in canonical form
// shares the head's memory.
func parseFields(rest string, f *fields) (http.Header, error) {
	n := strings.Count(rest, "\n")
	h := make(http.Header, n)
	values := make([]string, n)
	for len(rest) > 0 {
		var line string
		line, rest, _ = strings.Cut(rest, "\r\n")
		if line[0] == ' ' || line[0] == '\t' {
			return nil, bad(KindObsFold, "a header line begins with a space (RFC 9112 section 5.2)")
		}
		colon := strings.IndexByte(line, ':')
		if colon <= 0 || !allToken(line[:colon]) {
			return nil, bad(KindHeaderName, "a header's name must be a token, directly before the colon")
		}
		value := trimSpace(line[colon+1:])
		if !validValue(value) {
			return nil, bad(KindHeaderValue, "a header's value holds a control byte")
		}
		key := canonical(line[:colon])
		if framing(key, value, f) {
			continue
		}
		if old, ok := h[key]; ok {
			h[key] = append(old, value)
			continue
		}
		values[0] = value
		h[key] = values[:1:1]
		values = values[1:]
	}
	return h, nil
}

// trimSpace removes OWS: RFC 9110 section 5.6.3.
func trimSpace(s string) string {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// framing notes a field that this codec acts on, and reports whether it is
// kept out of the header map, as net/http does.
func framing(key, value string, f *fields) bool {
	switch key {
	case "Host":
		if f.response {
			return false
		}
		f.host = value
		f.hosts++
		return true
	case "Content-Length":
		f.length = value
		f.lengths++
	case "Transfer-Encoding":
		f.coding = value
		f.codings++
		return true
	case "Connection":
		f.close = f.close || hasToken(value, "close")
		f.keepAlive = f.keepAlive || hasToken(value, "keep-alive")
	case "Expect":
		f.expect = true
	case "Trailer":
		f.trailer = true
	}
	return false
}

// parseTarget reads the four forms of RFC 9112 section 3.2.
func parseTarget(req *http.Request) error {
	target := req.RequestURI
	switch {
	case req.Method == http.MethodConnect:
		if strings.ContainsAny(target, "/?@\\,") || !strings.Contains(target, ":") {
			return bad(KindTarget, "CONNECT takes host:port")
		}
		req.URL.Host = target
		return nil
	case target[0] == '/':
		return parsePath(req)
	case target == "*":
		if req.Method != http.MethodOptions {
			return bad(KindTarget, "only OPTIONS takes *")
		}
		req.URL.Path = "*"
		return nil
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Opaque != "" {
		return bad(KindTarget, "the target must be a path or an absolute URL")
	}
	if u.User != nil {
		return bad(KindTarget, "the target carries a user name")
	}
	*req.URL = *u
	return nil
}

// parsePath does what url.ParseRequestURI does, without its allocations for
// paths that hold no escape.
func parsePath(req *http.Request) error {
	target := req.RequestURI
	path, query, hasQuery := strings.Cut(target, "?")
	for i := range len(path) {
		if !plainPath(path[i]) {
			u, err := url.ParseRequestURI(target)
			if err != nil {
				return bad(KindTarget, "the target's path is malformed")
			}
			*req.URL = *u
			return nil
		}
	}
	req.URL.Path, req.URL.RawQuery = path, query
	req.URL.ForceQuery = hasQuery && query == ""
	return nil
}

// plainPath tells which bytes url.URL neither decodes nor encodes in a path.
func plainPath(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '/', '-', '.', '_', '~', '$', '&', '+', ',', ':', ';', '=', '@':
		return true
	}
	return false
}

// setHost holds RFC 9112 section 3.2: one Host, equal to the target's
// authority where that is absolute.
func setHost(req *http.Request, f *fields) error {
	if f.hosts > 1 {
		return bad(KindHost, "the request has more than one Host")
	}
	authority := req.URL.Host
	if f.hosts == 0 && (req.ProtoMinor == 1 || authority == "") {
		return bad(KindHost, "the request has no Host")
	}
	if f.hosts == 1 && (f.host == "" || strings.ContainsAny(f.host, " \t,/\\?#@\"<>^`{|}")) {
		return bad(KindHost, "the Host is malformed")
	}
	switch {
	case authority == "":
		req.Host = f.host
	case f.hosts == 0 || sameHost(req, authority, f.host):
		req.Host = authority
	default:
		return bad(KindHost, "the Host differs from the target's authority")
	}
	return nil
}

// sameHost allows the two to differ in case and in a default port. A CONNECT
// may leave the port out of Host: several clients do.
func sameHost(req *http.Request, authority, host string) bool {
	if strings.EqualFold(authority, host) {
		return true
	}
	if req.Method == http.MethodConnect {
		i := strings.LastIndexByte(authority, ':')
		return strings.EqualFold(authority[:i], host)
	}
	port := ":80"
	if req.URL.Scheme == "https" {
		port = ":443"
	}
	return strings.EqualFold(strings.TrimSuffix(authority, port), strings.TrimSuffix(host, port))
}

// setBody holds RFC 9112 section 6.3, without its leniencies.
func (k *conn) setBody(req *http.Request, f *fields, x *exchange) error {
	switch {
	case f.codings > 0 && f.lengths > 0:
		return bad(KindCLTE, "the request has both Content-Length and Transfer-Encoding")
	case f.codings > 1 || f.codings == 1 && !strings.EqualFold(f.coding, "chunked"):
		return bad(KindTransfer, "the Transfer-Encoding must be exactly chunked")
	case f.codings == 1 && req.ProtoMinor == 0:
		return bad(KindTransfer, "HTTP/1.0 has no Transfer-Encoding")
	case f.lengths > 1:
		return bad(KindContentLength, "the request has more than one Content-Length")
	}
	if req.Method == http.MethodConnect && f.codings+f.lengths > 0 {
		return bad(KindContentLength, "CONNECT has no body")
	}
	if f.codings == 1 {
		req.TransferEncoding = []string{"chunked"}
		req.ContentLength = -1
		x.body.init(k, x, bodyChunked, 0)
		req.Body = &x.body
	}
	if f.lengths == 1 {
		n, ok := parseLength(f.length)
		if !ok {
			return bad(KindContentLength, "the Content-Length is not a number")
		}
		req.ContentLength = n
		if n > 0 {
			x.body.init(k, x, bodyLength, n)
			req.Body = &x.body
		}
	}
	if f.expect {
		if v := req.Header["Expect"]; len(v) != 1 || !strings.EqualFold(v[0], "100-continue") {
			return &refusal{http.StatusExpectationFailed, KindExpect, "the only expectation that can be met is 100-continue"}
		}
		x.needContinue = req.Body != http.NoBody && req.ProtoMinor == 1
	}
	return nil
}

// parseLength takes digits alone, at most 18 of them, so that no sum overflows.
func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// declaredTrailer announces the names that the client will send.
func declaredTrailer(h http.Header) (http.Header, error) {
	t := make(http.Header)
	for _, v := range h["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.Trim(name, " \t"); name == "" {
				continue
			}
			key := http.CanonicalHeaderKey(name)
			if !allToken(name) || forbiddenTrailer(key) {
				return nil, bad(KindTrailer, "the Trailer names a field that cannot come late")
			}
			t[key] = nil
		}
	}
	return t, nil
}

// hasToken finds a token in a comma-separated list.
func hasToken(list, token string) bool {
	for len(list) > 0 {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.Trim(item, " \t"), token) {
			return true
		}
	}
	return false
}

func allToken(s string) bool {
	for i := range len(s) {
		if !isToken(s[i]) {
			return false
		}
	}
	return true
}

// isToken is tchar of RFC 9110 section 5.6.2.
func isToken(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

// validValue allows visible bytes, spaces, tabs and obs-text: RFC 9110
// section 5.5. A bare CR is a control byte like any other.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
