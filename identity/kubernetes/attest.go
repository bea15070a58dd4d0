package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/internal/secret"
)

// MaxSkew is how far clocks may differ before it is said.
const MaxSkew = 30 * time.Second

const (
	callTimeout = 10 * time.Second
	maxToken    = 16 << 10
	// The startup probe waits two minutes: until the first answer attempts are
	// never further apart than firstWait.
	leastWait   = 250 * time.Millisecond
	firstWait   = 5 * time.Second
	longestWait = time.Minute
)

// Run attests the pod, renews its identity at half of its life, and keeps
// trying when that fails, until ctx ends. A refusal ends the identity at once;
// an unreachable control plane does not, before it expires.
func (s *Source) Run(ctx context.Context) error {
	wait := leastWait
	for {
		life, err := s.attest(ctx)
		var pause time.Duration
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			wait, pause = leastWait, life/2-jitter(life/20)
		default:
			s.failed(ctx, err)
			longest := longestWait
			if s.state.Load() == nil {
				longest = firstWait
			}
			wait = min(wait, longest)
			pause = wait/2 + jitter(wait/2)
			wait *= 2
		}
		if !s.wait(ctx, pause) {
			return nil
		}
	}
}

// wait returns after d, or before if the pod has another certificate; false:
// ctx ended.
func (s *Source) wait(ctx context.Context, d time.Duration) bool {
	end := time.Now().Add(d)
	for {
		left := time.Until(end)
		if s.cfg.CertificateFile != "" {
			left = min(left, certificatePoll)
		}
		t := time.NewTimer(left)
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
		if !time.Now().Before(end) || s.cfg.CertificateFile != "" && s.replaced() {
			return true
		}
	}
}

// jitter is a random duration below d, so that a thousand sidecars do not come
// at once.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(d)))
	if err != nil {
		return 0 // never (crypto/rand, Go 1.24)
	}
	return time.Duration(n.Int64())
}

// failed notes an attempt that gave nothing.
func (s *Source) failed(ctx context.Context, err error) {
	no := refused(err)
	if no {
		s.lose()
	}
	s.mu.Lock()
	was := s.last
	s.last, s.denied = err, no
	s.mu.Unlock()
	if was == nil || was.Error() != err.Error() {
		s.cfg.Log.WarnContext(ctx, "pod not attested; trying again", "refused", no, "error", err)
	}
}

// refused reports an answer that is about this pod, and not about the control
// plane's or the network's state.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		return true
	}
	return false
}

// lose ends the identity now: what is in hand is not used any more.
func (s *Source) lose() {
	for {
		st := s.state.Load()
		if st == nil {
			return
		}
		gone := *st
		gone.until = time.Time{}
		if s.state.CompareAndSwap(st, &gone) {
			s.forget()
			return
		}
	}
}

// attest asks once, and returns how long the new SVID lives.
func (s *Source) attest(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if s.cfg.CertificateFile != "" {
		return s.attestCertificate(ctx)
	}
	tok, err := s.readToken()
	if err != nil {
		return 0, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: Binding(tok.Reveal(), s.instance)},
	}, s.key)
	if err != nil {
		return 0, fmt.Errorf("make certificate request: %w", err)
	}
	// A connection of its own: it presents the SVID of now.
	conn, err := s.dial()
	if err != nil {
		return 0, err
	}
	return s.ask(ctx, conn, &controlpb.AttestRequest{Token: tok.Reveal(), Csr: csr, Instance: s.instance}, nil)
}

// ask sends an attestation and takes its answer; own is the SVID that the pod
// has already, nil if the answer brings it.
func (s *Source) ask(ctx context.Context, conn *grpc.ClientConn, req *controlpb.AttestRequest, own *x509svid.SVID) (time.Duration, error) {
	defer func() { _ = conn.Close() }()
	sent := time.Now()
	r, err := controlpb.NewIdentityClient(conn).Attest(ctx, req)
	if err != nil {
		return 0, fmt.Errorf("attest at %s: %w", s.cfg.Control, err)
	}
	got := time.Now()
	st, err := s.read(r, own, sent, got)
	if err != nil {
		return 0, fmt.Errorf("answer of %s: %w", s.cfg.Control, err)
	}
	s.accept(ctx, st, got.Sub(sent))
	return st.until.Sub(got), nil
}

