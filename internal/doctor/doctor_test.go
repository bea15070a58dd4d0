package doctor_test

import (
	"bytes"
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
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/internal/doctor"
	"github.com/attache-dev/attache/internal/trust"
)

// The name resolves nowhere: only the proxy can answer for it.
const probeHost = "doctor.attache.invalid"

// interceptor is a CONNECT proxy that ends TLS for probeHost with a
// certificate of its own CA and answers 404.
type interceptor struct {
	url   string
	caPEM []byte
	seen  atomic.Int64
}

func newInterceptor(t *testing.T) *interceptor {
	t.Helper()
	ca, caKey, caPEM := newCA(t, "Attaché test root")
	leaf := newLeaf(t, ca, caKey)
	p := &interceptor{caPEM: caPEM}
	cfg := &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12}
	inner := &http.Server{TLSConfig: cfg, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.seen.Add(1)
		http.Error(w, "nothing here", http.StatusNotFound)
	})}
	conns := &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = inner.ServeTLS(conns, "", "") // ends with Close
	}()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	outer := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || !strings.HasPrefix(r.Host, probeHost+":") {
			http.Error(w, "refused", http.StatusForbidden)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		conns.conns <- conn
	})}
	go func() { _ = outer.Serve(ln) }() // ends with Close
	t.Cleanup(func() {
		_ = outer.Close()
		_ = inner.Close()
		<-served
	})
	p.url = "http://" + ln.Addr().String()
	return p
}

// connListener hands out connections that came by CONNECT.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error   { close(l.done); return nil }
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

func newCA(t *testing.T, name string) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newLeaf(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{probeHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// options prepare a doctor's run through p with the given CA in the bundle.
func options(t *testing.T, p *interceptor, caPEM []byte, node trust.NodeVersion) doctor.Options {
	t.Helper()
	dir := t.TempDir()
	bundle, err := trust.WriteBundle(dir+"/trust", caPEM)
	if err != nil {
		t.Fatal(err)
	}
	// The user's own HOME: runtimes keep their toolchains there.
	parent := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	env, _, err := trust.Env(trust.Options{Parent: parent, Proxy: p.url, Bundle: bundle, Node: node})
	if err != nil {
		t.Fatal(err)
	}
	return doctor.Options{
		Env: env, URL: "https://" + probeHost, Dir: dir, Probe: doctor.Direct, Timeout: 20 * time.Second,
		Seen: func() int { return int(p.seen.Load()) },
	}
}

// fast are the clients that start quickly; ATTACHE_DOCTOR=all tries the rest.
func fast() []string {
	if os.Getenv("ATTACHE_DOCTOR") == "all" {
		return nil
	}
	return []string{"curl", "wget", "git", "python urllib", "python requests", "python httpx", "python boto3", "node", "aws CLI"}
}

// findNode asks the node on the PATH for its version.
func findNode(t *testing.T) (trust.NodeVersion, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", "--version")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return trust.NodeVersion{}, false
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := trust.ParseNodeVersion(string(out))
	if err != nil {
		t.Fatal(err)
	}
	return v, true
}

func TestRuntimesReachTheProxy(t *testing.T) {
	p := newInterceptor(t)
	node, hasNode := findNode(t)
	o := options(t, p, p.caPEM, node)
	o.Clients = fast()
	findings, err := doctor.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	works := 0
	for _, f := range findings {
		t.Logf("%-28s %-8s %5dms %s | %s", f.Client, f.Status, f.Millis, f.Why, f.Hint)
		switch {
		case strings.HasPrefix(f.Client, "node") && hasNode && !node.UsesEnvProxy():
			if f.Status != doctor.Fails || f.Why != "it ignores the proxy variables" || !strings.Contains(f.Hint, "22.21") {
				t.Errorf("%s under node %s: got %+v, want the hint to use node 22.21", f.Client, node, f)
			}
		case f.Status == doctor.Fails:
			t.Errorf("%s: got %s (%s), want works or missing", f.Client, f.Status, f.Why)
		case f.Status == doctor.Works:
			works++
		}
	}
	if _, err := exec.LookPath("curl"); err == nil && works == 0 {
		t.Error("no client works, not even curl")
	}
}

func TestUntrustedCAIsNamed(t *testing.T) {
	p := newInterceptor(t)
	_, _, other := newCA(t, "another root")
	o := options(t, p, other, trust.NodeVersion{})
	o.Clients = []string{"curl", "git", "wget"}
	findings, err := doctor.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Status != doctor.Missing && (f.Status != doctor.Fails || f.Why != "it does not trust the bundle") {
			t.Errorf("%s with a bundle that lacks the CA: got %s (%s)", f.Client, f.Status, f.Why)
		}
	}
}

func TestJudgement(t *testing.T) {
	tests := []struct {
		name   string
		res    doctor.Result
		seen   int
		status doctor.Status
		why    string
	}{
		{"answer through the proxy", doctor.Result{}, 1, doctor.Works, ""},
		{"answer around the proxy", doctor.Result{}, 0, doctor.Fails, "it got an answer, but not through the proxy"},
		{"proxy password", doctor.Result{Code: 56, Output: "curl: (56) CONNECT tunnel failed, response 407"}, 0, doctor.Fails, "it does not send the proxy's password"},
		{"resolver", doctor.Result{Code: 6, Output: "Could not resolve host: x"}, 0, doctor.Fails, "it ignores the proxy variables"},
		{"refused", doctor.Result{Code: 7, Output: "Failed to connect to 127.0.0.1"}, 0, doctor.Fails, "nothing answers at the proxy's address"},
		{"timeout", doctor.Result{Code: -1, Err: context.DeadlineExceeded}, 0, doctor.Fails, "the probe did not end well: context deadline exceeded"},
		{"unknown", doctor.Result{Code: 9, Output: "first\nodd \x1b[31mtrouble"}, 0, doctor.Fails, "exit status 9: odd  [31mtrouble"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/curl", nil, 0o755); err != nil {
				t.Fatal(err)
			}
			count := 0
			findings, err := doctor.Run(t.Context(), doctor.Options{
				Env: []string{"PATH=" + dir}, URL: "https://x.invalid", Dir: dir, Clients: []string{"curl"},
				Seen: func() int { return count },
				Probe: func(context.Context, []string, []string) doctor.Result {
					count += tt.seen
					return tt.res
				},
			})
			if err != nil || len(findings) != 1 {
				t.Fatalf("got %v, %v, want one finding", findings, err)
			}
			if f := findings[0]; f.Status != tt.status || f.Why != tt.why {
				t.Errorf("got %s %q, want %s %q", f.Status, f.Why, tt.status, tt.why)
			}
		})
	}
}

func TestReports(t *testing.T) {
	findings := []doctor.Finding{{Client: "curl", Status: doctor.Works}, {Client: "deno", Status: doctor.Missing, Why: "deno is not on PATH"}}
	var table bytes.Buffer
	if err := doctor.Table(&table, findings); err != nil {
		t.Fatal(err)
	}
	if got := table.String(); !strings.Contains(got, "deno    missing  deno is not on PATH") {
		t.Errorf("got table\n%s", got)
	}
	b, err := json.Marshal(findings[0])
	if err != nil || string(b) != `{"client":"curl","status":"works","millis":0}` {
		t.Errorf("got %s, %v", b, err)
	}
}
