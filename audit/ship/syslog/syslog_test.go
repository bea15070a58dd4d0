package syslog

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/form"
	"github.com/attache-dev/attache/audit/ship/internal/sinktest"
	"github.com/attache-dev/attache/test/servers"
)

const (
	envAddress = "ATTACHE_TEST_SYSLOG"
	envCA      = "ATTACHE_TEST_SYSLOG_CA"
)

func TestMain(m *testing.M) {
	sinktest.Main(m, func(dir string) (ship.Sink, error) {
		pem, err := os.ReadFile(os.Getenv(envCA))
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		return New(Options{Address: os.Getenv(envAddress), TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, State: filepath.Join(dir, "begun")})
	})
}

// header is RFC 5424 section 6, as strict as its ABNF, with our structured data.
var header = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|-) ([\x21-\x7e]{1,255}) ([\x21-\x7e]{1,48}) ([\x21-\x7e]{1,128}) ([\x21-\x7e]{1,32}) \[origin software="attache"\]\[meta sequenceId="(\d+)"\] \x{feff}(.*)$`)

// receiver is a strict syslog server over TLS.
type receiver struct {
	net.Listener
	mu     sync.Mutex // guards what follows
	events [][]byte
	wrong  []string
	refuse int // connections to break off half-way
}

func receive(t *testing.T, tc *tls.Config) *receiver {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", tc)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{Listener: l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return r
}

func (r *receiver) serve(c net.Conn) {
	defer c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	in := bufio.NewReader(c)
	var got [][]byte
	for {
		m, err := frame(in)
		if err == io.EOF { //nolint:errorlint // frame wraps nothing
			break
		}
		if err != nil {
			r.wrong = append(r.wrong, err.Error())
			return
		}
		if r.refuse > 0 && len(got) == 2 {
			r.refuse--
			_ = c.(*tls.Conn).NetConn().Close() // as if it were killed: nothing was kept
			return
		}
		x := header.FindSubmatch(m)
		if x == nil {
			r.wrong = append(r.wrong, fmt.Sprintf("%.200q", m))
			return
		}
		got = append(got, x[8])
	}
	r.events = append(r.events, got...)
}

// frame reads MSG-LEN SP SYSLOG-MSG (RFC 5425 section 4.3).
func frame(in *bufio.Reader) ([]byte, error) {
	n, err := in.ReadString(' ')
	if err != nil {
		if err == io.EOF && n == "" { //nolint:errorlint // of the reader itself
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%w after %q", err, n)
	}
	size, err := strconv.Atoi(strings.TrimSuffix(n, " "))
	if err != nil || size < 1 || n[0] == '0' {
		return nil, fmt.Errorf("MSG-LEN %q", n)
	}
	m := make([]byte, size)
	if _, err := io.ReadFull(in, m); err != nil {
		return nil, fmt.Errorf("message of %d bytes: %w", size, err)
	}
	return m, nil
}

// pki is an authority with a server's certificate.
type pki struct {
	ca, cert, key string
	pool          *x509.CertPool
}

func certify(t *testing.T) pki {
	t.Helper()
	dir := t.TempDir()
	p := pki{ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	a, err := servers.NewAuthority("syslog", p.ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Issue(p.cert, p.key, "localhost", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	p.pool = a.Pool()
	return p
}

func (p pki) server(t *testing.T) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
}

func (p pki) options(address string) Options {
	return Options{Address: address, TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.pool}, Hostname: "node 3", Timeout: 20 * time.Second}
}

func sink(t *testing.T, o Options) *Sink {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *receiver) all(t *testing.T) [][]byte {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.wrong {
		t.Error(w)
	}
	return r.events
}

// TestStrictReceiver: each message is as RFC 5424 and RFC 5425 say.
func TestStrictReceiver(t *testing.T) {
	p := certify(t)
	r := receive(t, p.server(t))
	dir := sinktest.Shipped(t, sink(t, p.options(r.Addr().String())), 100, nil)
	if n := sinktest.Whole(t, dir, r.all(t)); n != 0 {
		t.Errorf("%d came more than once", n)
	}
}

// TestBrokenOff: a receiver that goes away in the middle of a batch has not
// answered for it.
func TestBrokenOff(t *testing.T) {
	p := certify(t)
	r := receive(t, p.server(t))
	r.refuse = 3
	dir := sinktest.Shipped(t, sink(t, p.options(r.Addr().String())), 100, nil)
	sinktest.Whole(t, dir, r.all(t))
	if r.refuse != 0 {
		t.Errorf("%d connections are left to break", r.refuse)
	}
}

// TestClosedEarly: a server that closes in TLS's good order, without having read
// what came, has not answered for it.
func TestClosedEarly(t *testing.T) {
	p := certify(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", p.server(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		one := make([]byte, 1)
		_, _ = io.ReadFull(c, one) // the handshake, and one record
		_, _ = c.(*tls.Conn).NetConn().Read(one)
		_ = c.Close() // close_notify, and then a reset for what was not read
	}()
	b := batch(t, 10)
	for len(b.Lines) < 400 {
		b.Lines = append(b.Lines, sinktest.Line(t, "e1", uint64(len(b.Lines)+1), audit.Record{Type: audit.TypeEnd, ID: audit.NewID(), Result: &audit.Result{Outcome: audit.OutcomeOK}}))
	}
	if err := sink(t, p.options(l.Addr().String())).Send(t.Context(), b); err == nil {
		t.Error("the batch counts as delivered")
	}
}

func TestKill9(t *testing.T) {
	p := certify(t)
	r := receive(t, p.server(t))
	dir := t.TempDir()
	sinktest.Killed(t, dir, 3, envAddress+"="+r.Addr().String(), envCA+"="+p.ca)
	r.mu.Lock()
	r.wrong = nil // a killed process leaves a torn message, which nobody keeps
	r.mu.Unlock()
	t.Logf("%d came more than once", sinktest.Whole(t, dir, r.all(t)))
}

func TestWrongServer(t *testing.T) {
	p, other := certify(t), certify(t)
	r := receive(t, other.server(t))
	err := sink(t, p.options(r.Addr().String())).Send(t.Context(), batch(t, 10))
	if err == nil || errors.Is(err, ship.ErrRejected) {
		t.Errorf("a server of another authority got %v", err)
	}
	if len(r.events) > 0 {
		t.Error("it got records")
	}
}

func batch(t *testing.T, pad int) ship.Batch {
	b := ship.Batch{Producer: "pod-1"}
	for i := range uint64(3) {
		path := "/"
		if i == 1 {
			path += strings.Repeat("x", pad)
		}
		b.Lines = append(b.Lines, sinktest.Line(t, "e1", i+1, audit.Record{Type: audit.TypeEnd, ID: audit.NewID(), Request: &audit.Request{Host: "h", Path: path}, Result: &audit.Result{Outcome: audit.OutcomeOK}}))
	}
	return b
}

// TestTooLarge: a message that the server would cut is refused and named, the
// others are delivered.
func TestTooLarge(t *testing.T) {
	p := certify(t)
	r := receive(t, p.server(t))
	o := p.options(r.Addr().String())
	o.MaxMessage = 4 << 10
	var rejected *ship.RejectedError
	err := sink(t, o).Send(t.Context(), batch(t, 2000))
	if !errors.As(err, &rejected) || len(rejected.Lines) != 1 || rejected.Lines[0].Sequence != 2 {
		t.Fatalf("got %v; want line 2 refused", err)
	}
	if got := len(r.all(t)); got != 2 {
		t.Errorf("%d messages, want the other 2", got)
	}
}

func TestOptions(t *testing.T) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	for name, o := range map[string]Options{"no port": {Address: "h", TLS: tc}, "no TLS": {Address: "h:1"}, "format": {Address: "h:1", TLS: tc, Format: "cef"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestRsyslog ships to a real server over TLS, which is down at first.
func TestRsyslog(t *testing.T) {
	bin, err := exec.LookPath("rsyslogd")
	if err != nil {
		if bin = "/usr/sbin/rsyslogd"; !exists(bin) || !exists("/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so") && !exists("/usr/lib/aarch64-linux-gnu/rsyslog/lmnsd_gtls.so") {
			if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
				t.Fatal("needs rsyslog with its gtls driver (packages rsyslog and rsyslog-gnutls)")
			}
			t.Skip("needs rsyslog with its gtls driver (packages rsyslog and rsyslog-gnutls)")
		}
	}
	p := certify(t)
	work := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	out := filepath.Join(work, "out.jsonl")
	conf := filepath.Join(work, "rsyslog.conf")
	text := fmt.Sprintf(`global(workDirectory=%q maxMessageSize="64k" defaultNetstreamDriver="gtls"
 defaultNetstreamDriverCAFile=%q defaultNetstreamDriverCertFile=%q defaultNetstreamDriverKeyFile=%q)
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="raw" type="string" string="%%msg%%\n")
ruleset(name="r") { action(type="omfile" file=%q template="raw" asyncWriting="off" flushOnTXEnd="on") }
input(type="imtcp" port=%q address="127.0.0.1" ruleset="r")
`, work, p.ca, p.cert, p.key, out, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(t.Context(), bin, "-n", "-f", conf, "-i", filepath.Join(work, "pid"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	const n = 200
	dir := sinktest.Shipped(t, sink(t, p.options(address)), n, func() {
		if err := cmd.Start(); err != nil {
			t.Error(err)
		}
	})
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var got [][]byte
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && len(got) < n; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(out)
		got = nil
		for line := range bytes.Lines(b) {
			if line = bytes.TrimPrefix(bytes.TrimSpace(line), []byte("\xef\xbb\xbf")); len(line) > 0 && line[len(line)-1] == '}' {
				got = append(got, line)
			}
		}
	}
	if len(got) < n {
		t.Fatalf("%d of %d messages in rsyslog's file; it says:\n%s", len(got), n, log.String())
	}
	sinktest.Whole(t, dir, got)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// FuzzMessage: any record is one message as the RFC wants it.
func FuzzMessage(f *testing.F) {
	f.Add("pod-1", "policy.changed", int64(0), uint64(1))
	f.Add("", "a b\n\x00é", int64(1<<62), uint64(1<<63))
	f.Fuzz(func(t *testing.T, producer, name string, at int64, seq uint64) {
		s := sink(t, Options{Address: "h:1", Cleartext: true, Hostname: producer})
		m := s.message(&form.Event{JSON: []byte("{}"), Name: name, Time: time.Unix(at, 0), Sequence: seq}, producer)
		if !header.Match(m) {
			t.Errorf("%q", m)
		}
	})
}
