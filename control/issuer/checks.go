package issuer

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/attache-dev/attache/api"
)

// facts are what a verdict on a pod rests on.
type facts struct {
	token    *bound // nil where the caller presents an SVID only
	address  netip.Addr
	raw      map[string]any // the pod as JSON, with what this program does not know
	pod      *corev1.Pod
	ns       *corev1.Namespace
	audience string
	own      Names
	cert     bool // the caller's identity is a pod certificate, not a token
}

// check is one thing that must be so.
type check struct {
	name string
	fn   func(*facts) error
}

// checks in the order in which they are made. Each has a test that fails
// without it.
var checks = []check{
	{"alive", alive},
	{"account", sameAccount},
	{"node", sameNode},
	{"address", ownAddress},
	{"namespace", namespaceOptedIn},
	{"host", apartFromHost},
	{"running", sidecarRuns},
	{"user", aloneAsUser},
	{"audience", audienceOnce},
	{"source", oneSource},
	{"mounts", tokenMountedOnce},
	{"debug", notDebugged},
}

func runChecks(f *facts) error { return run(checks, f) }

func run(checks []check, f *facts) error {
	for _, c := range checks {
		if err := c.fn(f); err != nil {
			return err
		}
	}
	return nil
}

// alive: a pod that ended needs no identity. One that is being deleted still
// does, since its sidecar stops last.
func alive(f *facts) error {
	if f.token != nil && string(f.pod.UID) != f.token.uid {
		return deny(reasonPod, "the token's pod is gone; another one has its name")
	}
	if p := f.pod.Status.Phase; p == corev1.PodSucceeded || p == corev1.PodFailed {
		return deny(reasonPod, "the pod has ended")
	}
	return nil
}

func sameAccount(f *facts) error {
	if f.token != nil && (f.token.namespace != f.pod.Namespace || f.token.account != f.pod.Spec.ServiceAccountName) {
		return deny(reasonAccount, "the token's service account is not the pod's")
	}
	return nil
}

// sameNode: the API server puts the node of a bound token's pod into the
// token; a token that was made before the pod had one names none.
func sameNode(f *facts) error {
	if f.pod.Spec.NodeName == "" {
		return later(reasonPending, "the pod has no node yet")
	}
	if f.token != nil && f.token.node != f.pod.Spec.NodeName {
		return deny(reasonNode, "the token was not made for the pod's node")
	}
	return nil
}

// ownAddress: who took the token elsewhere comes from elsewhere.
func ownAddress(f *facts) error {
	ips := f.pod.Status.PodIPs
	if len(ips) == 0 && f.pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: f.pod.Status.PodIP}}
	}
	if len(ips) == 0 {
		return later(reasonPending, "the kubelet has not reported the pod's addresses yet")
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Unmap() == f.address {
			return nil
		}
	}
	return deny(reasonAddress, "the call comes from %s, which is not the pod's address", f.address)
}

func namespaceOptedIn(f *facts) error {
	if f.ns.Name != f.pod.Namespace || f.ns.Labels[api.InjectLabel] != api.InjectEnabled {
		return deny(reasonNamespace, "namespace %s is not labelled %s=%s", f.pod.Namespace, api.InjectLabel, api.InjectEnabled)
	}
	return nil
}

// apartFromHost: a pod that shares namespaces with the node, or its containers
// with each other, cannot keep the sidecar's memory to itself.
func apartFromHost(f *facts) error {
	s := f.pod.Spec
	if s.HostNetwork || s.HostPID || s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		return deny(reasonHost, "the pod has hostNetwork, hostPID or shareProcessNamespace")
	}
	return nil
}

func sidecarRuns(f *facts) error {
	if err := sidecarIs(f); err != nil {
		return err
	}
	st := sidecarStatus(f.pod, f.own.Container)
	if st == nil || st.State.Running == nil || st.ContainerID == "" {
		return later(reasonPending, "the kubelet has not reported that the sidecar runs yet")
	}
	return nil
}

// sidecarIs: what the pod says of its sidecar.
func sidecarIs(f *facts) error {
	n := 0
	for _, c := range f.pod.Spec.InitContainers {
		if c.Name == f.own.Container {
			n++
			if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
				return deny(reasonSidecar, "container %s is not a native sidecar", f.own.Container)
			}
		}
	}
	if n != 1 {
		return deny(reasonSidecar, "the pod has no sidecar %s; make it anew, so that admission adds it", f.own.Container)
	}
	return nil
}

func sidecarStatus(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for i := range p.Status.InitContainerStatuses {
		if st := &p.Status.InitContainerStatuses[i]; st.Name == name {
			return st
		}
	}
	return nil
}

