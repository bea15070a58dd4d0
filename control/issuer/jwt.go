package issuer

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/identity"
)

// Bounds of a JWT request.
const (
	maxAudience = 1 << 10
	maxClaims   = 4 << 10
	maxLabels   = 2 << 10 // of a token's label claims; with more, none are in it
)

// postureClaim holds what was attested; a sidecar cannot replace it.
const postureClaim = "attache"

// JWT implements controlpb.IdentityServer: a JWT-SVID for one audience of the
// caller's compiled policy. The pod is looked at again: by the watch, and live
// if the watch saw a change.
func (s *Server) JWT(ctx context.Context, r *controlpb.JWTRequest) (*controlpb.JWTResponse, error) {
	e := Event{Kind: "jwt", Audience: r.GetAudience()}
	if len(e.Audience) > 200 {
		e.Audience = strings.ToValidUTF8(e.Audience[:200], "") + "…"
	}
	out, err := s.jwt(ctx, r, &e)
	if rec := s.record(ctx, e, err); rec != nil && err == nil {
		return nil, broken("record the issuance", rec)
	}
	return out, err
}

func (s *Server) jwt(ctx context.Context, r *controlpb.JWTRequest, e *Event) (*controlpb.JWTResponse, error) {
	p, err := peer.PeerPod(ctx)
	if err != nil {
		return nil, &refusal{code: codes.Unauthenticated, reason: reasonCaller, text: err.Error()}
	}
	e.ID, e.Namespace, e.UID, e.Pod = p.ID.String(), p.Namespace, p.UID, s.nameOf(p.UID)
	if !s.jwts.allow(p.UID) {
		return nil, tooOften("JWT-SVIDs")
	}
	claims, err := readClaims(r)
	if err != nil {
		return nil, err
	}
	if err := s.mayAsk(p, r); err != nil {
		return nil, err
	}
	address, err := peer.Address(ctx)
	if err != nil {
		return nil, broken("see where the call comes from", err)
	}
	w, err := s.again(ctx, p, address)
	if err != nil {
		return nil, err
	}
	e.Pod, e.Node = w.Pod, w.Node
	claims[postureClaim] = describe(w)
	id, err := spiffeid.FromString(w.SpiffeId)
	if err != nil {
		return nil, broken("name the workload", err)
	}
	ttl := MaxJWT
	if want := time.Duration(r.GetTtlSeconds()) * time.Second; want > 0 {
		ttl = min(ttl, want)
	}
	t, err := s.Issuer.JWT(ctx, identity.JWTRequest{
		Workload: &identity.Workload{ID: id}, Audience: r.GetAudience(), TTL: ttl, ClientID: r.GetClientId(), Claims: claims,
	})
	if err != nil {
		return nil, broken("sign", err)
	}
	e.JTI, e.Expires = t.ID, t.Expires
	return &controlpb.JWTResponse{Token: t.Token.Reveal(), Id: t.ID, Expires: timestamppb.New(t.Expires)}, nil
}

// Peer is who calls another service of the control plane: the pod of its SVID,
// if that still is the pod's live key, comes from the pod's address, and the
// pod would be attested now. It costs one read from the API server, and more
// only if the pod has changed. Refusals are gRPC statuses.
func (s *Server) Peer(ctx context.Context) (peer.Pod, error) {
	p, err := s.peer(ctx)
	if err != nil {
		e := Event{Kind: "call", ID: p.ID.String(), Namespace: p.Namespace, UID: p.UID, Pod: s.nameOf(p.UID)}
		_ = s.record(ctx, e, err) // refused either way
		return peer.Pod{}, err
	}
	return p, nil
}

func (s *Server) peer(ctx context.Context) (peer.Pod, error) {
	p, err := peer.PeerPod(ctx)
	if err != nil {
		return p, &refusal{code: codes.Unauthenticated, reason: reasonCaller, text: err.Error(), cause: peer.ErrNoPod}
	}
	address, err := peer.Address(ctx)
	if err != nil {
		return p, broken("see where the call comes from", err)
	}
	// Each look costs the API server a read, which others wait for. Who has
	// stolen a key uses up none of its pod's.
	if !s.calls.allow(p.UID + " " + address.String()) {
		return p, tooOften("calls")
	}
	_, err = s.again(ctx, p, address)
	return p, err
}

// readClaims takes the claims that the sidecar adds.
func readClaims(r *controlpb.JWTRequest) (map[string]any, error) {
	switch {
	case r.GetAudience() == "" || len(r.GetAudience()) > maxAudience:
		return nil, invalid(reasonRequest, "the audience is missing or longer than %d bytes", maxAudience)
	case r.GetTtlSeconds() < 0:
		return nil, invalid(reasonRequest, "the lifetime is negative")
	case len(r.GetClaims()) > maxClaims:
		return nil, invalid(reasonRequest, "the claims are longer than %d bytes", maxClaims)
	}
	out := map[string]any{}
	if len(r.GetClaims()) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(r.GetClaims(), &out); err != nil || out == nil {
		return nil, invalid(reasonRequest, "the claims are no JSON object")
	}
	for k := range out {
		switch strings.ToLower(k) {
		case postureClaim, "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "kubernetes.io", "cnf", "act", "may_act", "azp", "client_id":
			return nil, invalid(reasonRequest, "claim %q is the issuer's to set", k)
		}
	}
	return out, nil
}

