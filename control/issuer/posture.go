package issuer

import (
	"context"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/peer"
)

// Keys of [controlpb.Workload]'s posture.
const (
	PostureDigest     = "digest"      // pending or known: whether images are
	PostureOwnerChain = "owner_chain" // Kind/name of each controller, nearest first
	PostureController = "controller"  // the last of them
	PostureRuntime    = "runtime_class"
	PostureNonRoot    = "run_as_non_root"           // true if every container must
	PostureReadOnly   = "read_only_root_filesystem" // true if every container has
	PostureNoCaps     = "capabilities_dropped"      // true if every container drops ALL and adds none
	PosturePrivileged = "privileged"                // true if any container is
	PostureDebug      = "ephemeral_containers"      // their names
	PostureTemplate   = "sidecar_template"          // hash of the sidecar's shape
	PostureSidecar    = "sidecar_digest"
)

const (
	digestPending = "pending"
	digestKnown   = "known"
	maxChain      = 5
	maxImages     = 64
)

// posture describes what was attested of the author's part of a pod.
func (s *Server) posture(ctx context.Context, f *facts, template, digest string, labels map[string]string) (*controlpb.Workload, error) {
	p := f.pod
	id, err := peer.ID(s.Issuer.TrustDomain(), p.Namespace, p.Spec.ServiceAccountName)
	if err != nil {
		return nil, deny(reasonAccount, "the pod's service account gives no SPIFFE ID")
	}
	w := &controlpb.Workload{
		SpiffeId: id.String(), Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName,
		Pod: p.Name, PodUid: string(p.UID), Node: p.Spec.NodeName, Labels: labels,
		Posture: map[string]string{PostureTemplate: template, PostureSidecar: digest},
	}
	images, known := images(p, f.own)
	w.Posture[PostureDigest] = digestPending
	if known {
		w.Posture[PostureDigest], w.Images = digestKnown, images
	}
	securityPosture(p, f.own, w.Posture)
	if chain := s.ownerChain(ctx, p); len(chain) > 0 {
		w.Posture[PostureOwnerChain], w.Posture[PostureController] = strings.Join(chain, ","), chain[len(chain)-1]
	}
	w.Owner, w.OwnerSource = s.owner(f.ns, p)
	return w, nil
}

// images are the references with digests of the author's containers. Init
// containers count once they have one; without those of all main and
// ephemeral containers nothing is known.
func images(p *corev1.Pod, own Names) (out []string, known bool) {
	known = true
	add := func(name, image string, st []corev1.ContainerStatus, must bool) {
		if name == own.Container || name == own.Redirect {
			return
		}
		d := ""
		for _, c := range st {
			if c.Name == name {
				d = imageDigest(c.ImageID)
			}
		}
		switch {
		case d != "":
			out = append(out, repository(image)+"@"+d)
		case must:
			known = false
		}
	}
	for _, c := range p.Spec.InitContainers {
		add(c.Name, c.Image, p.Status.InitContainerStatuses, false)
	}
	for _, c := range p.Spec.Containers {
		add(c.Name, c.Image, p.Status.ContainerStatuses, true)
	}
	for _, c := range p.Spec.EphemeralContainers {
		add(c.Name, c.Image, p.Status.EphemeralContainerStatuses, true)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxImages)], known && len(out) <= maxImages
}

// repository is an image's reference without tag and digest.
func repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		ref = ref[:i]
	}
	return ref
}

func securityPosture(p *corev1.Pod, own Names, out map[string]string) {
	nonRoot, readOnly, dropped, privileged := true, true, true, false
	podNonRoot := p.Spec.SecurityContext != nil && p.Spec.SecurityContext.RunAsNonRoot != nil && *p.Spec.SecurityContext.RunAsNonRoot
	look := func(name string, sc *corev1.SecurityContext) {
		if name == own.Container || name == own.Redirect {
			return
		}
		if sc == nil {
			sc = &corev1.SecurityContext{}
		}
		nr := podNonRoot
		if sc.RunAsNonRoot != nil {
			nr = *sc.RunAsNonRoot
		}
		nonRoot = nonRoot && nr
		readOnly = readOnly && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
		privileged = privileged || sc.Privileged != nil && *sc.Privileged
		dropped = dropped && sc.Capabilities != nil && slices.Contains(sc.Capabilities.Drop, "ALL") && len(sc.Capabilities.Add) == 0
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		look(c.Name, c.SecurityContext)
	}
	var debug []string
	for _, c := range p.Spec.EphemeralContainers {
		look(c.Name, c.SecurityContext)
		debug = append(debug, c.Name)
	}
	for k, v := range map[string]bool{PostureNonRoot: nonRoot, PostureReadOnly: readOnly, PostureNoCaps: dropped, PosturePrivileged: privileged} {
		out[k] = strconv.FormatBool(v)
	}
	if p.Spec.RuntimeClassName != nil {
		out[PostureRuntime] = *p.Spec.RuntimeClassName
	}
	if len(debug) > 0 {
		out[PostureDebug] = strings.Join(debug, ",")
	}
}

// fetched are the kinds of controllers that have controllers themselves.
var fetched = map[schema.GroupKind]bool{
	{Group: "apps", Kind: "ReplicaSet"}: true,
	{Group: "batch", Kind: "Job"}:       true,
}

// ownerChain names the pod's controllers, nearest first: ReplicaSet/web-1,
// Deployment/web. It ends where one cannot be read: what is not verified is
// not said. The chain above a controller is kept, as it does not change.
func (s *Server) ownerChain(ctx context.Context, p *corev1.Pod) []string {
	ref := metav1.GetControllerOf(p)
	var out []string
	for ; ref != nil && len(out) < maxChain; ref = s.above(ctx, p.Namespace, ref) {
		out = append(out, ref.Kind+"/"+ref.Name)
	}
	return out
}

// above is the controller of a controller; nil if it has none or is not one
// whose controller is known to this program.
func (s *Server) above(ctx context.Context, namespace string, ref *metav1.OwnerReference) *metav1.OwnerReference {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil || !fetched[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}] {
		return nil
	}
	if up, ok := s.owners.Get(ref.UID); ok {
		return up
	}
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(gv.WithKind(ref.Kind))
	if err := s.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, m); err != nil || m.UID != ref.UID {
		s.Log.WarnContext(ctx, "controller of a pod not read; the owner chain ends there", "namespace", namespace, "kind", ref.Kind, "name", ref.Name, "error", err)
		return nil
	}
	up := metav1.GetControllerOf(m)
	s.owners.Add(ref.UID, up)
	return up
}

// owner is who answers for a pod: of those that AttacheConfig or its namespace
// name, the one that it chose, or the first. Admission refuses to choose
// another; one that is taken off the list later falls to the first.
func (s *Server) owner(ns *corev1.Namespace, p *corev1.Pod) (owner, source string) {
	list, source := api.Owners(s.Cluster(), ns.Name, ns.Annotations)
	if len(list) == 0 {
		return "", ""
	}
	owner, err := api.ChooseOwner(list, p.Annotations[api.OwnerAnnotation])
	if err != nil {
		owner = list[0]
	}
	return owner, source
}
