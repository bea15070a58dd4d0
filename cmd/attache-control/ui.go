package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/internal/secret"
)

// addUI serves the review page.
func addUI(ctx context.Context, h *host) error {
	f, err := readAuditFile(h.auditConfig)
	if err != nil {
		return err
	}
	if f.UI == nil {
		return fmt.Errorf("%w: --audit-config has no ui; the review page needs a log-in", errUsage)
	}
	db, err := h.openStore(ctx)
	if err != nil {
		return err
	}
	c, err := f.UI.config()
	if err != nil {
		return err
	}
	c.Store, c.Record, c.Log = db, h.trail.Write, h.log
	if c.Policies, err = h.pagePolicies(); err != nil {
		return err
	}
	if f.UI.Revoke {
		c.Revoke = h.orderRevocation
	}
	s, err := ui.New(c)
	if err != nil {
		return err
	}
	config, err := h.pageTLS(ctx)
	if err != nil {
		return err
	}
	server := newServer(s, h.log)
	server.WriteTimeout, server.ReadTimeout = 0, 0 // live pages and exports have bounds of their own
	return h.run(func(ctx context.Context) error {
		stop := s.Sweep(ctx)
		defer stop() // nobody asks any more, and the trail is open still
		if err := serveHTTP(ctx, h.uiListen, config, server); err != nil {
			return fmt.Errorf("review page: %w", err)
		}
		return nil
	})
}

// pageTLS is the page's certificate, the collector's. Nobody presents one
// there: people log in.
func (h *host) pageTLS(ctx context.Context) (*tls.Config, error) {
	if read := h.handedOut(); read != nil {
		return &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { c, _, err := read(); return c, err },
		}, nil
	}
	k, err := h.keys(ctx)
	if err != nil {
		return nil, err
	}
	return k.WebTLS(h.names()...), nil
}

// config is what of the file the page takes.
func (p *page) config() (ui.Config, error) {
	c := ui.Config{OIDC: &ui.OIDC{
		Issuer: p.OIDC.Issuer, ClientID: p.OIDC.ClientID, URL: p.URL, Scopes: p.OIDC.Scopes, GroupsClaim: p.OIDC.GroupsClaim, Grants: p.Grants,
	}}
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" {
		return c, fmt.Errorf("--audit-config: ui.url is %q; must be https://HOST, as people reach the page", p.URL)
	}
	c.Hosts = unique(append([]string{u.Host}, p.Hosts...)...)
	if p.OIDC.ClientSecretFile != "" {
		text, err := os.ReadFile(p.OIDC.ClientSecretFile)
		if err != nil {
			return c, fmt.Errorf("--audit-config: ui.oidc.clientSecretFile: %w", err)
		}
		v := secret.New(trimSpace(text))
		c.OIDC.ClientSecret = &v
	}
	if p.SessionKeyFile != "" {
		if c.SessionKey, err = os.ReadFile(p.SessionKeyFile); err != nil {
			return c, fmt.Errorf("--audit-config: ui.sessionKeyFile: %w", err)
		}
	}
	return c, nil
}

// orderRevocation makes the Revocation that somebody ordered on the page. Who
// that is stands in the page's own record, and in the reason; for the API
// server it is this program.
func (h *host) orderRevocation(ctx context.Context, o ui.Order) (string, error) {
	s := runtime.NewScheme()
	if err := crd.AddToScheme(s); err != nil {
		return "", err
	}
	c, err := client.New(h.mgr.GetConfig(), client.Options{Scheme: s, HTTPClient: (*http.Client)(nil)})
	if err != nil {
		return "", fmt.Errorf("reach the cluster: %w", err)
	}
	if o.Handle == "" && o.Task == "" {
		return "", errors.New("names no credential and no task")
	}
	r := &crd.Revocation{ObjectMeta: metav1.ObjectMeta{GenerateName: "page-"}, Spec: v1alpha1.RevocationSpec{Handle: o.Handle, Task: o.Task, Reason: o.Reason}}
	if err := c.Create(ctx, r); err != nil {
		return "", fmt.Errorf("make the Revocation: %w", err)
	}
	return "Revocation " + r.Name + " is made; kubectl get revocation " + r.Name + " shows who has carried it out", nil
}
