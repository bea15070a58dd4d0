package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/internal/dataplane"
	localsinks "github.com/attache-dev/attache/internal/sinks"
	"github.com/attache-dev/attache/internal/version"
)

// keep looks after the store: lost producers, retention, sinks, checkpoints.
func (h *host) keep(ctx context.Context, c *collector.Collector, db *store.DB, pods *podsThere) error {
	f, err := readAuditFile(h.auditConfig)
	if err != nil {
		return err
	}
	if err := h.mgr.Add(&collector.Lost{Collector: c, Store: db, Opening: collector.OpeningOf(db), Attested: attested(db), Pods: pods.list}); err != nil {
		return err
	}
	if err := h.retain(f.Retention, db); err != nil {
		return err
	}
	if err := h.forward(f.Sinks, db); err != nil {
		return err
	}
	return h.checkpoint(ctx, f.Checkpoints, db)
}

// lead adds a function that one replica at a time runs.
func (h *host) lead(f func(context.Context) error) error { return h.mgr.Add(leading(f)) }

// leading is a function for the leader.
type leading func(context.Context) error

// Start implements manager.Runnable.
func (l leading) Start(ctx context.Context) error { return l(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (leading) NeedLeaderElection() bool { return true }

// retain removes what is too old, and records what it took.
func (h *host) retain(r retention, db *store.DB) error {
	want := store.Retention{Keep: duration(r.Keep), MaxBytes: r.MaxBytes}
	if want.Keep == 0 && want.MaxBytes == 0 {
		return nil
	}
	return h.lead(func(ctx context.Context) error {
		return h.forever(ctx, "records not removed by retention", store.RetainEvery, func(ctx context.Context) error {
			gone, err := db.Retain(ctx, want)
			lines := uint64(0)
			for _, g := range gone {
				lines += g.Last - g.Sequence + 1
			}
			if len(gone) > 0 {
				h.log.InfoContext(ctx, "records removed by retention", "epochs", len(gone), "lines", lines)
				err = errors.Join(err, h.trail.Write(ctx, &audit.Record{Event: &audit.Event{Name: audit.EventRetained, Fields: map[string]string{
					"epochs": strconv.Itoa(len(gone)), "lines": strconv.FormatUint(lines, 10), "keep": r.Keep, "max_bytes": strconv.FormatInt(r.MaxBytes, 10),
				}}}))
			}
			return err
		})
	})
}

// forward sends on what the store takes, to each sink at its own pace.
func (h *host) forward(sinks []v1alpha1.AuditSink, db *store.DB) error {
	checked, err := checkedSinks(sinks)
	if err != nil {
		return fmt.Errorf("--audit-config: %w", err)
	}
	open, err := dataplane.OpenSinks(v1alpha1.AuditConfig{Sinks: checked}, noSVID, map[string]string{"service.name": "attache"}, version.Get().Version, localsinks.Local(noSVID))
	if err != nil {
		return fmt.Errorf("--audit-config: %w", err)
	}
	for _, s := range open.List {
		// Forms that hold a whole call keep begins until their ends come.
		if k, ok := s.(interface{ UseState(dir string) error }); ok {
			dir := filepath.Join(h.auditDir+".sinks", s.Name())
			if err := errors.Join(os.MkdirAll(dir, 0o700), k.UseState(dir)); err != nil {
				return fmt.Errorf("sink %s: %w", s.Name(), err)
			}
		}
		sh := ship.New(ship.Config{
			Source: &collector.Forward{Store: db, Sink: s.Name()}, Sink: s, Log: h.log,
			Aside: (&refusedLines{sink: s.Name(), write: h.trail.Write, now: time.Now}).tell,
		})
		h.registry.MustRegister(forwarded(sh))
		if err := h.lead(func(ctx context.Context) error {
			if err := sh.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("sink %s: %w", s.Name(), err)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// refusedLines records what a sink refused for good: at once, and then at most
// once a minute with the sum, since a sink that refuses refuses much. The store
// has the lines.
type refusedLines struct {
	sink  string
	write func(context.Context, *audit.Record) error
	now   func() time.Time

	told  time.Time
	lines int // since
}

const refusedEvery = time.Minute

// tell is ship.Config.Aside, which is called by one goroutine.
func (f *refusedLines) tell(b ship.Batch, r *ship.RejectedError) error {
	f.lines += r.Count
	if now := f.now(); now.Sub(f.told) < refusedEvery {
		return nil
	}
	err := f.write(context.Background(), &audit.Record{Event: &audit.Event{Name: audit.EventShipRejected, Fields: map[string]string{
		"sink": f.sink, "producer": b.Producer, "epoch": b.Lines[0].Epoch, "from": strconv.FormatUint(b.Lines[0].Sequence, 10),
		"lines": strconv.Itoa(f.lines), "reason": r.Reason,
	}}})
	if err != nil {
		f.lines -= r.Count // the batch comes again
		return err
	}
	f.told, f.lines = f.now(), 0
	return nil
}

// checkedSinks are sinks as an AttacheConfig would have them: with its checks
// and its defaults.
func checkedSinks(sinks []v1alpha1.AuditSink) ([]v1alpha1.AuditSink, error) {
	if len(sinks) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.APIVersion, "kind": v1alpha1.KindAttacheConfig, "metadata": map[string]any{"name": "default"},
		"spec": map[string]any{"audit": map[string]any{"sinks": sinks}},
	})
	if err != nil {
		return nil, err
	}
	b, err := api.ParseFor(api.PlaceRun, "sinks", text)
	if err != nil {
		return nil, err
	}
	return b.Config.Spec.Audit.Sinks, nil
}

// checkpoint makes statements over all heads.
func (h *host) checkpoint(ctx context.Context, c checkpoints, db *store.DB) error {
	sinks, err := c.outside(ctx)
	if err != nil {
		return err
	}
	signer, public, err := h.checkpointKey(ctx, c.Origin)
	if err != nil {
		return err
	}
	h.log.InfoContext(ctx, "checkpoints are signed", "verify_by", public)
	origin := c.Origin
	if origin == "" {
		origin = signer.Name() // as it was when the key was made, also where the default was another
	}
	m, err := checkpoint.New(checkpoint.Config{
		Store: db, Origin: origin, Signer: signer, Every: duration(c.Every), Sinks: sinks, Record: h.trail.Write, Logger: h.log,
	})
	if err != nil {
		return err
	}
	if err := h.registry.Register(checkpoint.Metrics(m)); err != nil {
		return err
	}
	if err := h.lead(func(ctx context.Context) error { m.Run(ctx); return nil }); err != nil {
		return err
	}
	return h.verify(c, db, origin, public, sinks)
}

// verify reads the store against its checkpoints once in a while.
func (h *host) verify(c checkpoints, db *store.DB, origin, public string, sinks []checkpoint.Sink) error {
	every := duration(c.Verify)
	if c.Verify != "" && every == 0 {
		return nil
	}
	key, err := note.NewVerifier(public)
	if err != nil {
		return fmt.Errorf("public key of checkpoints: %w", err)
	}
	w := &checkpoint.Watch{Store: db, Origin: origin, Key: key, Every: every, Record: h.trail.Write, Kept: db, Logger: h.log}
	for _, s := range sinks {
		if l, ok := s.(checkpoint.Latest); ok {
			w.From = append(w.From, l)
		}
	}
	if err := h.registry.Register(checkpoint.WatchMetrics(w)); err != nil {
		return err
	}
	return h.lead(func(ctx context.Context) error { w.Run(ctx); return nil })
}

// originHere names this cluster's store, unlike that of any other cluster: one
// witness or bucket may serve many, and all are cluster.local.
func (h *host) originHere(ctx context.Context, c client.Reader) (string, error) {
	ns := &corev1.Namespace{}
	if err := c.Get(ctx, types.NamespacedName{Name: metav1.NamespaceSystem}, ns); err != nil {
		return "", fmt.Errorf("name this cluster's checkpoints by the uid of namespace %s (or set checkpoints.origin): %w", metav1.NamespaceSystem, err)
	}
	return h.trustDomain + "/" + string(ns.UID), nil
}

// Members of the Secret with the checkpoints' key.
const (
	keyPrivate = "checkpoint.key"
	keyPublic  = "checkpoint.pub"
)

// checkpointKey reads the signing key from its Secret, and makes it if that is
// empty; without a Secret, from a file beside this replica's records. A key that
// is made has the name of origin, or of this cluster where that is empty.
func (h *host) checkpointKey(ctx context.Context, origin string) (s note.Signer, public string, err error) {
	c, err := h.live()
	if err != nil {
		return nil, "", err
	}
	if h.auditKey == "" {
		file := strings.TrimRight(h.auditDir, "/") + ".checkpoint.key"
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) && origin == "" {
			if origin, err = h.originHere(ctx, c); err != nil {
				return nil, "", err
			}
		}
		return checkpoint.KeyFile(file, origin)
	}
	const tries = 5
	for range tries {
		sec := &corev1.Secret{}
		if err := c.Get(ctx, types.NamespacedName{Namespace: h.namespace, Name: h.auditKey}, sec); err != nil {
			return nil, "", fmt.Errorf("key of checkpoints in secret %s: %w", h.auditKey, err)
		}
		if text := sec.Data[keyPrivate]; len(text) > 0 {
			s, err := note.NewSigner(trimSpace(text))
			if err != nil {
				return nil, "", fmt.Errorf("key of checkpoints in secret %s: is none", h.auditKey) // the cause may quote it
			}
			return s, trimSpace(sec.Data[keyPublic]), nil
		}
		if origin == "" {
			if origin, err = h.originHere(ctx, c); err != nil {
				return nil, "", err
			}
		}
		private, public, err := checkpoint.NewKey(origin)
		if err != nil {
			return nil, "", err
		}
		sec.Data = map[string][]byte{keyPrivate: []byte(private), keyPublic: []byte(public)}
		if err = c.Update(ctx, sec); err != nil && !apierrors.IsConflict(err) {
			return nil, "", fmt.Errorf("write the key of checkpoints into secret %s: %w", h.auditKey, err)
		}
	}
	return nil, "", fmt.Errorf("key of checkpoints in secret %s: another replica keeps changing it", h.auditKey)
}

// secretTLS reads a handed out Secret from the API server.
type secretTLS struct {
	client    client.Reader
	namespace string
	name      string

	mu   sync.Mutex // guards all below
	at   time.Time
	cert *tls.Certificate
	pool *x509.CertPool
}

// read returns what the Secret has, at most filesFor old. While the API server
// does not answer, what was read before is used as long as it is good.
func (s *secretTLS) read() (*tls.Certificate, *x509.CertPool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && time.Since(s.at) < filesFor {
		return s.cert, s.pool, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	sec := &corev1.Secret{}
	err := s.client.Get(ctx, types.NamespacedName{Namespace: s.namespace, Name: s.name}, sec)
	var cert *tls.Certificate
	var pool *x509.CertPool
	if err == nil {
		cert, pool, err = servingPair(sec.Data[corev1.TLSCertKey], sec.Data[corev1.TLSPrivateKeyKey], sec.Data[issuer.ClientsKey])
	}
	if err != nil {
		if s.cert != nil && time.Now().Before(s.cert.Leaf.NotAfter) {
			return s.cert, s.pool, nil
		}
		return nil, nil, fmt.Errorf("certificate in secret %s: %w; the control plane's role issuer keeps it", s.name, err)
	}
	s.cert, s.pool, s.at = cert, pool, time.Now()
	return cert, pool, nil
}