// aloneAsUser: a process with the sidecar's user could read its memory, and
// passes the redirect. Admission's own redirect may have it (redirectAs): it is of
// the same image, held to the template, and has ended when the sidecar starts.
func aloneAsUser(f *facts) error {
	if u := userOf(f.pod.Spec.SecurityContext); u != nil && *u == f.own.UID {
		return deny(reasonUser, "the pod's user is %d, which is the sidecar's alone", f.own.UID)
	}
	if err := f.others(func(c corev1.Container) error {
		if sc := c.SecurityContext; !f.isRedirect(c.Name) && sc != nil && sc.RunAsUser != nil && *sc.RunAsUser == f.own.UID {
			return deny(reasonUser, "container %s runs as user %d, which is the sidecar's alone", c.Name, f.own.UID)
		}
		return nil
	}); err != nil {
		return err
	}
	// Where a pod names no user the image does, which no guard sees: kubelets
	// from 1.33 on tell who it is.
	st := f.pod.Status
	for _, c := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses) {
		if c.Name != f.own.Container && !f.isRedirect(c.Name) && c.User != nil && c.User.Linux != nil && c.User.Linux.UID == f.own.UID {
			return deny(reasonUser, "the image of container %s runs as user %d, which is the sidecar's alone; set securityContext.runAsUser", c.Name, f.own.UID)
		}
	}
	return nil
}

// isRedirect: an init container that ends; names are unique in a pod.
func (f *facts) isRedirect(name string) bool {
	return name == f.own.Redirect && slices.ContainsFunc(f.pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy == nil
	})
}

func userOf(sc *corev1.PodSecurityContext) *int64 {
	if sc == nil {
		return nil
	}
	return sc.RunAsUser
}

// audienceOnce: who holds another token with our audience looks like the
// sidecar.
func audienceOnce(f *facts) error {
	n := 0
	for _, v := range f.pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken == nil || s.ServiceAccountToken.Audience != f.audience {
				continue
			}
			if n++; v.Name != f.own.Token || n > 1 {
				return deny(reasonAudience, "volume %s has a token for audience %s, which is the sidecar's alone", v.Name, f.audience)
			}
		}
	}
	return nil
}

// oneSource: a pod is attested by its token or by its certificate, whichever
// admission gave to the sidecar; the other way is nobody's. A certificate of
// our signer elsewhere would be another sidecar.
func oneSource(f *facts) error {
	n := 0
	for _, v := range f.pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.PodCertificate == nil || s.PodCertificate.SignerName != PodSigner {
				continue
			}
			if n++; v.Name != f.own.Token || n > 1 {
				return deny(reasonAudience, "volume %s has a certificate of %s, which is the sidecar's alone", v.Name, PodSigner)
			}
		}
	}
	switch {
	case f.token != nil && n > 0:
		return deny(reasonSource, "the pod's identity is a certificate, not a token")
	case f.cert && n == 0:
		return deny(reasonSource, "the pod's identity is a token, not a certificate")
	}
	return nil
}

// tokenMountedOnce: the sidecar's volumes are in no other container.
func tokenMountedOnce(f *facts) error {
	return f.others(func(c corev1.Container) error {
		for _, m := range c.VolumeMounts {
			if slices.Contains(f.own.Private, m.Name) && !(c.Name == f.own.Redirect && m.Name != f.own.Token) {
				return deny(reasonMount, "container %s mounts %s, which is the sidecar's alone", c.Name, m.Name)
			}
		}
		return nil
	})
}

// notDebugged: an ephemeral container that joins the sidecar's processes can
// read its memory.
func notDebugged(f *facts) error {
	for _, c := range f.pod.Spec.EphemeralContainers {
		if c.TargetContainerName == f.own.Container {
			return deny(reasonDebug, "ephemeral container %s looks into the sidecar", c.Name)
		}
	}
	return nil
}

// others calls fn for each container but the sidecar, ephemeral ones too,
// until one is refused.
func (f *facts) others(fn func(corev1.Container) error) error {
	list := slices.Concat(f.pod.Spec.InitContainers, f.pod.Spec.Containers)
	for _, e := range f.pod.Spec.EphemeralContainers {
		list = append(list, corev1.Container(e.EphemeralContainerCommon))
	}
	for i, c := range list {
		if i < len(f.pod.Spec.InitContainers) && c.Name == f.own.Container {
			continue
		}
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

// sidecarImage is the program in the sidecar: by the digest that the pod names
// and, as the pod's image can be changed, by what the kubelet reports to run.
func sidecarImage(f *facts) (Image, error) {
	var out Image
	for _, c := range f.pod.Spec.InitContainers {
		if c.Name == f.own.Container {
			out = Image{Ref: c.Image, Digest: imageDigest(c.Image)}
		}
	}
	if st := sidecarStatus(f.pod, f.own.Container); st != nil {
		switch d := imageDigest(st.ImageID); {
		case out.Digest == "":
			out.Digest = d
		case strings.Contains(st.ImageID, "@"):
			out.Runs = d
		}
	}
	if out.Digest == "" {
		return Image{}, deny(reasonDigest, "the digest of the sidecar's image is unknown; name the image by digest")
	}
	return out, nil
}

// imageDigest is the sha256:… at the end of a reference or of an image id.
func imageDigest(ref string) string {
	i := strings.LastIndex(ref, "sha256:")
	if i < 0 || i > 0 && ref[i-1] != '@' && ref[i-1] != '/' {
		return ""
	}
	d := ref[i:]
	if len(d) != len("sha256:")+64 || strings.Trim(d[len("sha256:"):], "0123456789abcdef") != "" {
		return ""
	}
	return d
}
