// Package collector sends records to a real OpenTelemetry Collector with a
// persistent queue, kills it under load and cuts it off from what is behind it.
package collector

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
	"github.com/attache-dev/attache/test/servers"
)

// program is the collector that test/servers/otelcol/build.sh makes.
func program(t *testing.T) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	p := filepath.Join(filepath.Dir(file), "..", "..", "..", ".cache", "bin", "otelcol")
	if _, err := os.Stat(p); err != nil {
		if os.Getenv("ATTACHE_REQUIRE_SERVERS") != "" {
			t.Fatalf("%v; run make otelcol", err)
		}
		t.Skipf("skipped: no OpenTelemetry Collector, run make otelcol: %v", err)
	}
	return p
}

// collector is one running collector.
type collector struct {
	t      *testing.T
	bin    string
	config string
	port   string // that is open when it is ready
	cmd    *exec.Cmd
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

func newCollector(t *testing.T, bin, port, config string) *collector {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &collector{t: t, bin: bin, config: path, port: port}
	c.start()
	t.Cleanup(func() { c.stop(syscall.SIGKILL) })
	return c
}

func (c *collector) start() {
	c.t.Helper()
	var out strings.Builder
	c.cmd = exec.Command(c.bin, "--config", c.config) //nolint:gosec // our own
	c.cmd.Stdout, c.cmd.Stderr = &out, &out
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	exited := make(chan struct{})
	cmd := c.cmd
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	deadline := time.Now().Add(60 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+c.port, time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-exited:
			c.t.Fatalf("the collector ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the collector does not listen: %s", out.String())
		}
	}
}

// stop ends the collector by sig and waits until it has gone.
func (c *collector) stop(sig syscall.Signal) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(sig)
	for c.cmd.Process.Signal(syscall.Signal(0)) == nil {
		time.Sleep(5 * time.Millisecond)
	}
	c.cmd = nil
}

// selfSigned makes a client's certificate, which is its own authority, in file.
func selfSigned(t *testing.T, file string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pod-1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

const behindConfig = `receivers: {otlp: {protocols: {grpc: {endpoint: "127.0.0.1:%s"}}}}
exporters: {file: {path: %q, append: true, flush_interval: 100ms}}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {logs: {receivers: [otlp], exporters: [file]}}
`

// edgeConfig has a persistent queue: what it has acknowledged, it has on disk.
const edgeConfig = `receivers:
  otlp:
    protocols:
      grpc: {endpoint: "127.0.0.1:%s", tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}
      http: {endpoint: "127.0.0.1:%s", tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}
exporters:
  otlp_grpc:
    endpoint: "127.0.0.1:%s"
    tls: {insecure: true}
    sending_queue: {storage: file_storage, queue_size: 100000, num_consumers: 2}
    retry_on_failure: {initial_interval: 50ms, max_interval: 500ms, max_elapsed_time: 0s}
extensions: {file_storage: {directory: %q, create_directory: true}}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  extensions: [file_storage]
  pipelines: {logs: {receivers: [otlp], exporters: [otlp_grpc]}}
`

func TestRealCollector(t *testing.T) {
	for _, protocol := range []string{otlp.GRPC, otlp.HTTP} {
		t.Run(protocol, func(t *testing.T) { throughCollector(t, program(t), protocol) })
	}
}

func throughCollector(t *testing.T, bin, protocol string) {
	dir := t.TempDir()
	authority, err := servers.NewAuthority("test", filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pair := servers.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	if err := authority.Issue(pair.Cert, pair.Key, "collector.example"); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "clients.pem")
	client := selfSigned(t, ca)
	out := filepath.Join(dir, "out.json")
	behindPort, grpcPort, httpPort := freePort(t), freePort(t), freePort(t)
	behind := newCollector(t, bin, behindPort, fmt.Sprintf(behindConfig, behindPort, out))
	port := grpcPort
	c := otlp.Config{Name: "collector", Protocol: protocol, Endpoint: "127.0.0.1:" + grpcPort, Gzip: true, Timeout: 5 * time.Second,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authority.Pool(), ServerName: "collector.example", Certificates: []tls.Certificate{client}}}
	if protocol == otlp.HTTP {
		port, c.Endpoint = httpPort, "https://127.0.0.1:"+httpPort
	}
	edge := newCollector(t, bin, port, fmt.Sprintf(edgeConfig, grpcPort, pair.Cert, pair.Key, ca, httpPort, pair.Cert, pair.Key, ca, behindPort, filepath.Join(dir, "queue")))

	kills, lines := 3, 3000
	if os.Getenv("AUDIT_FULL") != "" {
		kills, lines = 10, 20000
	}
	s, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "spool"), Producer: "pod-1"})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := otlp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	g, err := ship.Start(s, []ship.Sink{sink}, ship.Options{MinWait: 10 * time.Millisecond, MaxWait: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for i := range kills {
		write(t, s, lines/kills/2)
		failed := g.Status()[0].Errors
		edge.stop(syscall.SIGKILL) // under load
		write(t, s, lines/kills/2)
		for deadline := time.Now().Add(30 * time.Second); g.Status()[0].Errors == failed; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no attempt failed while the collector was down: the test tests nothing")
			}
		}
		if i == kills/2 { // and what is behind it is away for a while
			behind.stop(syscall.SIGTERM)
		}
		edge.start()
		if i == kills-1 {
			behind.start()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		t.Fatal(err)
	}
	st := g.Status()[0]
	want, err := audit.Verify(s.Dir())
	if err != nil || !want.OK() {
		t.Fatalf("%v %s", err, want.String())
	}
	got, again := arrived(t, out, want.Lines)
	if len(got) != want.Lines {
		t.Fatalf("%d lines of %d arrived", len(got), want.Lines)
	}
	f := audit.NewFollower(s.Dir(), audit.Position{})
	for n := 0; n < want.Lines; {
		ls, _, err := f.Next(t.Context(), s.Durable(), 500, 1<<20)
		if err != nil || len(ls) == 0 {
			t.Fatal(err, n)
		}
		for _, l := range ls {
			r := got[l.Sequence]
			if r.body != string(l.JSON) || r.chain != l.Chain.String() || r.epoch != l.Epoch {
				t.Fatalf("sequence %d arrived otherwise than it was written: %+v", l.Sequence, r)
			}
			if r.evident != "false" {
				t.Fatalf("sequence %d is not labelled as not tamper-evident", l.Sequence)
			}
		}
		n += len(ls)
	}
	t.Logf("%s: %d lines, %d kills, %d failed attempts: all arrived, %d of them again", protocol, want.Lines, kills, st.Errors, again)
}

