package pipeline

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/relay"
)

// Buffers of one direction of one exchange: copySize is enough to fill two TLS
// records and small enough for thousands of streams; smallSize holds the
// answers that most calls get, so that many at once cost little memory.
const (
	copySize  = 32 << 10
	smallSize = 4 << 10
)

var (
	copyBuffers  = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallSize); return &b }}
)

// stripped answer headers: hop-by-hop (RFC 9110 section 7.6.1) and what would
// lead the client round us (RFC 7838 Alt-Svc).
var strippedAnswer = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info",
	"Transfer-Encoding", "Upgrade", "Te", "Alt-Svc", "Alt-Used",
	relay.HeaderError, // only we refuse in our name
	relay.HeaderAddress,
}

// answer sends resp to the agent and returns what went wrong on the way.
// It closes the body.
func (x *exchange) answer(ctx context.Context, w http.ResponseWriter, resp *http.Response) error {
	defer x.leave(func() { _ = resp.Body.Close() })
	h := w.Header()
	clear(h)
	dropConnectionNamed(resp.Header)
	for k, v := range resp.Header {
		h[k] = v
	}
	for _, k := range strippedAnswer {
		delete(h, k)
	}
	h["Attache-Record"] = []string{x.rec.ID}
	x.sayAddress(h)
	announced := announceTrailers(h, resp)
	if announced > 0 && x.req.ProtoMajor == 1 && x.req.Method != http.MethodHead {
		h.Del("Content-Length") // HTTP/1.1 has trailers in chunked bodies only: RFC 9112 section 7.1.2
	}
	if x.protocol == policy.GRPC {
		trailersOnly(h, resp)
	}
	w.WriteHeader(resp.StatusCode)
	flush := resp.ContentLength < 0 || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	if flush {
		// The head of a stream goes out before its first byte exists.
		_ = http.NewResponseController(w).Flush()
	}
	if resp.ContentLength < 0 || resp.ContentLength > copySize {
		defer cutWrites(ctx, w, x.conn.HangUp)()
	}
	buffers := &copyBuffers
	if resp.ContentLength >= 0 && resp.ContentLength <= smallSize {
		buffers = &smallBuffers
	}
	n, err := copyBody(w, resp.Body, flush, buffers)
	x.result.BytesDown = n
	if err != nil {
		return err
	}
	sendTrailers(w.Header(), resp, announced)
	return nil
}

// cutWrites ends a write that waits for a slow reader once ctx does: the end
// of a task must not wait for an agent that reads nothing. The function it
// returns must be called before the handler returns.
//
// In HTTP/2 the end of a stream is itself written. Where the connection takes
// not even that, it is hung up, if it can be.
func cutWrites(ctx context.Context, w http.ResponseWriter, hangUp func()) func() {
	done := make(chan struct{})
	var stuck *time.Timer
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0))
		if hangUp != nil {
			stuck = time.AfterFunc(stuckReader, hangUp)
		}
	})
	return func() {
		if stop() {
			return
		}
		<-done
		if stuck != nil {
			stuck.Stop()
		}
	}
}

// stuckReader is how long the end of a stream may take to be written.
const stuckReader = time.Second

// errClient marks failures of the agent's side of the copy.
var errClient = errors.New("agent went away")

// copyBody streams src to w through one of buffers. With flush each read is sent at once, so that an
// event passes as it comes.
func copyBody(w http.ResponseWriter, src io.Reader, flush bool, buffers *sync.Pool) (int64, error) {
	bp, _ := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	rc := http.NewResponseController(w)
	var total int64
	for {
		n, rerr := src.Read(*bp)
		if n > 0 {
			m, werr := w.Write((*bp)[:n])
			total += int64(m)
			if werr != nil {
				return total, errors.Join(errClient, werr)
			}
			if flush {
				if err := rc.Flush(); err != nil {
					return total, errors.Join(errClient, err)
				}
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// dropConnectionNamed removes the fields that Connection names.
func dropConnectionNamed(h http.Header) {
	for _, v := range h["Connection"] {
		for t := range strings.SplitSeq(v, ",") {
			if t = strings.TrimSpace(t); t != "" && !strings.EqualFold(t, "upgrade") {
				h.Del(t)
			}
		}
	}
}

// announceTrailers names the trailers that the origin announced.
func announceTrailers(h http.Header, resp *http.Response) int {
	delete(h, "Trailer")
	if len(resp.Trailer) == 0 {
		return 0
	}
	keys := make([]string, 0, len(resp.Trailer))
	for k := range resp.Trailer {
		keys = append(keys, k)
	}
	h["Trailer"] = []string{strings.Join(keys, ", ")}
	return len(keys)
}

func sendTrailers(h http.Header, resp *http.Response, announced int) {
	for k, vv := range resp.Trailer {
		if len(resp.Trailer) != announced { // some came unannounced
			k = http.TrailerPrefix + k
		}
		h[k] = vv
	}
}

// trailersOnly turns a gRPC answer whose status stands in its header block
// into one with trailers. Writing it as headers lets the HTTP/2 server end the
// stream with an empty DATA frame, which grpc-go reports as "server closed the
// stream without sending trailers".
func trailersOnly(h http.Header, resp *http.Response) {
	if h.Get("Grpc-Status") == "" {
		return
	}
	if resp.Trailer == nil {
		resp.Trailer = http.Header{}
	}
	for _, k := range []string{"Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin"} {
		if v, ok := h[k]; ok {
			resp.Trailer[k] = v
			delete(h, k)
		}
	}
	h.Del("Content-Length")
}

// cause names why an exchange ended early: the reason it was canceled for, if
// that was ours, else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}
