package http1

import (
	"fmt"
	"net/http"
	"strconv"
)

// Kinds of refusal, for [Server.Refused]. The set is bounded.
const (
	KindCLTE          = "cl-te"
	KindContentLength = "content-length"
	KindTransfer      = "transfer-encoding"
	KindBareLF        = "bare-lf"
	KindObsFold       = "obs-fold"
	KindHeaderName    = "header-name"
	KindHeaderValue   = "header-value"
	KindHeaderBytes   = "header-bytes"
	KindHeaderCount   = "header-count"
	KindHost          = "host"
	KindMethod        = "method"
	KindTarget        = "target"
	KindTargetLength  = "target-length"
	KindVersion       = "version"
	KindExpect        = "expect"
	KindChunk         = "chunk"
	KindTrailer       = "trailer"
	KindTimeout       = "header-timeout"
)

// refusal is a request that is answered by the codec itself.
type refusal struct {
	status int
	kind   string
	text   string
}

// Error implements error.
func (r *refusal) Error() string { return "malformed request: " + r.text }

func (r *refusal) answer() []byte {
	body := r.text + "\n"
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s",
		r.status, http.StatusText(r.status), strconv.Itoa(len(body)), body)
}

func bad(kind, text string) *refusal {
	return &refusal{status: http.StatusBadRequest, kind: kind, text: text}
}