func write(t *testing.T, s *audit.Spool, n int) {
	t.Helper()
	for range n {
		r := &audit.Record{Request: &audit.Request{Host: "api.example.com", Method: "GET", Path: "/v1/invoices"}, Decision: &audit.Decision{Verdict: "deny"}}
		if err := s.Deny(r); err != nil {
			t.Fatal(err)
		}
	}
}

// arrival is a line as the file exporter wrote it.
type arrival struct{ body, epoch, chain, evident string }

// arrived reads what came, waiting until there are want lines.
func arrived(t *testing.T, path string, want int) (got map[uint64]arrival, again int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		got, again = read(t, path)
		if len(got) >= want || time.Now().After(deadline) {
			return got, again
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func read(t *testing.T, path string) (map[uint64]arrival, int) {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, again := map[uint64]arrival{}, 0
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		var doc struct {
			ResourceLogs []struct {
				ScopeLogs []struct {
					LogRecords []struct {
						Body       struct{ StringValue string }
						Attributes []struct {
							Key   string
							Value struct {
								StringValue string
								IntValue    string
								BoolValue   *bool
							}
						}
					}
				}
			}
		}
		if err := json.Unmarshal(sc.Bytes(), &doc); err != nil {
			continue // being written
		}
		for _, rl := range doc.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				for _, lr := range sl.LogRecords {
					a, seq := arrival{body: lr.Body.StringValue}, uint64(0)
					for _, kv := range lr.Attributes {
						switch kv.Key {
						case "attache.epoch":
							a.epoch = kv.Value.StringValue
						case "attache.chain":
							a.chain = kv.Value.StringValue
						case "attache.sequence":
							seq, _ = strconv.ParseUint(kv.Value.IntValue, 10, 64)
						case "attache.tamper_evident":
							if kv.Value.BoolValue != nil {
								a.evident = strconv.FormatBool(*kv.Value.BoolValue)
							}
						}
					}
					if had, ok := got[seq]; ok {
						again++
						if had != a {
							t.Errorf("sequence %d came twice and differs", seq)
						}
					}
					got[seq] = a
				}
			}
		}
	}
	return got, again
}