func (s *Source) readToken() (secret.Value, error) {
	f, err := os.Open(s.cfg.TokenFile)
	if err != nil {
		return secret.Value{}, fmt.Errorf("read the pod's token: %w", err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxToken+1)
	n, err := f.Read(b)
	if err != nil || n > maxToken {
		return secret.Value{}, fmt.Errorf("read the pod's token: %s is empty or longer than %d bytes", s.cfg.TokenFile, maxToken)
	}
	return secret.New(strings.TrimSpace(string(b[:n]))), nil
}

// read checks an answer: it is about our key and our pod, and its chain ends
// in its roots.
func (s *Source) read(r *controlpb.AttestResponse, own *x509svid.SVID, sent, got time.Time) (*state, error) {
	if r.GetWorkload() == nil || r.GetServerTime() == nil || own == nil && len(r.GetCertificates()) == 0 || len(r.GetRoots()) == 0 {
		return nil, errors.New("is incomplete")
	}
	w, err := FromProto(r.GetWorkload())
	if err != nil {
		return nil, err
	}
	if s.cfg.PodUID != "" && r.GetWorkload().GetPodUid() != s.cfg.PodUID {
		return nil, errors.New("is about another pod")
	}
	svid := own
	if svid == nil {
		certs, err := parse(r.GetCertificates())
		if err != nil {
			return nil, err
		}
		svid = &x509svid.SVID{Certificates: certs, PrivateKey: s.key}
	}
	certs := svid.Certificates
	roots, err := parse(r.GetRoots())
	if err != nil {
		return nil, err
	}
	now := r.GetServerTime().AsTime()
	bundle := x509bundle.FromX509Authorities(w.ID.TrustDomain(), roots)
	id, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, err
	}
	if pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || id != w.ID || !pub.Equal(svid.PrivateKey.Public()) {
		return nil, errors.New("has an X.509-SVID of another workload or key")
	}
	// Lives are counted from the middle of the call, on our monotonic clock: a
	// clock that jumps, here or there, makes none longer.
	middle := sent.Add(got.Sub(sent) / 2)
	return &state{
		svid:   &x509svid.SVID{ID: id, Certificates: certs, PrivateKey: svid.PrivateKey},
		bundle: bundle, workload: w,
		until: middle.Add(certs[0].NotAfter.Sub(now)),
		skew:  now.Sub(middle.Round(0)),
	}, nil
}

func parse(ders [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, d := range ders {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// accept makes st the current identity.
func (s *Source) accept(ctx context.Context, st *state, took time.Duration) {
	old := s.state.Swap(st)
	s.mu.Lock()
	again := s.last != nil
	s.last, s.denied = nil, false
	s.mu.Unlock()
	if old == nil || again {
		s.cfg.Log.InfoContext(ctx, "pod attested", "spiffe_id", st.workload.ID.String(), "until", st.svid.Certificates[0].NotAfter)
	}
	if st.skew.Abs() > MaxSkew+took/2 && (old == nil || old.skew.Abs() <= MaxSkew) {
		s.cfg.Log.WarnContext(ctx, "the clocks of this node and of the control plane differ; tokens may be refused as not yet valid or expired", "ahead_seconds", int(st.skew.Seconds()))
	}
	if old == nil || old.workload.PostureDigest() != st.workload.PostureDigest() {
		s.forget()
		s.cfg.Updated(st.workload)
	}
	if old == nil {
		close(s.first)
	}
}

// dial makes a connection to the control plane.
func (s *Source) dial() (*grpc.ClientConn, error) { return s.dialWith(s.TLS()) }

// dialWith makes a connection to the control plane. No proxy of the
// environment's is asked: this is the proxy.
func (s *Source) dialWith(c *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+s.cfg.Control,
		grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithContextDialer(s.cfg.Dial),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.cfg.Control, err)
	}
	return conn, nil
}
