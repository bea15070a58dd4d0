package main

//lint:file-ignore SA1019 x/net/http2 speaks HTTP/2 on a connection that we opened and measured ourselves.

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// order asks a load generator for one measurement.
type order struct {
	Mode   string        `json:"mode"` // direct, connect, or one of AWS's
	Addr   string        `json:"addr"` // of the origin, reverse proxy or CONNECT proxy; "env": HTTPS_PROXY
	Host   string        `json:"host"` // host:port of the origin
	CA     string        `json:"ca"`   // PEM file to trust; "env": SSL_CERT_FILE
	Path   string        `json:"path"`
	H2     bool          `json:"h2"`
	Conns  int           `json:"conns"`
	Warm   time.Duration `json:"warm"`
	For    time.Duration `json:"for"`
	Header bool          `json:"header"` // send the credential ourselves
}

// Phases of a measurement: the generator says when each begins, so that the
// target's accounts are read with every connection open and warm, and again
// before the first one closes.
const (
	phaseBegin = "begin"
	phaseEnd   = "end"
)

// reading is what a load generator measured, or the begin of a phase.
type reading struct {
	Phase    string  `json:"phase,omitempty"`
	Requests int64   `json:"requests"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Error    string  `json:"error,omitempty"`
}

// generate executes orders from standard input, one JSON line each, until it
// ends. It runs as a child of the target where the target wants that
// (attache run attests the processes that call it).
func generate() error {
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		r, err := o.run(func(phase string) { _ = out.Encode(reading{Phase: phase}) })
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return in.Err()
}

func (o *order) run(phase func(string)) (reading, error) {
	cfg, err := o.prepare()
	if err != nil {
		return reading{}, err
	}
	// Each connection makes a request before, and ends one after the windows.
	ctx, cancel := context.WithTimeout(context.Background(), o.Warm+maxWindows*o.For+20*time.Second+time.Duration(o.Conns)*patience)
	defer cancel()
	l := &load{o: o, cfg: cfg, lats: make([][]time.Duration, o.Conns), errs: make(chan error, o.Conns), start: make(chan struct{})}
	l.ready.Add(o.Conns)
	for i := range o.Conns {
		l.work.Go(func() { l.worker(ctx, i) })
	}
	l.ready.Wait()
	close(l.start)
	time.Sleep(o.Warm)
	phase(phaseBegin)
	l.measured.Store(true)
	begin := time.Now()
	for range maxWindows { // a slow target under many connections gets longer
		time.Sleep(o.For)
		if l.finished.Load() >= int64(o.Conns) {
			break
		}
	}
	l.measured.Store(false)
	took := time.Since(begin)
	phase(phaseEnd)
	time.Sleep(settle)
	l.stop.Store(true)
	l.work.Wait()
	close(l.errs)
	return l.reading(took)
}

// maxWindows bounds how much longer than asked a measurement takes until it has
// seen one request a connection.
const maxWindows = 40

// patience is how much longer than the windows a measurement may take, for each
// connection: the slowest peer answers five times a second.
const patience = 600 * time.Millisecond

// settle keeps the load up while the target's accounts are read.
const settle = 20 * time.Millisecond

// prepare resolves "env" and reads the roots.
func (o *order) prepare() (*tls.Config, error) {
	if o.Addr == "env" {
		u := os.Getenv("HTTPS_PROXY")
		if len(u) > 7 {
			o.Addr = u[7:]
		}
	}
	if o.CA == "env" {
		o.CA = os.Getenv("SSL_CERT_FILE")
	}
	pem, err := os.ReadFile(o.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	host, _, err := net.SplitHostPort(o.Host)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, ServerName: host, ClientSessionCache: tls.NewLRUClientSessionCache(8), MinVersion: tls.VersionTLS12}, nil
}

// load is one measurement under way.
type load struct {
	o              *order
	cfg            *tls.Config
	work, ready    sync.WaitGroup
	start          chan struct{}
	measured, stop atomic.Bool
	finished       atomic.Int64      // requests while measured
	lats           [][]time.Duration // by worker
	errs           chan error
}

func (l *load) worker(ctx context.Context, i int) {
	do, closeConn, err := l.o.client(ctx, l.cfg)
	if err == nil {
		defer closeConn()
		err = do() // the first request pays for the connection
	}
	l.ready.Done()
	if err != nil {
		l.errs <- err
		return
	}
	<-l.start
	for !l.stop.Load() {
		t := time.Now()
		if err := do(); err != nil {
			l.errs <- err
			return
		}
		if l.measured.Load() {
			l.lats[i] = append(l.lats[i], time.Since(t))
			l.finished.Add(1)
		}
	}
}

func (l *load) reading(took time.Duration) (reading, error) {
	var all []time.Duration
	for _, v := range l.lats {
		all = append(all, v...)
	}
	slices.Sort(all)
	r := reading{Requests: int64(len(all)), Seconds: took.Seconds()}
	if len(all) > 0 {
		r.P50 = float64(all[len(all)/2].Nanoseconds()) / 1000
		r.P99 = float64(all[len(all)*99/100].Nanoseconds()) / 1000
	}
	if err := <-l.errs; err != nil {
		return r, err
	}
	if len(all) == 0 {
		return r, errors.New("no request finished")
	}
	return r, nil
}

// dial connects as a client of the target would.
func (o *order) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", o.Addr)
	if err != nil || o.Mode == "direct" {
		return c, err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", o.Host, o.Host); err != nil {
		return nil, err
	}
	// One byte at a time: nothing after the head may be swallowed.
	var head []byte
	for b := make([]byte, 1); len(head) < 4096; {
		if _, err := c.Read(b); err != nil {
			return nil, fmt.Errorf("CONNECT: %w", err)
		}
		head = append(head, b[0])
		if n := len(head); n >= 4 && string(head[n-4:]) == "\r\n\r\n" {
			break
		}
	}
	if len(head) < 12 || string(head[9:12]) != "200" {
		return nil, fmt.Errorf("CONNECT answered %q", head)
	}
	return c, nil
}

// client opens one connection and returns a function that makes one request
// on it.
func (o *order) client(ctx context.Context, cfg *tls.Config) (do func() error, done func(), err error) {
	if o.Mode == modeGet || o.Mode == modeUpload {
		return o.awsClient(ctx, cfg)
	}
	c, err := o.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	if o.H2 {
		cfg.NextProtos = []string{"h2"}
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	if !o.H2 {
		return o.h1(tc), func() { _ = tc.Close() }, nil
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != "h2" {
		return nil, nil, fmt.Errorf("no h2: negotiated %q", p)
	}
	cc, err := (&http2.Transport{}).NewClientConn(tc)
	if err != nil {
		return nil, nil, err
	}
	return o.h2(ctx, cc), func() { _ = tc.Close() }, nil
}

func (o *order) h1(c net.Conn) func() error {
	auth := ""
	if o.Header {
		auth = "Authorization: Bearer " + benchToken + "\r\n"
	}
	req := []byte("GET " + o.Path + " HTTP/1.1\r\nHost: " + o.Host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" + auth + "\r\n")
	br := bufio.NewReaderSize(c, 32<<10)
	return func() error {
		if _, err := c.Write(req); err != nil {
			return err
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return err
		}
		return o.drain(resp)
	}
}

func (o *order) h2(ctx context.Context, cc *http2.ClientConn) func() error {
	return func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+o.Host+o.Path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "bench")
		if o.Header {
			req.Header.Set("Authorization", "Bearer "+benchToken)
		}
		resp, err := cc.RoundTrip(req)
		if err != nil {
			return err
		}
		return o.drain(resp)
	}
}

// drain reads the whole answer and checks its length: half an answer is an
// error, not a fast request.
func (o *order) drain(resp *http.Response) error {
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	want := int64(len(sseEvent) * sseEvents)
	if size, ok := payloads[o.Path]; ok {
		want = int64(size)
	}
	if resp.StatusCode != http.StatusOK || n != want {
		return fmt.Errorf("%s: status %d with %d bytes, want 200 with %d", o.Path, resp.StatusCode, n, want)
	}
	return nil
}
