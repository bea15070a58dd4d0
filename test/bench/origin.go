package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// benchToken is what the origin demands on every call. It is worth nothing
// outside one run of the benchmark.
const benchToken = "bench-token-0123456789abcdef0123456789abcdef"

// origin serves the payloads and a token endpoint over TLS, and answers 401
// to a call without the credential: a proxy that forgot to inject cannot win.
func origin(certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for path, size := range payloads {
		body := []byte(`{"data":"` + strings.Repeat("x", max(0, size-11)) + `"}`)
		mux.HandleFunc("GET "+path, authorized(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body)
		}))
	}
	mux.HandleFunc("GET /sse", authorized(events))
	mux.HandleFunc("POST /token", token)
	fmt.Println(ln.Addr().String())
	srv := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}, ReadHeaderTimeout: 10 * time.Second}
	go func() { // ends with its parent
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return srv.ServeTLS(ln, "", "")
}

// payloads maps paths to body sizes in bytes.
var payloads = map[string]int{"/1k": 1 << 10, "/64k": 64 << 10, "/10m": 10 << 20}

const (
	sseEvents = 100
	sseEvent  = "data: {\"token\":\"a piece of an answer, as a language model streams it\"}\n\n"
)

func authorized(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+benchToken {
			http.Error(w, "credential missing", http.StatusUnauthorized)
			return
		}
		h(w, r)
	}
}

// events streams sseEvents events, each flushed by itself.
func events(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for range sseEvents {
		if _, err := io.WriteString(w, sseEvent); err != nil {
			return
		}
		if err := rc.Flush(); err != nil {
			return
		}
	}
}

func token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.Form.Get("client_assertion") == "" {
		http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": benchToken, "token_type": "Bearer", "expires_in": 3600, "scope": r.Form.Get("scope")})
}