// mayAsk holds a request against the pod's compiled policy.
func (s *Server) mayAsk(p peer.Pod, r *controlpb.JWTRequest) error {
	if !api.AllowsAudience(s.Audiences(p.UID), r.GetAudience()) {
		return deny(reasonPolicy, "no provider in the pod's policy has audience %q", r.GetAudience())
	}
	if c := r.GetClientId(); c != "" && c != p.ID.String() && !slices.Contains(s.ClientIDs(p.UID), c) {
		return deny(reasonPolicy, "no provider in the pod's policy has client id %q", c)
	}
	return nil
}

// again returns the posture of a pod that holds an SVID, after looking whether
// it still may have one.
func (s *Server) again(ctx context.Context, p peer.Pod, address netip.Addr) (*controlpb.Workload, error) {
	name, err := s.liveKey(ctx, p)
	if err != nil {
		return nil, err
	}
	if w := s.unchangedSince(ctx, p, name, address); w != nil {
		return w, nil
	}
	f, err := s.look(ctx, p.Namespace, name, address)
	if err != nil {
		return nil, err
	}
	if string(f.pod.UID) != p.UID || f.pod.Spec.ServiceAccountName != p.ServiceAccount {
		return nil, deny(reasonPod, "the pod is gone; another one has its name")
	}
	image, template, err := s.examine(ctx, f)
	if err != nil {
		return nil, err
	}
	labels, err := s.labelsOf(ctx, f.pod)
	if err != nil {
		return nil, err
	}
	if err := s.unchanged(f.pod, labels); err != nil {
		return nil, err
	}
	w, err := s.posture(ctx, f, template, image.Digest, labels)
	if err != nil {
		return nil, err
	}
	s.remember(f, image, w)
	return w, nil
}

// unchangedSince returns the last verdict on a pod if the watch has seen no
// change of the pod or its namespace since, and it calls from the same
// address; nil otherwise.
func (s *Server) unchangedSince(ctx context.Context, p peer.Pod, name string, address netip.Addr) *controlpb.Workload {
	a, ok := s.verified.Get(p.UID)
	if !ok || a.address != address {
		return nil
	}
	pod, ns := &corev1.Pod{}, &corev1.Namespace{}
	if s.Cache.Get(ctx, types.NamespacedName{Namespace: p.Namespace, Name: name}, pod) != nil || s.Cache.Get(ctx, types.NamespacedName{Name: p.Namespace}, ns) != nil {
		return nil
	}
	if string(pod.UID) != p.UID || pod.ResourceVersion != a.version || ns.ResourceVersion != a.nsVersion {
		return nil
	}
	if s.Templates.Accepted(ctx, a.workload.Posture[PostureTemplate], a.image) != nil {
		return nil // retired, perhaps: the long way says what is wrong
	}
	return a.workload
}

func (s *Server) nameOf(uid string) string { n, _ := s.names.Get(uid); return n }

// liveKey returns the name of the pod that holds p's key, and refuses an SVID
// whose key another start of the sidecar has replaced.
func (s *Server) liveKey(ctx context.Context, p peer.Pod) (name string, err error) {
	l := &coordv1.Lease{}
	err = s.Client.Get(ctx, s.leaseName(p.UID), l)
	switch {
	case apierrors.IsNotFound(err):
		return "", deny(reasonSecondKey, "the pod's key is not known; attest again")
	case err != nil:
		return "", broken("read the pod's live key", err)
	case value(l.Spec.HolderIdentity) != p.Key && l.Annotations[leasePrevious] != p.Key:
		return "", deny(reasonSecondKey, "another start of the sidecar has replaced this key")
	}
	_, name, _ = strings.Cut(l.Annotations[leasePod], "/")
	s.names.Add(p.UID, name)
	return name, nil
}

// labelsOf are the labels that a pod had when it was first attested.
func (s *Server) labelsOf(ctx context.Context, pod *corev1.Pod) (map[string]string, error) {
	if out, ok := s.labels.Get(string(pod.UID)); ok {
		return out, nil
	}
	l := &coordv1.Lease{}
	if err := s.Client.Get(ctx, s.leaseName(string(pod.UID)), l); err != nil {
		return nil, broken("read the labels that the pod had", err)
	}
	out, err := frozen(l)
	if err == nil {
		s.labels.Add(string(pod.UID), out)
	}
	return out, err
}

// readLabels reads those of all pods in one call, for a replica that starts.
func (s *Server) readLabels(ctx context.Context) {
	list := &coordv1.LeaseList{}
	if err := s.Client.List(ctx, list, client.InNamespace(s.Namespace), client.MatchingLabels{leaseLabel: leaseLabelIs}); err != nil {
		return // each is read when it is asked for
	}
	for i := range list.Items {
		if out, err := frozen(&list.Items[i]); err == nil {
			s.labels.Add(list.Items[i].Annotations[leaseUID], out)
		}
	}
}

// describe is the claim of what was attested.
func describe(w *controlpb.Workload) map[string]any {
	out := map[string]any{
		"namespace": w.Namespace, "service_account": w.ServiceAccount, "pod": w.Pod, "pod_uid": w.PodUid, "node": w.Node, "posture": w.Posture,
	}
	if len(w.Images) > 0 {
		out["images"] = w.Images
	}
	if w.Owner != "" {
		out["owner"], out["owner_source"] = w.Owner, w.OwnerSource
	}
	n := 0
	for k, v := range w.Labels {
		n += len(k) + len(v)
	}
	if n > 0 && n <= maxLabels {
		out["labels"] = w.Labels
	}
	return out
}
