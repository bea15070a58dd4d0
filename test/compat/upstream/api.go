package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

const maxBody = 1 << 20

// api is a protected API: an echo of the request (with the credential in it,
// as careless APIs do), server-sent events and a WebSocket.
func (s *Set) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/echo", echo)
	mux.HandleFunc("GET /v1/sse", events)
	mux.HandleFunc("GET /v1/ws", socket)
	mux.HandleFunc("/denied/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "nobody should read this") })
	return mux
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, _ := r.Context().Value(claimsKey{}).(claims)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Echo", r.Header.Get("Authorization"))
	_ = json.NewEncoder(w).Encode(map[string]any{"verified": c.Client, "method": r.Method, "host": r.Host, "proto": r.Proto, "body": string(body), "headers": r.Header})
}

const eventCount = 5

// events flushes each event by itself.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for i := range eventCount {
		_, _ = fmt.Fprintf(w, "id: %d\ndata: event %d of %d\n\n", i+1, i+1, eventCount)
		if err := rc.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// socket repeats each message until the client closes.
func socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // no browser here: any Origin
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(maxBody)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	for {
		kind, b, err := c.Read(ctx)
		if err != nil {
			return
		}
		if err := c.Write(ctx, kind, append([]byte("echo: "), b...)); err != nil {
			return
		}
	}
}

// mcpServer passes requests on to the MCP server and tells it whom the token
// speaks of.
func mcpServer(addr string) http.Handler {
	to := &url.URL{Scheme: "http", Host: addr}
	return &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		c, _ := r.In.Context().Value(claimsKey{}).(claims)
		r.Out.Header.Set("Compat-Client", c.Client)
	}}
}

// canary answers with a value planted on purpose, in three forms: the search
// for secrets must find it before it is believed to find nothing else.
func (s *Set) canary() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /raw", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "canary "+s.Canary+"\n") })
	mux.HandleFunc("GET /base64", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, Base64(s.Canary)) })
	mux.HandleFunc("GET /gzip", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(Gzip(s.Canary))
	})
	return mux
}
