package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	certsv1 "k8s.io/api/certificates/v1"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/identity/issuer"
)

// PodSigner is the signer of pod certificates (KEP-4317, Kubernetes 1.37) that
// are the identities of sidecars.
const PodSigner = "attache.dev/pod-svid"

const (
	// A pod certificate lives an hour at least: the API server refuses less.
	leastCertificate = time.Hour
	// The kubelet mounts what the pod waits for: nobody waits for a reply.
	againLater = 2 * time.Second
)

// requestChecks are those of checks that can be made before any container of
// the pod runs; [Server.Attest] makes all of them once the sidecar does.
var requestChecks = []check{
	{"alive", alive},
	{"namespace", namespaceOptedIn},
	{"host", apartFromHost},
	{"sidecar", sidecarIs},
	{"user", aloneAsUser},
	{"audience", audienceOnce},
	{"source", oneSource},
	{"mounts", tokenMountedOnce},
	{"debug", notDebugged},
}

// CertificateSigner answers requests for certificates of [PodSigner]. The API
// server has checked that the request is signed by its key and, where a node
// asks, that the pod is that node's, of that service account, and mounts such
// a certificate; a policy of the chart lets nobody but nodes ask.
type CertificateSigner struct{ s *Server }

// Signer answers requests for pod certificates.
func (s *Server) Signer() *CertificateSigner { return &CertificateSigner{s} }

// Reconcile implements reconcile.Reconciler.
func (c *CertificateSigner) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	req := &certsv1.PodCertificateRequest{}
	if err := c.s.Client.Get(ctx, r.NamespacedName, req); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if req.Spec.SignerName != PodSigner || len(req.Status.Conditions) > 0 {
		return reconcile.Result{}, nil
	}
	e := Event{Kind: "pod_certificate", Namespace: req.Namespace, Pod: req.Spec.PodName, UID: string(req.Spec.PodUID), Node: string(req.Spec.NodeName)}
	status, err := c.s.signRequest(ctx, req, &e)
	if rec := c.s.record(ctx, e, err); rec != nil && err == nil {
		err = broken("record the issuance", rec)
	}
	if err == nil {
		req.Status = *status
	} else {
		no := reasonOf(err)
		if no.outcome() == outcomeLater {
			return reconcile.Result{RequeueAfter: againLater}, nil
		}
		req.Status.Conditions = []metav1.Condition{condition(certsv1.PodCertificateRequestConditionTypeDenied, no.reason, no.text, c.s.Now())}
	}
	err = c.s.Client.Status().Update(ctx, req)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) && c.answered(ctx, r) {
		return reconcile.Result{}, nil // another replica was first
	}
	return reconcile.Result{}, err
}

// answered reports whether a request has its answer.
func (c *CertificateSigner) answered(ctx context.Context, r reconcile.Request) bool {
	req := &certsv1.PodCertificateRequest{}
	return c.s.Client.Get(ctx, r.NamespacedName, req) == nil && len(req.Status.Conditions) > 0
}

func condition(kind, reason, text string, now time.Time) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: text, LastTransitionTime: metav1.NewTime(now)}
}

// signRequest checks a request and signs it.
func (s *Server) signRequest(ctx context.Context, req *certsv1.PodCertificateRequest, e *Event) (*certsv1.PodCertificateRequestStatus, error) {
	pub, key, err := readRequest(req)
	if err != nil {
		return nil, err
	}
	f, err := s.look(ctx, req.Namespace, req.Spec.PodName, netip.Addr{})
	if err != nil {
		return nil, err
	}
	switch p := f.pod; {
	case p.UID != req.Spec.PodUID:
		return nil, deny(reasonPod, "the pod is gone; another one has its name")
	case p.Spec.ServiceAccountName != req.Spec.ServiceAccountName:
		return nil, deny(reasonAccount, "the request's service account is not the pod's")
	case p.Spec.NodeName != string(req.Spec.NodeName):
		return nil, deny(reasonNode, "the request is not of the pod's node")
	}
	f.cert = true
	if err := run(requestChecks, f); err != nil {
		return nil, err
	}
	// What runs is not known yet, and at a renewal need not be asked: attestation does.
	image := Image{}
	for _, c := range f.pod.Spec.InitContainers {
		if c.Name == s.Sidecar.Container {
			image = Image{Ref: c.Image, Digest: imageDigest(c.Image)}
		}
	}
	template, err := s.Templates.Check(ctx, f.raw, image)
	if err != nil {
		return nil, err
	}
	if err := s.noteSigned(ctx, f.pod, key, template, image); err != nil {
		return nil, err
	}
	id, err := peer.ID(s.Issuer.TrustDomain(), f.pod.Namespace, f.pod.Spec.ServiceAccountName)
	if err != nil {
		return nil, broken("name the workload", err)
	}
	e.ID = id.String()
	chain, err := s.Issuer.SignX509For(id, pub, peer.Subject(string(f.pod.UID)), leastCertificate)
	if err != nil {
		return nil, broken("sign", err)
	}
	leaf := chain[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life < leastCertificate {
		return nil, broken("sign a certificate of an hour", errors.New("the authority above it expires before: let its certificate live longer (x509SVIDTTL of the registration entry in SPIRE)"))
	}
	e.Serial, e.Expires = leaf.SerialNumber.Text(16), leaf.NotAfter
	return &certsv1.PodCertificateRequestStatus{
		Conditions:       []metav1.Condition{condition(certsv1.PodCertificateRequestConditionTypeIssued, "Attested", "the pod may have the identity "+id.String(), s.Now())},
		CertificateChain: string(issuer.EncodePEM(chain...)),
		NotBefore:        &metav1.Time{Time: leaf.NotBefore},
		BeginRefreshAt:   &metav1.Time{Time: leaf.NotBefore.Add(life / 2)},
		NotAfter:         &metav1.Time{Time: leaf.NotAfter},
	}, nil
}

// readRequest takes the key of a request.
func readRequest(req *certsv1.PodCertificateRequest) (*ecdsa.PublicKey, string, error) {
	if len(req.Spec.UnverifiedUserAnnotations) > 0 {
		return nil, "", deny(reasonRequest, "userAnnotations mean nothing to this signer; remove them")
	}
	if len(req.Spec.StubPKCS10Request) > maxCSR {
		return nil, "", deny(reasonCSR, "the certificate request is longer than %d bytes", maxCSR)
	}
	r, err := x509.ParseCertificateRequest(req.Spec.StubPKCS10Request)
	if err != nil {
		return nil, "", deny(reasonCSR, "the certificate request is not PKCS #10")
	}
	pub, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, "", deny(reasonKeyType, "the key must be of type ECDSAP256")
	}
	if r.CheckSignature() != nil {
		return nil, "", deny(reasonCSR, "the certificate request is not signed by its key")
	}
	return pub, peer.KeyID(r.RawSubjectPublicKeyInfo), nil
}

