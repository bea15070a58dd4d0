package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/identity/issuer"
)

// Defaults of [KeysConfig].
const (
	DefaultSecret       = "attache-ca"
	DefaultRotateEvery  = 30 * 24 * time.Hour
	DefaultPublishAhead = 24 * time.Hour
	DefaultPoll         = 30 * time.Second
)

// KeysConfig says where the control plane's keys are.
type KeysConfig struct {
	// Client reads and writes the Secret; its reads reach the API server.
	Client client.Client
	// Namespace and Secret name it. Default of Secret: attache-ca.
	Namespace, Secret string
	TrustDomain       spiffeid.TrustDomain
	// URL is the issuer's, at which clouds find the keys: see issuer.Config.
	URL string
	// RotateEvery is how long a JWT key signs, PublishAhead how long any key
	// is public before it signs. Default: 30 days, 24 hours.
	RotateEvery, PublishAhead time.Duration
	// X509TTL is the lifetime of X.509-SVIDs, which are renewed at half of it.
	// Default: one hour.
	X509TTL time.Duration
	// Upstream, if set, is the X.509 authority instead of the Secret's, and
	// learns which keys sign JWT-SVIDs. Default: none.
	Upstream Upstream
	// TrustBundle makes the control plane's roots a ClusterTrustBundle, too
	// (Kubernetes 1.37), with this signer's name; "" makes none.
	TrustBundle string
	// Changed is told of what this replica wrote into the Secret. Default: nobody.
	Changed func(ctx context.Context, before, after []issuer.KeyInfo)
	// Poll is how often the Secret is read. Default: 30 s.
	Poll time.Duration
	// Metrics registers gauges. Default: none are kept.
	Metrics prometheus.Registerer
	Log     *slog.Logger
	Now     func() time.Time
}

// Keys are the control plane's keys: they lie in one Secret, which all
// replicas read, and which whoever comes first advances; the others' writes
// conflict. It is safe for concurrent use.
type Keys struct {
	cfg      KeysConfig
	issuing  issuer.Config
	schedule atomic.Pointer[issuer.Schedule]
	issuer   *issuer.Issuer
	age      prometheus.Gauge

	// told are the keys that upstream knows, until when; only Sync, which does not run
	// twice at once, uses it.
	told map[string]time.Time

	mu   sync.Mutex // guards cert
	cert map[string]*tls.Certificate
}

// RootsKey is the member of the ConfigMap, named as the Secret, that holds the
// roots of the control plane's port in PEM.
const RootsKey = "roots.pem"

// scheduleKey is the Secret's member.
const scheduleKey = "schedule.json"

// OpenKeys reads the Secret, or makes it with new keys.
func OpenKeys(ctx context.Context, c KeysConfig) (*Keys, error) {
	k, err := newKeys(c)
	if err != nil {
		return nil, err
	}
	if err := k.Sync(ctx); err != nil {
		return nil, err
	}
	k.issuer, err = issuer.New(ctx, k.issuing)
	return k, err
}

// ReadKeys reads the Secret and changes nothing: to export the public keys.
func ReadKeys(ctx context.Context, c KeysConfig) (*Keys, error) {
	k, err := newKeys(c)
	if err != nil {
		return nil, err
	}
	sec := &corev1.Secret{}
	if err := k.cfg.Client.Get(ctx, types.NamespacedName{Namespace: k.cfg.Namespace, Name: k.cfg.Secret}, sec); err != nil {
		return nil, fmt.Errorf("keys in secret %s/%s: %w", k.cfg.Namespace, k.cfg.Secret, err)
	}
	s, err := issuer.ParseSchedule(sec.Data[scheduleKey])
	if err != nil {
		return nil, fmt.Errorf("keys in secret %s/%s: %w", k.cfg.Namespace, k.cfg.Secret, err)
	}
	k.schedule.Store(s)
	k.issuer, err = issuer.New(ctx, k.issuing)
	return k, err
}

