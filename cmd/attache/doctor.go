package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attache-dev/attache/internal/doctor"
	"github.com/attache-dev/attache/internal/run"
	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/version"
)

// doctorHost resolves nowhere but in the doctor's own proxy.
const doctorHost = "doctor.attache.example"

func doctorCommand(g *global) *cobra.Command {
	var inside, unsafeSameUser bool
	var clients []string
	var isolation string
	c := &cobra.Command{
		Use: "doctor [CLIENT...]", Short: "Try every runtime on this machine through Attaché",
		Long:    "Doctor runs each runtime it finds (curl, git, Python, Node, Go, Java, …) in the\nsandbox of attache run against a test server of its own and says what works.\nThe client named isolation is attache run --isolate itself.",
		Example: "  attache doctor\n  attache doctor curl node --output json",
		RunE: func(c *cobra.Command, args []string) error {
			if inside {
				return doctorInside(c, g, args, isolation)
			}
			clients = args
			if err := sandbox.Harden(); err != nil {
				return err
			}
			return doctorOutside(c.Context(), g, clients, unsafeSameUser)
		},
	}
	c.Flags().BoolVar(&inside, "inside", false, "")
	c.Flags().StringVar(&isolation, "isolation", "", "")
	for _, name := range []string{"inside", "isolation"} {
		if err := c.Flags().MarkHidden(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	c.Flags().BoolVar(&unsafeSameUser, "unsafe-same-user", false, "go on where the probes cannot be confined")
	return c
}

// isolationClient stands for attache run --isolate among the findings.
const isolationClient = "isolation"

// doctorInside is the child: it probes in the environment it was given. What
// it cannot probe from there it was told: isolation is empty if that works.
func doctorInside(c *cobra.Command, g *global, clients []string, isolation string) error {
	dir, err := os.MkdirTemp("", "attache-doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	found, err := doctor.Run(c.Context(), doctor.Options{Env: os.Environ(), URL: "https://" + doctorHost + "/doctor", Dir: dir, Probe: doctor.Direct, Clients: clients})
	if err != nil {
		return err
	}
	if len(clients) == 0 || slices.Contains(clients, isolationClient) {
		f := doctor.Finding{Client: isolationClient, Status: doctor.Works}
		if isolation != "" {
			f.Status, f.Why = doctor.Fails, isolation
		}
		found = append(found, f)
	}
	if g.json() {
		return writeJSON(c.OutOrStdout(), found)
	}
	return doctor.Table(c.OutOrStdout(), found)
}

// doctorOutside starts a test server, writes the documents that let it be
// called, and runs doctorInside behind the real data path.
func doctorOutside(ctx context.Context, g *global, clients []string, unsafeSameUser bool) error {
	dir, err := doctorDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	addr, ca, stop, err := doctorServer()
	if err != nil {
		return err
	}
	defer stop()
	config := filepath.Join(dir, "config")
	if err := os.Mkdir(config, 0o755); err != nil {
		return err
	}
	destination := `  destinations:
  - host: ` + doctorHost + `
    addresses: ["` + addr + `"]
    onlyCA: true
    caBundle: |
      ` + strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n      ") + "\n"
	// AWS SDKs fetch placeholder keys; no rule asks for the provider's sessions.
	doc := `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: doctor}
spec:
  aws: {roleARN: "arn:aws:iam::000000000000:role/doctor", region: us-east-1, doors: [container], endpoints: [{host: ` + doctorHost + `, service: s3}]}
` + destination + `---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: doctor}
spec:
` + destination + `  rules:
  - {name: doctor, hosts: [` + doctorHost + `], action: allow}
`
	if err := os.WriteFile(filepath.Join(config, "doctor.yaml"), []byte(doc), 0o644); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := g.logger(os.Stderr)
	if err != nil {
		return err
	}
	isolation := ""
	if err := run.Isolation(ctx); err != nil {
		isolation = err.Error()
	}
	status, err := run.Run(ctx, run.Options{
		Config: config, State: filepath.Join(dir, "state"), Name: "doctor", Quiet: true, Log: log, Version: version.Get().Version,
		UnsafeSameUser: unsafeSameUser, Command: append([]string{self, "doctor", "--inside", "--isolation", isolation, "--output", g.output, "--"}, clients...),
	})
	if err == nil && status != 0 {
		return exit(status)
	}
	return err
}

// doctorDir makes the folder of a visit. The admin socket's name below it has
// to fit into a socket address, of which some systems' temporary folders leave
// too little.
func doctorDir() (string, error) {
	const (
		room  = 103 // bytes of a socket's name on every system
		below = len("/attache-doctor-4294967295/state/run/0123456789abcdef0123456789abcdef/admin.sock")
	)
	parent := os.TempDir()
	if len(parent)+below > room {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "attache-doctor-")
}

// doctorServer answers every request with 200 over TLS.
func doctorServer() (addr, caPEM string, stop func(), err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: doctorHost}, DNSNames: []string{doctorHost},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "attache doctor") }),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}},
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { _ = srv.ServeTLS(ln, "", "") }()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return ln.Addr().String(), ca, func() { _ = srv.Close() }, nil
}
