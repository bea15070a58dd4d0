package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/internal/storeurl"
)

// oneRole is a manager that has no cluster, and what a role gave it to run.
type oneRole struct {
	manager.Manager
	runs manager.Runnable
}

func (m *oneRole) Add(r manager.Runnable) error { m.runs = r; return nil }
func (*oneRole) GetCache() cache.Cache          { return nil }

// handOut writes a certificate for 127.0.0.1 as a Secret's files, and returns a
// client that knows it.
func handOut(t *testing.T, dir string) *http.Client {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	pair := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	for name, text := range map[string][]byte{"tls.crt": cert, issuer.ClientsKey: cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s.Client()
}

// Failed log-ins that were only counted are recorded when the replica ends,
// though nobody asks for anything any more.
func TestReviewPageTellsAllRefusals(t *testing.T) {
	dir := t.TempDir()
	client := handOut(t, dir)
	at := "127.0.0.1:" + freePort(t)
	conf := filepath.Join(dir, "audit.yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, reviewConfig, "https://"+at, "https://login.example.com", "team"), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := trail.Open(trail.Options{Dir: filepath.Join(dir, "own"), Replica: "one"})
	if err != nil {
		t.Fatal(err)
	}
	role := &oneRole{}
	h := &host{log: slog.New(slog.DiscardHandler), mgr: role}
	h.trail, h.trustDomain, h.uiListen = own, "cluster.test", at
	h.auditConfig, h.auditCertDir, h.store = conf, dir, storeurl.Flag("sqlite:"+filepath.Join(dir, "records.db"))
	if err := addUI(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	defer h.closeStore()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- role.runs.Start(ctx) }()
	visit := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+at+"/login/finish?code=guess&state=guess", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusUnauthorized {
			t.Fatalf("a log-in that nobody began: %d, %v", res.StatusCode, err)
		}
		return nil
	}
	eventually(t, "the page is served", visit)
	const refused = 200
	for range refused - 1 {
		if err := visit(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	if records, told := failedLogins(t, filepath.Join(dir, "own")); told != refused || records == refused {
		t.Errorf("%d records tell of %d refusals, want %d", records, told, refused)
	}
}

// failedLogins counts records of a spool, and what they stand for.
func failedLogins(t *testing.T, dir string) (records, told int) {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "records.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ImportSpool(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	p, err := db.Search(t.Context(), store.Query{Limit: store.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Rows {
		if r.Event != nil && r.Event.Name == audit.EventLoginFailed {
			more, _ := strconv.Atoi(r.Event.Fields["unrecorded"]) // "": 0
			records, told = records+1, told+1+more
		}
	}
	return records, told
}
