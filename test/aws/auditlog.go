package main

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"sync"
)

// line is one of MinIO's audit log (minio/pkg/v3/logger/message/audit.Entry).
type line struct {
	RequestID string `json:"requestID"`
	UserAgent string `json:"userAgent"`
	AccessKey string `json:"accessKey"`
	API       struct {
		Name       string `json:"name"`
		Bucket     string `json:"bucket"`
		Object     string `json:"object"`
		StatusCode int    `json:"statusCode"`
	} `json:"api"`
}

var recordID = regexp.MustCompile(`(?:^|\s)attache/(rec_[0-9A-Za-z_-]+)$`)

// anonymous: MinIO does not log who uploads by a form, nor who sent what it
// refused before it looked at the signature.
func (l line) anonymous() bool {
	return l.AccessKey == "" && (l.API.Name == "PostPolicyBucket" || l.API.StatusCode == http.StatusBadRequest)
}

// record is the id of our record in the line, or "".
func (l line) record() string {
	if m := recordID.FindStringSubmatch(l.UserAgent); m != nil {
		return m[1]
	}
	return ""
}

// auditLog takes what MinIO posts.
type auditLog struct {
	mu    sync.Mutex // guards all below
	lines []line
	bad   int
}

// ServeHTTP implements [http.Handler].
func (a *auditLog) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil || len(b) == 0 {
		return
	}
	var l line
	err = json.Unmarshal(b, &l)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.bad++
		return
	}
	a.lines = append(a.lines, l)
}

func (a *auditLog) all() ([]line, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]line(nil), a.lines...), a.bad
}
