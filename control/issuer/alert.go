package issuer

import (
	"context"
	"strings"
	"time"

	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// suspect is a refused second key. It is an attack unless the kubelet reports
// before the end of the grace that the sidecar had restarted.
type suspect struct {
	namespace, pod, start string
	until                 time.Time
}

// suspect notes a refused second key.
func (s *Server) suspect(p *corev1.Pod, c claim, err error) {
	if reasonOf(err).reason != reasonSecondKey {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	uid := string(p.UID)
	if _, ok := s.suspects[uid]; ok || len(s.suspects) >= remembered {
		return
	}
	s.suspects[uid] = suspect{p.Namespace, p.Name, c.start, s.Now().Add(s.Grace)}
}

// Start looks after suspects and forgets the keys of pods that are gone, until
// ctx ends. Every replica runs it (it implements manager.Runnable).
func (s *Server) Start(ctx context.Context) error {
	const often, seldom = 5 * time.Second, 10 * time.Minute
	t := time.NewTicker(often)
	defer t.Stop()
	next := s.Now().Add(seldom)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		s.Judge(ctx)
		if now := s.Now(); now.After(next) {
			next = now.Add(seldom)
			if err := s.Forget(ctx); err != nil {
				s.Log.WarnContext(ctx, "leases of ended pods not removed", "error", err)
			}
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: no.
func (s *Server) NeedLeaderElection() bool { return false }

// Judge alerts of suspects whose grace is over. [Server.Start] calls it.
func (s *Server) Judge(ctx context.Context) {
	now := s.Now()
	due := map[string]suspect{}
	s.mu.Lock()
	for uid, x := range s.suspects {
		if !now.Before(x.until) {
			due[uid] = x
			delete(s.suspects, uid)
		}
	}
	s.mu.Unlock()
	for uid, x := range due {
		pod := &corev1.Pod{}
		err := s.Client.Get(ctx, types.NamespacedName{Namespace: x.namespace, Name: x.pod}, pod)
		if apierrors.IsNotFound(err) || err == nil && string(pod.UID) != uid {
			continue
		}
		if err == nil {
			if st := sidecarStatus(pod, s.Sidecar.Container); st == nil || st.ContainerID != x.start {
				continue // it had restarted
			}
		}
		s.alert(ctx, uid, x, now)
	}
}

// alert tells the log, the metrics and the pod's events.
func (s *Server) alert(ctx context.Context, uid string, x suspect, now time.Time) {
	const text = "A second key asked to be this pod's identity, and its sidecar had not restarted: something in the pod, or who took its token, poses as the sidecar. It was refused."
	s.metrics.alerts.WithLabelValues(reasonSecondKey).Inc()
	s.Log.ErrorContext(ctx, "a second key posed as a pod's sidecar", "namespace", x.namespace, "pod", x.pod, "pod_uid", uid)
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "attache-second-key-", Namespace: x.namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: x.namespace, Name: x.pod, UID: types.UID(uid)},
		Reason:         "SecondIdentityKey", Message: text, Type: corev1.EventTypeWarning,
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
		Source: corev1.EventSource{Component: "attache-control"},
	}
	if err := s.Client.Create(ctx, e); err != nil {
		s.Log.WarnContext(ctx, "event not written", "error", err)
	}
}

// Forget deletes the leases of pods that are gone. [Server.Start] calls it.
func (s *Server) Forget(ctx context.Context) error {
	list := &coordv1.LeaseList{}
	if err := s.Client.List(ctx, list, client.InNamespace(s.Namespace), client.MatchingLabels{leaseLabel: leaseLabelIs}); err != nil {
		return err
	}
	for i := range list.Items {
		l := &list.Items[i]
		ns, name, ok := strings.Cut(l.Annotations[leasePod], "/")
		if !ok {
			continue
		}
		pod := &corev1.Pod{}
		err := s.Cache.Get(ctx, types.NamespacedName{Namespace: ns, Name: name}, pod)
		if err == nil && string(pod.UID) != l.Annotations[leaseUID] || apierrors.IsNotFound(err) {
			// The watch may be behind: only the API server knows.
			err = s.Client.Get(ctx, types.NamespacedName{Namespace: ns, Name: name}, pod)
		}
		if !apierrors.IsNotFound(err) && (err != nil || string(pod.UID) == l.Annotations[leaseUID]) {
			continue
		}
		same := client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion}
		if err := s.Client.Delete(ctx, l, same); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	return nil
}
