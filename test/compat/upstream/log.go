package upstream

import (
	"bufio"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
)

// Entry is one line of an upstream's access log.
type Entry struct {
	Host   string `json:"host"`
	Method string `json:"method"`
	Path   string `json:"path"`
	ID     string `json:"id"` // the record id that the request carried; "" if none
	Status int    `json:"status"`
	GRPC   string `json:"grpc,omitempty"` // gRPC status, by name
}

// Log is what all upstreams write to. It also learns every credential that
// they issue or are shown.
type Log struct {
	mu      sync.Mutex // guards all below
	entries []Entry
	secrets map[string]bool
}

// Add appends a line.
func (l *Log) Add(e Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

// Entries returns all lines so far.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Entry(nil), l.entries...)
}

// Learn keeps a credential, so that the search knows what to look for.
func (l *Log) Learn(values ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.secrets == nil {
		l.secrets = map[string]bool{}
	}
	for _, v := range values {
		if len(v) >= 8 {
			l.secrets[v] = true
		}
	}
}

// Secrets returns all credentials so far.
func (l *Log) Secrets() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]string, 0, len(l.secrets))
	for s := range l.secrets {
		out = append(out, s)
	}
	return out
}

var recordID = regexp.MustCompile(`(?:^|\s)attache/(rec_[0-9A-Za-z_-]+)$`)

// idOf is the record id at the end of the User-Agent, else the request id.
func idOf(userAgent, requestID string) string {
	if m := recordID.FindStringSubmatch(userAgent); m != nil {
		return m[1]
	}
	if strings.HasPrefix(requestID, "rec_") {
		return requestID
	}
	return ""
}

// handler logs each request to next, and the credentials it carries.
func (l *Log) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); ok {
			l.Learn(password)
		}
		if _, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
			l.Learn(token)
		}
		e := Entry{Host: r.Host, Method: r.Method, Path: r.URL.Path, ID: idOf(r.UserAgent(), r.Header.Get("X-Request-Id"))}
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			e.Status = s.status
			l.Add(e)
		}()
		next.ServeHTTP(s, r)
	})
}

// statusWriter remembers the status. It offers Flush and Hijack because CGI,
// event streams and WebSockets need them.
type statusWriter struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// WriteHeader implements [http.ResponseWriter].
func (s *statusWriter) WriteHeader(code int) {
	if !s.wrote && code != http.StatusContinue {
		s.status, s.wrote = code, true
	}
	s.ResponseWriter.WriteHeader(code)
}

// Write implements [http.ResponseWriter].
func (s *statusWriter) Write(p []byte) (int, error) {
	s.wrote = true
	return s.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] reach the writer below.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Flush implements [http.Flusher].
func (s *statusWriter) Flush() { _ = http.NewResponseController(s.ResponseWriter).Flush() }

// Hijack implements [http.Hijacker].
func (s *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.status, s.wrote = http.StatusSwitchingProtocols, true
	return http.NewResponseController(s.ResponseWriter).Hijack()
}