// noteSigned writes into the pod's lease which key may come next. The pod's
// labels are held from here on.
func (s *Server) noteSigned(ctx context.Context, p *corev1.Pod, key, template string, image Image) error {
	const tries = 4
	for range tries {
		err := s.tryNote(ctx, p, claim{key: key, template: template, image: image})
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue
		}
		var r *refusal
		if err != nil && !errors.As(err, &r) {
			return broken("note the pod's key", err)
		}
		return err
	}
	return broken("note the pod's key", errors.New("others write it at the same time"))
}

func (s *Server) tryNote(ctx context.Context, p *corev1.Pod, c claim) error {
	l := &coordv1.Lease{}
	err := s.Client.Get(ctx, s.leaseName(string(p.UID)), l)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil {
		labels, err := frozen(l)
		if err != nil {
			return err
		}
		if err := s.unchanged(p, labels); err != nil {
			return err
		}
		l.Annotations = merge(l.Annotations, map[string]string{leaseSigned: c.key})
		return s.Client.Update(ctx, l)
	}
	labels, err := json.Marshal(p.Labels)
	if err != nil {
		return err
	}
	n := s.leaseName(string(p.UID))
	l.Name, l.Namespace = n.Name, n.Namespace
	l.Labels = map[string]string{leaseLabel: leaseLabelIs}
	l.Annotations = map[string]string{
		leasePod: p.Namespace + "/" + p.Name, leaseUID: string(p.UID), leaseLabels: string(labels),
		leaseTemplate: c.template, leaseImage: c.image.Ref, leaseDigest: c.image.Digest, leaseSigned: c.key,
	}
	return s.Client.Create(ctx, l)
}

// attestCertificate is Attest for a pod whose identity is its certificate: the
// key and the pod are proved by the connection.
func (s *Server) attestCertificate(ctx context.Context, instance string, address netip.Addr, e *Event) (*controlpb.AttestResponse, error) {
	p, err := peer.PeerPod(ctx)
	if err != nil {
		return nil, invalid(reasonToken, "the token is missing, and so is a certificate of %s", PodSigner)
	}
	e.ID, e.Namespace, e.UID, e.Expires = p.ID.String(), p.Namespace, p.UID, p.Expires
	l := &coordv1.Lease{}
	switch err := s.Client.Get(ctx, s.leaseName(p.UID), l); {
	case apierrors.IsNotFound(err):
		return nil, deny(reasonSecondKey, "no certificate was signed for this pod")
	case err != nil:
		return nil, broken("read the pod's live key", err)
	}
	name, ok := podName(l, p.Namespace)
	if !ok {
		return nil, deny(reasonPod, "the certificate was signed for a pod of another namespace")
	}
	e.Pod = name
	f, err := s.look(ctx, p.Namespace, name, address)
	if err != nil {
		return nil, err
	}
	if string(f.pod.UID) != p.UID || f.pod.Spec.ServiceAccountName != p.ServiceAccount {
		return nil, deny(reasonPod, "the pod is gone; another one has its name")
	}
	f.cert, e.Node = true, f.pod.Spec.NodeName
	image, template, err := s.examine(ctx, f)
	if err != nil {
		return nil, err
	}
	start := sidecarStatus(f.pod, s.Sidecar.Container).ContainerID
	c := claim{key: p.Key, instance: instance, start: start, template: template, image: image, cert: true}
	e.Renewal = value(l.Spec.HolderIdentity) != ""
	w, err := s.admit(ctx, f, c)
	if err != nil {
		return nil, err
	}
	roots, err := s.roots(ctx)
	if err != nil {
		return nil, broken("read the trust bundle", err)
	}
	return &controlpb.AttestResponse{Roots: roots, Workload: w, ServerTime: timestamppb.New(s.Now())}, nil
}

// podName is the name of the pod that a lease is for, if it is in namespace.
func podName(l *coordv1.Lease, namespace string) (string, bool) {
	ns, name, ok := strings.Cut(l.Annotations[leasePod], "/")
	return name, ok && ns == namespace && name != ""
}
