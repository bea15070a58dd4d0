package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
)

// attested is a pod that passed, as it was then.
type attested struct {
	pod       string // name
	version   string // resourceVersion of the pod
	nsVersion string // of the namespace
	address   netip.Addr
	image     Image // of the sidecar
	workload  *controlpb.Workload
}

// Attest implements controlpb.IdentityServer. In this order: the rate of the
// address; the form of the request and the proof of possession; the token, by
// TokenReview; the pod and its namespace, read live, by each of checks; shape
// and image of the sidecar; the live key. Then it signs. A pod whose identity is a certificate of
// [PodSigner] presents that instead of token and request, and nothing is signed.
func (s *Server) Attest(ctx context.Context, r *controlpb.AttestRequest) (*controlpb.AttestResponse, error) {
	e := Event{Kind: "x509"}
	out, err := s.attest(ctx, r, &e)
	if rec := s.record(ctx, e, err); rec != nil && err == nil {
		return nil, broken("record the issuance", rec)
	}
	return out, err
}

func (s *Server) attest(ctx context.Context, r *controlpb.AttestRequest, e *Event) (*controlpb.AttestResponse, error) {
	address, err := peer.Address(ctx)
	if err != nil {
		return nil, broken("see where the call comes from", err)
	}
	if !s.attests.allow(address.String()) {
		return nil, tooOften("attestations")
	}
	if !validInstance(r.GetInstance()) {
		return nil, invalid(reasonRequest, "instance must be 128 random bits in hex")
	}
	if r.GetToken() == "" && len(r.GetCsr()) == 0 {
		return s.attestCertificate(ctx, r.GetInstance(), address, e)
	}
	req, err := readCSR(r.GetCsr(), r.GetToken(), r.GetInstance())
	if err != nil {
		return nil, err
	}
	token, err := review(ctx, s.Client, r.GetToken(), s.Audience)
	if err != nil {
		return nil, err
	}
	e.Namespace, e.Pod, e.UID, e.Node = token.namespace, token.pod, token.uid, token.node
	f, err := s.look(ctx, token.namespace, token.pod, address)
	if err != nil {
		return nil, err
	}
	f.token = &token
	image, template, err := s.examine(ctx, f)
	if err != nil {
		return nil, err
	}
	c := claim{key: req.key, instance: r.GetInstance(), start: sidecarStatus(f.pod, s.Sidecar.Container).ContainerID, template: template, image: image}
	if p, err := peer.PeerPod(ctx); err == nil {
		c.svid, e.Renewal = &p, true
	}
	w, err := s.admit(ctx, f, c)
	if err != nil {
		return nil, err
	}
	return s.sign(ctx, req, w, e)
}

func (s *Server) sign(ctx context.Context, req request, w *controlpb.Workload, e *Event) (*controlpb.AttestResponse, error) {
	e.ID = w.SpiffeId
	id, err := peer.ID(s.Issuer.TrustDomain(), w.Namespace, w.ServiceAccount)
	if err != nil {
		return nil, broken("name the workload", err)
	}
	chain, err := s.Issuer.SignX509(id, req.pub, peer.Subject(w.PodUid))
	if err != nil {
		return nil, broken("sign", err)
	}
	cert := chain[0]
	roots, err := s.roots(ctx)
	if err != nil {
		return nil, broken("read the trust bundle", err)
	}
	e.Serial, e.Expires = cert.SerialNumber.Text(16), cert.NotAfter
	return &controlpb.AttestResponse{
		Certificates: der(chain), Roots: roots, Workload: w, ServerTime: timestamppb.New(s.Now()),
	}, nil
}

// look reads the pod and its namespace, live.
func (s *Server) look(ctx context.Context, namespace, name string, address netip.Addr) (*facts, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	switch err := s.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, u); {
	case apierrors.IsNotFound(err):
		return nil, deny(reasonPod, "the pod is gone")
	case err != nil:
		return nil, broken("read the pod", err)
	}
	f := &facts{address: address, audience: s.Audience, own: s.Sidecar, pod: &corev1.Pod{}, ns: &corev1.Namespace{}}
	if err := s.Client.Get(ctx, types.NamespacedName{Name: namespace}, f.ns); err != nil {
		return nil, broken("read the namespace", err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, f.pod); err != nil {
		return nil, broken("read the pod", err)
	}
	raw, err := plain(u.Object)
	if err != nil {
		return nil, broken("read the pod", err)
	}
	f.raw = raw
	return f, nil
}

// plain is o as encoding/json decodes it with UseNumber.
func plain(o map[string]any) (map[string]any, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out map[string]any
	return out, d.Decode(&out)
}

// examine makes every check on the pod but that of its key.
func (s *Server) examine(ctx context.Context, f *facts) (Image, string, error) {
	if err := runChecks(f); err != nil {
		return Image{}, "", err
	}
	image, err := sidecarImage(f)
	if err != nil {
		return Image{}, "", err
	}
	template, err := s.Templates.Check(ctx, f.raw, image)
	return image, template, err
}

// admit holds the key that an examined pod claims, and collects and remembers
// what the pod is.
func (s *Server) admit(ctx context.Context, f *facts, c claim) (*controlpb.Workload, error) {
	labels, err := s.hold(ctx, f.pod, c)
	if err != nil {
		s.suspect(f.pod, c, err)
		return nil, err
	}
	w, err := s.posture(ctx, f, c.template, c.image.Digest, labels)
	if err != nil {
		return nil, err
	}
	s.remember(f, c.image, w)
	return w, nil
}

func (s *Server) remember(f *facts, image Image, w *controlpb.Workload) {
	uid := string(f.pod.UID)
	s.names.Add(uid, f.pod.Name)
	s.verified.Add(uid, &attested{
		pod: f.pod.Name, version: f.pod.ResourceVersion, nsVersion: f.ns.ResourceVersion, address: f.address, image: image, workload: w,
	})
}

func tooOften(what string) error {
	return &refusal{code: codes.ResourceExhausted, reason: reasonRate, text: fmt.Sprintf("too many %s; wait a moment", what)}
}

// Workload is what is known of a pod now: for the bundle that its sidecar
// gets. It does not say that the pod may have an identity. It depends on the
// pod and its namespace, and not on which replica attested it.
func (s *Server) Workload(ctx context.Context, pod *corev1.Pod) (*controlpb.Workload, error) {
	ns := &corev1.Namespace{}
	if err := s.Cache.Get(ctx, types.NamespacedName{Name: pod.Namespace}, ns); err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", pod.Namespace, err)
	}
	f := &facts{pod: pod, ns: ns, own: s.Sidecar, audience: s.Audience}
	digest, labels := "", pod.Labels
	if image, err := sidecarImage(f); err == nil {
		digest = image.Digest
	}
	if a, ok := s.verified.Get(string(pod.UID)); ok {
		labels = a.workload.Labels
	} else {
		s.preload.Do(func() { s.readLabels(ctx) })
		if l, err := s.labelsOf(ctx, pod); err == nil {
			labels = l
		}
	}
	w, err := s.posture(ctx, f, admitted(pod), digest, labels)
	if err != nil {
		return nil, errors.New(reasonOf(err).text)
	}
	return w, nil
}

// admitted is the template that admission noted on a pod (package
// webhook/inject). Guards keep authors from changing it.
func admitted(pod *corev1.Pod) string {
	var status struct {
		Template string `json:"template"`
	}
	_ = json.Unmarshal([]byte(pod.Annotations["attache.dev/status"]), &status) // none is noted
	return status.Template
}