func newKeys(c KeysConfig) (*Keys, error) {
	fill(&c.Secret, DefaultSecret)
	fill(&c.RotateEvery, DefaultRotateEvery)
	fill(&c.PublishAhead, DefaultPublishAhead)
	fill(&c.Poll, DefaultPoll)
	fill(&c.X509TTL, issuer.DefaultX509TTL)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Client == nil || c.Namespace == "" {
		return nil, errors.New("issuer: keys need a client and the control plane's namespace; set POD_NAMESPACE")
	}
	k := &Keys{cfg: c, cert: map[string]*tls.Certificate{}, told: map[string]time.Time{}}
	k.issuing = issuer.Config{
		TrustDomain: c.TrustDomain, URL: c.URL, RotateEvery: c.RotateEvery, PublishAhead: c.PublishAhead,
		MaxJWTTTL: MaxJWT, X509TTL: c.X509TTL, Log: c.Log, Now: c.Now, Schedule: k.schedule.Load,
	}
	if c.Upstream != nil {
		k.issuing.Upstream = c.Upstream.Intermediate
	}
	k.age = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "attache_issuer_keys_read_timestamp_seconds", Help: "When the Secret with the control plane's keys was last read.",
	})
	if c.Metrics != nil {
		if err := c.Metrics.Register(k.age); err != nil {
			return nil, fmt.Errorf("issuer: %w", err)
		}
	}
	return k, nil
}

// Issuer signs with the keys, and serves discovery.
func (k *Keys) Issuer() *issuer.Issuer { return k.issuer }

