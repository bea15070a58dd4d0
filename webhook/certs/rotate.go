package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Keys of the Secret, which cert-controller writes.
const (
	certKey = "tls.crt"
	keyKey  = "tls.key"
	caKey   = "ca.crt"
)

// Lifetimes. A certificate or authority is replaced when it has less than
// renewBefore to live.
const (
	authorityFor   = 2 * 365 * 24 * time.Hour
	certificateFor = 90 * 24 * time.Hour
	renewBefore    = 30 * 24 * time.Hour
	checkEvery     = time.Hour
)

// Options name the objects of [Rotate].
type Options struct {
	Secret client.ObjectKey // must exist, if only empty
	// Service by which the API server reaches the webhook, in the Secret's
	// namespace.
	Service string
	// Configuration is the name of the mutating and of the validating webhook
	// configuration, whose caBundle is set. Either may be absent.
	Configuration string
	ExtraNames    []string // further DNS names of the certificate
	Log           *slog.Logger
	overlap       time.Duration // these two are of tests
	controller    string
}

// Rotate adds to the manager what makes and renews the certificate, and what
// serves it: cert-controller writes Secret and caBundle, in every replica, of
// which the first wins; each replica reads the Secret from its cache, not from a
// volume, which would be minutes late.
func Rotate(mgr manager.Manager, o Options) (*Certificate, error) {
	dir, err := markerDir()
	if err != nil {
		return nil, err
	}
	host := o.Service + "." + o.Secret.Namespace + ".svc"
	c := &Certificate{overlap: cmp.Or(o.overlap, defaultOverlap)}
	err = rotator.AddRotator(overlapping{mgr, o.Secret, c}, &rotator.CertRotator{
		SecretKey:      o.Secret,
		CertDir:        dir,
		CAName:         "attache-webhook-ca",
		CAOrganization: "Attache",
		DNSName:        host,
		ExtraDNSNames:  append([]string{host + ".cluster.local", o.Service + "." + o.Secret.Namespace}, o.ExtraNames...),
		IsReady:        make(chan struct{}),
		Webhooks: []rotator.WebhookInfo{
			{Name: o.Configuration, Type: rotator.Mutating},
			{Name: o.Configuration, Type: rotator.Validating},
		},
		ControllerName:         cmp.Or(o.controller, "webhook-certificate-"+o.Secret.Namespace),
		FieldOwner:             "attache-webhook-cert",
		CaCertDuration:         authorityFor,
		ServerCertDuration:     certificateFor,
		LookaheadInterval:      renewBefore,
		RotationCheckFrequency: checkEvery,
	})
	if err != nil {
		return nil, fmt.Errorf("webhook certificate: %w", err)
	}
	l := &loader{Options: o, cert: c, reader: mgr.GetClient(), marker: filepath.Join(dir, certKey), changed: make(chan struct{}, 1)}
	for _, obj := range []client.Object{&corev1.Secret{}, &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}} {
		i, err := mgr.GetCache().GetInformer(context.Background(), obj)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", obj, err)
		}
		if _, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: l.wake, UpdateFunc: func(_, o any) { l.wake(o) }, DeleteFunc: l.wake,
		}); err != nil {
			return nil, err
		}
	}
	return c, mgr.Add(l)
}

// markerDir makes a folder for what cert-controller waits for: a file that says
// that the certificate has arrived. It holds no key.
func markerDir() (string, error) {
	dir, err := os.MkdirTemp("", "attache-webhook-")
	if err != nil { // a read-only root file system
		dir, err = os.MkdirTemp("/dev/shm", "attache-webhook-")
	}
	if err != nil {
		return "", fmt.Errorf("webhook certificate: no folder can be written; mount an emptyDir at /tmp: %w", err)
	}
	return dir, nil
}

// loader serves what the Secret holds.
type loader struct {
	Options
	cert    *Certificate
	reader  client.Reader
	marker  string
	changed chan struct{}
}

func (l *loader) wake(any) {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (*loader) NeedLeaderElection() bool { return false }

// Start implements [manager.Runnable].
func (l *loader) Start(ctx context.Context) error {
	defer os.RemoveAll(filepath.Dir(l.marker))
	const again = time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
		case <-timer.C:
		}
		retry, err := l.load(ctx)
		if err != nil {
			l.Log.Warn("webhook certificate cannot be used", "secret", l.Secret.String(), "err", err)
		}
		if retry {
			timer.Reset(again)
		}
	}
}

func (l *loader) load(ctx context.Context) (again bool, err error) {
	var s corev1.Secret
	if err := l.reader.Get(ctx, l.Secret, &s); apierrors.IsNotFound(err) {
		return false, errors.New("it does not exist; make it, empty: its content is made here")
	} else if err != nil {
		return true, err
	}
	if len(s.Data[certKey]) == 0 {
		return false, nil // not made yet
	}
	p, err := parse(s.Data)
	if err != nil {
		return false, err
	}
	bundles, err := l.bundles(ctx)
	if err != nil {
		return true, err
	}
	again = l.cert.offer(p, bundles, time.Now(), l.Log)
	return again, os.WriteFile(l.marker, s.Data[certKey], 0o600)
}

// bundles are those by which the API server trusts us.
func (l *loader) bundles(ctx context.Context) ([][]byte, error) {
	var list [][]byte
	var m admissionv1.MutatingWebhookConfiguration
	if err := l.reader.Get(ctx, client.ObjectKey{Name: l.Configuration}, &m); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	for _, w := range m.Webhooks {
		list = append(list, w.ClientConfig.CABundle)
	}
	var v admissionv1.ValidatingWebhookConfiguration
	if err := l.reader.Get(ctx, client.ObjectKey{Name: l.Configuration}, &v); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	for _, w := range v.Webhooks {
		list = append(list, w.ClientConfig.CABundle)
	}
	return list, nil
}

// overlapping is a manager whose client keeps the old authority in the Secret,
// and so in caBundle, when cert-controller replaces it: replicas that still
// serve the old certificate stay trusted.
type overlapping struct {
	manager.Manager
	secret client.ObjectKey
	cert   *Certificate
}

// GetClient implements [manager.Manager].
func (o overlapping) GetClient() client.Client {
	return keeper{o.Manager.GetClient(), o.secret, o.cert}
}

type keeper struct {
	client.Client
	secret client.ObjectKey
	cert   *Certificate
}

// Update implements [client.Writer].
func (k keeper) Update(ctx context.Context, obj client.Object, opts ...client.UpdateOption) error {
	if s, ok := obj.(*corev1.Secret); ok && client.ObjectKeyFromObject(s) == k.secret {
		var old corev1.Secret
		if err := k.Get(ctx, k.secret, &old); err != nil {
			return err
		}
		// Of an emptied Secret, what this replica serves.
		s.Data[caKey] = joinAuthorities(s.Data[caKey], append(old.Data[caKey], k.cert.root()...), time.Now())
	}
	return k.Client.Update(ctx, obj, opts...)
}

// maxAuthorities bounds the bundle, whatever makes them change so often.
const maxAuthorities = 4

// joinAuthorities puts the new ones first, and drops what has expired.
func joinAuthorities(fresh, old []byte, now time.Time) []byte {
	var all []*x509.Certificate
	for _, c := range append(certificates(fresh), certificates(old)...) {
		if now.Before(c.NotAfter) && !has(all, c) && len(all) < maxAuthorities {
			all = append(all, c)
		}
	}
	var b bytes.Buffer
	for _, c := range all {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes all
	}
	return b.Bytes()
}
