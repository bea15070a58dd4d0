package intercept_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/intercept"
)

// handshake connects over loopback and returns both sides' verdicts.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	serverErr := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			serverErr <- err
			return
		}
		s := tls.Server(c, server)
		err = s.HandshakeContext(t.Context())
		if err == nil {
			_, err = s.Write([]byte("x")) // carries the session ticket along
		}
		serverErr <- err
		_ = s.Close()
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	clientErr := c.HandshakeContext(t.Context())
	if clientErr == nil {
		_, clientErr = io.ReadAll(c)
	}
	state := c.ConnectionState()
	_ = raw.Close()
	return state, <-serverErr, clientErr
}

func newCA(t *testing.T, now func() time.Time) (*intercept.CA, *x509.CertPool) {
	t.Helper()
	ca, err := intercept.New(now, 4)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.PEM()) {
		t.Fatal("the PEM holds no certificate")
	}
	return ca, pool
}

func config(t *testing.T, ca *intercept.CA, name string) *tls.Config {
	t.Helper()
	c, err := ca.Config(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLeafCarriesExactlyTheName(t *testing.T) {
	ca, pool := newCA(t, nil)
	for _, name := range []string{"api.example.com", "127.0.0.1", "2001:db8::1"} {
		state, serverErr, err := handshake(t, config(t, ca, name), &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil || serverErr != nil {
			t.Fatalf("%s: client %v, server %v", name, err, serverErr)
		}
		leaf := state.PeerCertificates[0]
		if n := len(leaf.DNSNames) + len(leaf.IPAddresses); n != 1 || leaf.Subject.CommonName != "" || leaf.IsCA {
			t.Errorf("%s: the leaf carries %v %v %q, CA %v", name, leaf.DNSNames, leaf.IPAddresses, leaf.Subject.CommonName, leaf.IsCA)
		}
		if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" {
			t.Errorf("%s: got version %x and protocol %q", name, state.Version, state.NegotiatedProtocol)
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 26*time.Hour {
			t.Errorf("%s: the leaf lives %v", name, life)
		}
	}
}

func TestOtherSNIIsRefused(t *testing.T) {
	ca, pool := newCA(t, nil)
	cfg := config(t, ca, "api.example.com")
	_, serverErr, err := handshake(t, cfg, &tls.Config{RootCAs: pool, ServerName: "other.example.com"})
	if err == nil || !errors.Is(serverErr, intercept.ErrName) {
		t.Errorf("client %v, server %v, want ErrName", err, serverErr)
	}
	// Without SNI the CONNECT name's leaf is shown.
	state, serverErr, err := handshake(t, cfg, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // looks at the leaf itself
	if err != nil || serverErr != nil {
		t.Fatalf("without SNI: client %v, server %v", err, serverErr)
	}
	if err := state.PeerCertificates[0].VerifyHostname("api.example.com"); err != nil {
		t.Error(err)
	}
	if _, serverErr, err := handshake(t, cfg, &tls.Config{RootCAs: pool, ServerName: "API.example.com"}); err != nil || serverErr != nil {
		t.Errorf("SNI in capitals: client %v, server %v", err, serverErr)
	}
	if _, _, err := handshake(t, cfg, &tls.Config{RootCAs: pool, ServerName: "api.example.com", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil { //nolint:gosec // that is the point
		t.Error("TLS 1.1 passed")
	}
}

func TestSessionsResumeForTheSameHostOnly(t *testing.T) {
	ca, pool := newCA(t, nil)
	cache := tls.NewLRUClientSessionCache(8)
	client := func(name string) *tls.Config {
		return &tls.Config{RootCAs: pool, ServerName: name, ClientSessionCache: sameKey{cache}}
	}
	a, b := config(t, ca, "a.example"), config(t, ca, "b.example")
	for i, want := range []bool{false, true} {
		state, serverErr, err := handshake(t, a, client("a.example"))
		if err != nil || serverErr != nil || state.DidResume != want {
			t.Fatalf("handshake %d: resumed %v, want %v (%v, %v)", i, state.DidResume, want, err, serverErr)
		}
	}
	// b must not take a's ticket: the keys are apart.
	if state, _, _ := handshake(t, b, client("b.example")); state.DidResume {
		t.Error("a ticket of one host resumed a session with another")
	}
	if again := config(t, ca, "a.example"); again != a {
		t.Error("the host's config is not kept, so no session could be resumed")
	}
}

// sameKey offers one host's ticket to every other.
type sameKey struct{ tls.ClientSessionCache }

func (s sameKey) Get(string) (*tls.ClientSessionState, bool) { return s.ClientSessionCache.Get("k") }
func (s sameKey) Put(_ string, cs *tls.ClientSessionState)   { s.ClientSessionCache.Put("k", cs) }

func TestLeafIsRenewedBeforeItExpires(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	ca, _ := newCA(t, func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	cfg := config(t, ca, "a.example")
	first, err := cfg.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after time.Duration
		same  bool
	}{{17 * time.Hour, true}, {19 * time.Hour, false}} {
		mu.Lock()
		now = first.Leaf.NotBefore.Add(time.Hour + tt.after)
		mu.Unlock()
		got, err := cfg.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if (got == first) != tt.same {
			t.Errorf("after %v: same leaf is %v, want %v", tt.after, got == first, tt.same)
		}
	}
}

func TestOneLeafForManyCallers(t *testing.T) {
	ca, _ := newCA(t, nil)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := ca.Config("a.example"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := ca.Issued(); n != 1 {
		t.Errorf("%d leaves were signed, want 1", n)
	}
	// The cache is bounded at 4: an evicted host is signed again.
	for _, n := range []string{"b", "c", "d", "e", "a.example"} {
		config(t, ca, n)
	}
	if n := ca.Issued(); n != 6 {
		t.Errorf("%d leaves were signed, want 6", n)
	}
}

func TestRootsDiffer(t *testing.T) {
	a, _ := newCA(t, nil)
	b, _ := newCA(t, nil)
	if a.Certificate().Equal(b.Certificate()) || a.Certificate().Subject.String() == b.Certificate().Subject.String() {
		t.Error("two starts made roots that cannot be told apart")
	}
	if c := a.Certificate(); !c.IsCA || !c.MaxPathLenZero || len(c.SubjectKeyId) == 0 {
		t.Error("the root lacks what strict verifiers ask for")
	}
}