// Start keeps up with the Secret until ctx ends, on every replica.
func (k *Keys) Start(ctx context.Context) error {
	t := time.NewTicker(k.cfg.Poll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := k.Sync(ctx); err != nil {
			k.cfg.Log.ErrorContext(ctx, "keys not read; those at hand go on", "error", err)
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: no.
func (k *Keys) NeedLeaderElection() bool { return false }

// Sync reads the Secret and advances it if something is due. [Keys.Start]
// calls it.
func (k *Keys) Sync(ctx context.Context) error {
	const tries = 5
	var err error
	for range tries {
		var s *issuer.Schedule
		if s, err = k.sync(ctx); err == nil {
			k.schedule.Store(s)
			k.age.Set(float64(k.cfg.Now().Unix()))
			if err := k.publish(ctx); err != nil {
				k.cfg.Log.WarnContext(ctx, "roots not published; admission gives new pods the old ones", "configmap", k.cfg.Secret, "error", err)
			}
			if err := k.publishJWT(ctx, s); err != nil {
				k.cfg.Log.WarnContext(ctx, "JWT keys not published upstream; verifiers that know only its bundle do not take tokens of new keys", "error", err)
			}
			if err := k.publishBundle(ctx); err != nil {
				k.cfg.Log.WarnContext(ctx, "ClusterTrustBundle not published", "signer", k.cfg.TrustBundle, "error", err)
			}
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return fmt.Errorf("keys in secret %s/%s: %w", k.cfg.Namespace, k.cfg.Secret, err)
}

func (k *Keys) sync(ctx context.Context) (*issuer.Schedule, error) {
	sec := &corev1.Secret{}
	err := k.cfg.Client.Get(ctx, types.NamespacedName{Namespace: k.cfg.Namespace, Name: k.cfg.Secret}, sec)
	fresh := apierrors.IsNotFound(err)
	if err != nil && !fresh {
		return nil, err
	}
	var s *issuer.Schedule
	if text := sec.Data[scheduleKey]; len(text) > 0 { // the chart may make it empty
		if s, err = issuer.ParseSchedule(text); err != nil {
			return nil, err
		}
	} else if k.schedule.Load() != nil {
		// Pods trust the keys at hand: others are not made because somebody
		// deleted the Secret.
		k.cfg.Log.ErrorContext(ctx, "the Secret with the keys is gone; it is written again", "secret", k.cfg.Secret)
		s = k.schedule.Load()
		return s, k.write(ctx, sec, fresh, s)
	}
	next, changed, err := s.Advance(k.issuing, k.cfg.Now())
	if err != nil || !changed {
		return next, err
	}
	k.cfg.Log.InfoContext(ctx, "keys advanced", "next_first_use", next.Due(k.cfg.Now()))
	if err := k.write(ctx, sec, fresh, next); err != nil {
		return nil, err
	}
	if k.cfg.Changed != nil {
		k.cfg.Changed(ctx, s.Describe(), next.Describe())
	}
	return next, nil
}

func (k *Keys) write(ctx context.Context, sec *corev1.Secret, fresh bool, s *issuer.Schedule) error {
	text, err := s.MarshalSecret()
	if err != nil {
		return err
	}
	if sec.Data == nil {
		sec.Data = map[string][]byte{}
	}
	sec.Data[scheduleKey] = text
	if !fresh {
		return k.cfg.Client.Update(ctx, sec)
	}
	sec.ObjectMeta = metav1.ObjectMeta{Namespace: k.cfg.Namespace, Name: k.cfg.Secret, Labels: map[string]string{"app.kubernetes.io/part-of": "attache"}}
	return k.cfg.Client.Create(ctx, sec)
}

// publish writes the roots where admission reads them: a ConfigMap of the
// control plane's own namespace, with the Secret's name.
func (k *Keys) publish(ctx context.Context) error {
	roots := string(k.ControlRoots())
	cm := &corev1.ConfigMap{}
	err := k.cfg.Client.Get(ctx, types.NamespacedName{Namespace: k.cfg.Namespace, Name: k.cfg.Secret}, cm)
	switch {
	case apierrors.IsNotFound(err):
		cm.Name, cm.Namespace, cm.Data = k.cfg.Secret, k.cfg.Namespace, map[string]string{RootsKey: roots}
		err = k.cfg.Client.Create(ctx, cm)
	case err == nil && cm.Data[RootsKey] != roots:
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		cm.Data[RootsKey] = roots
		err = k.cfg.Client.Update(ctx, cm)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil // another replica does it, or this one the next time
	}
	return err
}

// ControlRoots are the certificates, in PEM, by which sidecars verify the
// control plane: for the specification of new pods. While a root is replaced,
// both are there.
func (k *Keys) ControlRoots() []byte { return issuer.EncodePEM(k.schedule.Load().ServingRoots()...) }

// ServerTLS is the configuration of the gRPC port, whose certificate is for
// hosts: peers may present X.509-SVIDs, see package peer. Under an [Upstream]
// those of the Secret's authority are taken, too: pods have them still when the
// source has just been changed, and whoever has the Secret signs JWT-SVIDs
// anyway.
func (k *Keys) ServerTLS(hosts ...string) *tls.Config {
	return peer.ServerTLS(
		func() (*tls.Certificate, error) { return k.serving(hosts) },
		k.Clients)
}

// Clients are the authorities of pods' X.509-SVIDs, as [Keys.ServerTLS] takes
// them.
func (k *Keys) Clients() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, c := range k.clientRoots() {
		pool.AddCert(c)
	}
	return pool, nil
}

// WebTLS is the configuration of an HTTPS port of the control plane, such as
// that of discovery; no client presents a certificate there.
func (k *Keys) WebTLS(hosts ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.serving(hosts) },
	}
}

// serving returns a certificate in the first half of its life, made by the
// root that signs now.
func (k *Keys) serving(hosts []string) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := fmt.Sprintf("%q", slices.Sorted(slices.Values(hosts)))
	if c := k.cert[id]; c != nil {
		if k.cfg.Now().Before(c.Leaf.NotAfter.Add(-k.cfg.X509TTL / 2)) {
			return c, nil
		}
	}
	c, err := k.issuer.ServingCertificate(hosts...)
	if err != nil {
		return nil, err
	}
	k.cert[id] = c
	return c, nil
}
