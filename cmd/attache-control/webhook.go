package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/status"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/webhook/certs"
	"github.com/attache-dev/attache/webhook/inject"
	"github.com/attache-dev/attache/webhook/server"
)

// addWebhook serves admission.
func addWebhook(ctx context.Context, h *host) error {
	for _, gvk := range server.Kinds() {
		if err := h.waitForKind(ctx, gvk); err != nil {
			return err
		}
	}
	nameservers, err := resolvers("/etc/resolv.conf")
	if err != nil {
		return err
	}
	set, err := h.templates()
	if err != nil {
		return err
	}
	m := server.NewMetrics()
	source, err := server.NewCluster(ctx, server.ClusterOptions{
		Cache: h.mgr.GetCache(), Live: h.mgr.GetAPIReader(),
		Fixed: server.Fixed{
			Image: h.image, ImagePullPolicy: h.imagePullPolicy,
			// The Service's port, wherever this process listens.
			Control:     fmt.Sprintf("%s.%s.svc:8443", h.service, h.namespace),
			Audit:       h.auditTo,
			TrustDomain: h.trustDomain,
			APIServers:  apiServers(os.Getenv), Nameservers: nameservers,
			PodCertificates: h.podCertificates(),
		},
		Roots: client.ObjectKey{Namespace: h.namespace, Name: h.caSecret},
		Check: func(b *api.Bundle) error {
			_, err := policy.Compile(b)
			return err
		},
		Accept:  h.accepter(set),
		Metrics: m, Log: h.log,
	})
	if err != nil {
		return err
	}
	queue := server.NewEventQueue(m, h.log)
	s, err := server.New(server.Options{Source: source, Validate: source.Validate, Events: queue.Add, Changed: h.changed, Admitted: h.admitted, Metrics: m, Log: h.log})
	if err != nil {
		return err
	}
	cert, err := h.webhookCertificate()
	if err != nil {
		return err
	}
	for _, c := range []prometheus.Collector{m, cert.Collector()} {
		if err := h.registry.Register(c); err != nil {
			return err
		}
	}
	h.health.add("webhook certificate", cert.Ready)
	h.health.add("webhook", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return source.Ready(ctx)
	})
	if err := h.run(func(ctx context.Context) error { return queue.Run(ctx, h.mgr.GetEventRecorder("attache-control")) }); err != nil {
		return err
	}
	return h.run(func(ctx context.Context) error {
		if err := serveHTTP(ctx, h.webhookListen, cert.TLS(), newServer(h.withAPIServer(s.Handler()), h.log)); err != nil {
			return fmt.Errorf("admission webhook: %w", err)
		}
		return nil
	})
}

// accepter adds the templates that admission makes to the accepted ones, and
// notes for the operator that they are the current ones, once for each change.
func (h *host) accepter(set *issuer.Set) func(context.Context, []inject.Template) error {
	var mu sync.Mutex
	var done string
	return func(ctx context.Context, list []inject.Template) error {
		key := fmt.Sprint(list)
		mu.Lock()
		defer mu.Unlock()
		if key == done {
			return nil
		}
		for _, t := range list {
			if err := set.Accept(ctx, t.Hash, t.Image); err != nil {
				return err
			}
		}
		members, err := set.List(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, a := range members {
			if slices.ContainsFunc(list, func(t inject.Template) bool { return t.Hash == a.Template && t.Image == a.Image }) {
				names = append(names, a.Name())
			}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{status.CurrentAnnotation: strings.Join(names, ",")}}})
		if err != nil {
			return err
		}
		c, err := h.live()
		if err != nil {
			return err
		}
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: issuer.TemplatesName, Namespace: h.namespace}}
		if err := c.Patch(ctx, cm, client.RawPatch(types.MergePatchType, patch)); err != nil {
			return fmt.Errorf("note the current templates: %w", err)
		}
		done = key
		return nil
	}
}

// webhookCertificate is made here, or read from where something else makes it.
func (h *host) webhookCertificate() (*certs.Certificate, error) {
	if h.webhookCertDir == "" {
		return certs.Rotate(h.mgr, certs.Options{
			Secret:  client.ObjectKey{Namespace: h.namespace, Name: h.webhookSecret},
			Service: h.service, Configuration: h.webhookConfiguration, ExtraNames: h.webhookNames, Log: h.log,
		})
	}
	cert, watch, err := certs.FromFiles(h.webhookCertDir)
	if err != nil {
		return nil, err
	}
	return cert, h.run(watch)
}

// waitForKind waits until the API server has a kind of ours, which a chart may
// install at the same time.
func (h *host) waitForKind(ctx context.Context, gvk schema.GroupVersionKind) error {
	const most = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for told := false; ; told = true {
		_, err := h.mgr.GetRESTMapper().RESTMapping(gvk.GroupKind(), gvk.Version)
		if err == nil {
			return nil
		}
		if !told {
			h.log.Warn("waiting for a custom resource definition", "kind", gvk.Kind, "err", err)
		}
		select {
		case <-ctx.Done():
			if meta.IsNoMatchError(err) {
				return fmt.Errorf("the API server has no %s; install Attaché's custom resource definitions", gvk)
			}
			return fmt.Errorf("ask for %s: %w", gvk, err)
		case <-tick.C:
		}
	}
}

// apiServers is the API server's Service, as the kubelet tells every pod.
func apiServers(env func(string) string) []netip.AddrPort {
	a, err := netip.ParseAddrPort(net.JoinHostPort(env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT")))
	if err != nil {
		return nil // not in a pod
	}
	return []netip.AddrPort{a}
}

// resolvers are the nameservers of this process.
func resolvers(file string) ([]netip.Addr, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("find the cluster's nameservers: %w", err)
	}
	defer f.Close()
	var list []netip.Addr
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		// A loopback resolver is this host's, not the pods'; so is one of a zone.
		if a, err := netip.ParseAddr(words[1]); err == nil && !a.IsLoopback() && a.Zone() == "" {
			list = append(list, a)
		}
	}
	return list, nil
}
