package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"

	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/peer"
)

func trimSpace(b []byte) string { return strings.TrimSpace(string(b)) }

func unique(names ...string) (out []string) {
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// openStore opens the record store, whichever role needs it first. It is closed
// when the program ends.
func (h *host) openStore(ctx context.Context) (*store.DB, error) {
	if h.recordsIn != nil {
		return h.recordsIn, nil
	}
	at, err := h.storeURL()
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, at, store.Options{Logger: h.log})
	if err != nil {
		return nil, fmt.Errorf("record store: %w", err)
	}
	h.recordsIn = db
	return db, nil
}

// closeStore closes the store, if any role opened it.
func (h *host) closeStore() {
	if h.recordsIn == nil {
		return
	}
	if err := h.recordsIn.Close(); err != nil {
		h.log.Error("record store not closed", "cause", err)
	}
}

// addCollector takes the records of the cluster's producers.
func addCollector(ctx context.Context, h *host) error {
	db, err := h.openStore(ctx)
	if err != nil {
		return err
	}
	config, authorities, err := h.recordsTLS(ctx)
	if err != nil {
		return err
	}
	pods, err := watchPods(ctx, h.mgr.GetCache(), h.namespace)
	if err != nil {
		return err
	}
	c, err := collector.New(collector.Config{
		Store: db, Record: h.trail.Write, Authorities: authorities, Namespace: h.namespace, PodName: pods.name, Registry: h.registry, Log: h.log,
	})
	if err != nil {
		return err
	}
	h.collectorOf = c
	if err := h.keep(ctx, c, db, pods); err != nil {
		return err
	}
	config = collector.ServerTLS(config)
	if err := h.run(func(ctx context.Context) error { return h.serveCollector(ctx, c, config) }); err != nil {
		return err
	}
	return h.run(func(ctx context.Context) error {
		if err := serveHTTP(ctx, h.collectorHTTPListen, config.Clone(), newServer(c.Handler(), h.log)); err != nil {
			return fmt.Errorf("collector over HTTP: %w", err)
		}
		return nil
	})
}

// serveCollector serves gRPC until ctx ends.
func (h *host) serveCollector(ctx context.Context, c *collector.Collector, config *tls.Config) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", h.collectorListen)
	if err != nil {
		return fmt.Errorf("listen for records: %w", err)
	}
	s := grpc.NewServer(append(apiOptions(config), collector.ServerOptions()...)...)
	c.Register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("collector: %w", err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(stopTimeout/4, s.Stop)
	defer timer.Stop()
	s.GracefulStop()
	<-done
	return nil
}

// recordsTLS is the certificate of the collector's ports and the authorities of
// who comes there: from the folder of a Secret that the issuer hands out, or of
// the keys of this replica itself.
func (h *host) recordsTLS(ctx context.Context) (*tls.Config, func() (*x509.CertPool, error), error) {
	if read := h.handedOut(); read != nil {
		h.health.add("certificate of the collector", func() error { _, _, err := read(); return err })
		authorities := func() (*x509.CertPool, error) { _, pool, err := read(); return pool, err }
		return peer.ServerTLS(func() (*tls.Certificate, error) { c, _, err := read(); return c, err }, authorities), authorities, nil
	}
	if !h.holdsKeys() {
		return nil, nil, fmt.Errorf("%w: --audit-cert-secret or --audit-cert-dir is missing; without a role that holds the authority's keys the collector gets its certificate there", errUsage)
	}
	k, err := h.keys(ctx)
	if err != nil {
		return nil, nil, err
	}
	return k.ServerTLS(h.names()...), k.Clients, nil
}

// handedOut reads the certificate that the issuer hands out; nil where this
// replica makes its own.
func (h *host) handedOut() func() (*tls.Certificate, *x509.CertPool, error) {
	switch {
	case h.auditCertDir != "":
		return (&fileTLS{dir: h.auditCertDir}).read
	case h.auditCert != "" && !h.holdsKeys():
		return (&secretTLS{client: h.mgr.GetAPIReader(), namespace: h.namespace, name: h.auditCert}).read
	}
	return nil
}

// fileTLS reads a handed out Secret, which the kubelet keeps up to date.
type fileTLS struct {
	dir string

	mu   sync.Mutex // guards all below
	at   time.Time
	cert *tls.Certificate
	pool *x509.CertPool
}

// filesFor is how long what was read is taken for what is there.
const filesFor = 10 * time.Second

// read returns what the folder has. An error of it is one of now; what was
// read before is used as long as the certificate is good.
func (f *fileTLS) read() (*tls.Certificate, *x509.CertPool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cert != nil && time.Since(f.at) < filesFor {
		return f.cert, f.pool, nil
	}
	cert, pool, err := f.load()
	if err != nil {
		if f.cert != nil && time.Now().Before(f.cert.Leaf.NotAfter) {
			return f.cert, f.pool, nil
		}
		return nil, nil, fmt.Errorf("certificate in %s: %w; the control plane's role issuer keeps it", f.dir, err)
	}
	f.cert, f.pool, f.at = cert, pool, time.Now()
	return cert, pool, nil
}

func (f *fileTLS) load() (*tls.Certificate, *x509.CertPool, error) {
	var data [3][]byte
	for i, name := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey, issuer.ClientsKey} {
		var err error
		if data[i], err = os.ReadFile(filepath.Join(f.dir, name)); err != nil {
			return nil, nil, err
		}
	}
	return servingPair(data[0], data[1], data[2])
}

// servingPair reads a certificate with its key, and the roots of who connects.
func servingPair(certificate, key, clients []byte) (*tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, nil, errors.New("there is none yet, or it cannot be read") // the cause says no more
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(clients) {
		return nil, nil, errors.New("has no roots of clients")
	}
	if time.Now().After(cert.Leaf.NotAfter) {
		return nil, nil, fmt.Errorf("expired at %s", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &cert, pool, nil
}
