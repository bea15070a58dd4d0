package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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
	// Two doors: intercepting peers speak HTTP/1.1 to every origin, and a
	// comparison of HTTP/1.1 must not have one of them speak HTTP/2 behind it.
	var lns [2]net.Listener
	for i := range lns {
		if lns[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
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
	fmt.Println(lns[0].Addr().String(), lns[1].Addr().String())
	var conns atomic.Int64
	serve := func(ln net.Listener, protocols ...string) error {
		srv := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols}, ReadHeaderTimeout: 10 * time.Second,
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					conns.Add(1)
				}
			}}
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetHTTP2(slices.Contains(protocols, "h2"))
		return srv.ServeTLS(ln, "", "")
	}
	go func() { // each line asks how many connections were accepted; the end of them ends us
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			fmt.Println(conns.Load())
		}
		os.Exit(0)
	}()
	go func() { log.Fatal(serve(lns[1], "h2", "http/1.1")) }()
	return serve(lns[0], "http/1.1")
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
