package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/control/peer"
)

// A pod's live key is noted in a Lease of the control plane's namespace, which
// all replicas see and of which only one can win a race: its holder is the
// key. It also keeps the labels that the pod had when it was first attested.
const (
	leasePrefix   = "attache-key-"
	leaseLabel    = "attache.dev/key"
	leaseLabelIs  = "live"
	leasePod      = "attache.dev/pod" // NAMESPACE/NAME
	leaseUID      = "attache.dev/pod-uid"
	leaseStart    = "attache.dev/container-id" // the start of the sidecar that made the key
	leaseInstance = "attache.dev/instance"
	leaseLabels   = "attache.dev/labels" // JSON
	leaseTemplate = "attache.dev/template"
	leaseImage    = "attache.dev/sidecar-image"
	leaseDigest   = "attache.dev/sidecar-digest"
	leaseSigned   = "attache.dev/signed-key" // the newest that our signer certified for the pod
	// The certificate before the present one: connections made with it go on
	// until it expires.
	leasePrevious = "attache.dev/previous-key"
)

// claim is a key that asks to be a pod's.
type claim struct {
	key, instance string
	svid          *peer.Pod // of a renewal; nil at first
	start         string    // containerID of the sidecar that runs now
	template      string    // of the sidecar, and
	image         Image     // in it; for those who count
	cert          bool      // the key is of a pod certificate, which the kubelet made
}

// heldBy decides whether c may be the pod's live key, which now is held (and
// was made by that start of the sidecar). A sidecar's key never outlives it,
// and another one is made only by another start.
func (c claim) heldBy(uid, held, start, signed string) error {
	if c.cert {
		// The kubelet keeps the key over restarts of the sidecar, and makes
		// another for each renewal: the newest that was signed takes over.
		if c.key == held || c.key == signed {
			return nil
		}
		return secondKey("a newer certificate of the pod has replaced this key")
	}
	if c.svid != nil && (c.svid.UID != uid || c.svid.Key != c.key) {
		return deny(reasonRenewal, "the X.509-SVID that renews is another pod's or another key's")
	}
	switch {
	case held == "": // the first
		return nil
	case held == c.key && start == c.start, held != c.key && start != c.start:
		return nil
	case held == c.key:
		return secondKey("the key is that of an earlier start of the sidecar")
	}
	return secondKey("the pod has a live key, and the kubelet reports no restart of its sidecar since")
}

// secondKey may be an attack, or a restart that the kubelet will report in a
// moment: the sidecar tries again.
func secondKey(text string) error {
	return &refusal{code: codes.FailedPrecondition, reason: reasonSecondKey, text: text}
}

// hold makes c the live key of the pod, or refuses. It returns the labels that
// the pod had at first.
func (s *Server) hold(ctx context.Context, p *corev1.Pod, c claim) (map[string]string, error) {
	const tries = 4 // replicas race for one lease
	for range tries {
		labels, err := s.tryHold(ctx, p, c)
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue
		}
		var r *refusal
		if err != nil && !errors.As(err, &r) {
			return nil, broken("note the pod's key", err)
		}
		return labels, err
	}
	return nil, broken("note the pod's key", errors.New("others write it at the same time"))
}

func (s *Server) tryHold(ctx context.Context, p *corev1.Pod, c claim) (map[string]string, error) {
	l := &coordv1.Lease{}
	err := s.Client.Get(ctx, s.leaseName(string(p.UID)), l)
	fresh := apierrors.IsNotFound(err)
	if err != nil && !fresh {
		return nil, err
	}
	if err := c.heldBy(string(p.UID), value(l.Spec.HolderIdentity), l.Annotations[leaseStart], l.Annotations[leaseSigned]); err != nil {
		return nil, err
	}
	labels := p.Labels
	if !fresh {
		if labels, err = frozen(l); err != nil {
			return nil, err
		}
	}
	if err := s.unchanged(p, labels); err != nil {
		return nil, err
	}
	if err := s.write(ctx, l, fresh, p, c, labels); err != nil {
		return nil, err
	}
	return labels, nil
}

func (s *Server) write(ctx context.Context, l *coordv1.Lease, fresh bool, p *corev1.Pod, c claim, labels map[string]string) error {
	text, err := json.Marshal(labels)
	if err != nil {
		return err
	}
	now := metav1.NewMicroTime(s.Now())
	ttl := int32(time.Hour / time.Second)
	if old := value(l.Spec.HolderIdentity); old != c.key {
		l.Spec.AcquireTime = &now
		if c.cert && old != "" {
			l.Annotations = merge(l.Annotations, map[string]string{leasePrevious: old})
		}
	}
	l.Spec.HolderIdentity, l.Spec.RenewTime, l.Spec.LeaseDurationSeconds = &c.key, &now, &ttl
	l.Labels = merge(l.Labels, map[string]string{leaseLabel: leaseLabelIs})
	l.Annotations = merge(l.Annotations, map[string]string{
		leasePod: p.Namespace + "/" + p.Name, leaseUID: string(p.UID), leaseStart: c.start, leaseInstance: c.instance, leaseLabels: string(text), leaseTemplate: c.template,
		leaseImage: c.image.Ref, leaseDigest: c.image.Digest,
	})
	if !fresh {
		return s.Client.Update(ctx, l)
	}
	n := s.leaseName(string(p.UID))
	l.Name, l.Namespace = n.Name, n.Namespace
	return s.Client.Create(ctx, l)
}

func (s *Server) leaseName(uid string) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: leasePrefix + uid}
}

// frozen are the labels at the first attestation.
func frozen(l *coordv1.Lease) (map[string]string, error) {
	var out map[string]string
	if err := json.Unmarshal([]byte(l.Annotations[leaseLabels]), &out); err != nil {
		return nil, broken("read the labels in lease "+l.Name, err)
	}
	return out, nil
}

// unchanged refuses a pod whose labels are not what they were: policies chose
// by them.
func (s *Server) unchanged(p *corev1.Pod, then map[string]string) error {
	var changed []string
	for _, k := range slices.Sorted(maps.Keys(merge(then, p.Labels))) {
		a, had := then[k]
		b, has := p.Labels[k]
		if (a != b || had != has) && s.Frozen(p.Namespace, k) {
			changed = append(changed, k)
		}
	}
	if len(changed) > 0 {
		return deny(reasonLabels, "labels changed since the pod was attested (%.200s); restore them, or make the pod anew", strings.Join(changed, ", "))
	}
	return nil
}

func merge(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
