package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity"
	podidentity "github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/test/servers"
)

// TestIssuerBelowSPIRE: with --ca-source spire a pod of a real API server gets
// identities that a workload of a real SPIRE verifies by what its agent says.
func TestIssuerBelowSPIRE(t *testing.T) {
	s, err := servers.StartSPIRE(t.Context(), "cluster.test")
	if errors.Is(err, servers.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Entry(t.Context(), "/attache-control", "-downstream", "-x509SVIDTTL", "14400"); err != nil {
		t.Fatal(err)
	}
	x, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(s.Socket))) // waits for the agent to know
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	jwts, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(s.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer jwts.Close()

	p := startIssuer(t, "--ca-source=spire", "--spire-server="+s.Addr, "--spire-socket="+s.Socket)
	ns := p.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	set, err := issuer.NewSet(p.c, p.namespace, func(map[string]any) (string, error) { return "", nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := p.inject.Templates()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if err := set.Accept(t.Context(), m.Hash, m.Image); err != nil {
			t.Fatal(err)
		}
	}
	const address = "127.3.0.2"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(p.agent(t, ns, address)), 0o600); err != nil {
		t.Fatal(err)
	}
	pod, err := podidentity.New(podidentity.Config{
		Control: p.api, ControlCA: []byte(p.inject.ControlCA), TokenFile: file,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(ctx, "tcp", addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = pod.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = pod.Close() })
	wait, stop := context.WithTimeout(t.Context(), 90*time.Second)
	defer stop()
	if err := pod.Wait(wait); err != nil {
		t.Fatal(err)
	}
	svid, err := pod.X509(t.Context(), pod.Workload())
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(svid.Certificates, x); err != nil || id != pod.Workload().ID {
		t.Errorf("the X.509-SVID, by SPIRE's bundle: %v, %v", id, err)
	}
	if len(svid.Certificates) != 2 {
		t.Errorf("%d certificates; want the SVID and the intermediate", len(svid.Certificates))
	}
	if _, err := p.Kubectl(t.Context(), grant, "create", "-n", ns, "-f", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a JWT-SVID that SPIRE's workloads verify", func() error {
		j, err := pod.JWT(t.Context(), identity.JWTRequest{Workload: pod.Workload(), Audience: "https://api.example.com"})
		if err != nil {
			return err
		}
		got, err := jwtsvid.ParseAndValidate(j.Token.Reveal(), jwts, []string{"https://api.example.com"})
		if err == nil && got.ID != pod.Workload().ID {
			return fmt.Errorf("is for %s", got.ID)
		}
		return err
	})
}
