package inject

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// guard refuses pods in which the sidecar would protect nothing. The cluster's
// ValidatingAdmissionPolicies say the same of the final pod, also while the
// webhook is down; these messages say it better.
func (j *injection) guard() {
	j.guardPod()
	j.guardNames()
	for _, c := range j.containers {
		j.guardContainer(c)
	}
	for _, v := range j.volumes {
		j.guardVolume(v)
	}
	if j.mode == Transparent {
		j.guardTransparent()
	}
	j.staticSecrets()
}

func (j *injection) guardPod() {
	j.guardSharing()
	if len(j.objects(j.spec, "ephemeralContainers", "spec.ephemeralContainers")) > 0 {
		j.deny("spec.ephemeralContainers", "cannot be set when a pod is made", "remove it")
	}
	if sa := j.text(j.spec, "serviceAccountName", "spec.serviceAccountName"); sa == "" || sa == "default" {
		j.warnings.add("spec.serviceAccountName: is default, which agents share: policies cannot tell them apart by it; give each its own")
	}
}

// guardSharing refuses pods whose containers are not kept apart.
func (j *injection) guardSharing() {
	for _, key := range []string{"hostNetwork", "hostPID", "shareProcessNamespace"} {
		if on, _ := j.truth(j.spec, key, "spec."+key); on {
			j.deny("spec."+key, "is true: the sidecar cannot be kept apart from the agent", "remove it, or run the pod in a namespace without "+labelInject)
		}
	}
	j.guardUID(j.object(j.spec, "securityContext", "spec.securityContext"), "spec.securityContext")
}

func (j *injection) guardUID(sc object, field string) {
	if uid, ok := j.integer(sc, "runAsUser", field+".runAsUser"); ok && uid == j.UID {
		j.deny(field+".runAsUser", fmt.Sprintf("is %d, which is the sidecar's alone", uid), "choose another user")
	}
}

// guardNames refuses our names in a pod that no round before has seen, and in
// places where no round puts them.
func (j *injection) guardNames() {
	for _, c := range j.own {
		if j.status == nil || !c.init {
			j.deny(c.path+".name", c.name+" is reserved", "rename the container; admission adds the sidecar by itself")
		}
	}
	for _, v := range j.volumes {
		if j.status == nil && slices.Contains(ownVolumes, v.name) {
			j.deny(v.path+".name", v.name+" is reserved", "rename the volume")
		}
	}
}

// strongCapabilities bypass the redirect or read another process's memory.
var strongCapabilities = []string{"ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF", "PERFMON"}

func (j *injection) guardContainer(c container) {
	sc := j.object(c.object, "securityContext", c.path+".securityContext")
	j.guardUID(sc, c.path+".securityContext")
	if on, _ := j.truth(sc, "privileged", c.path+".securityContext.privileged"); on {
		j.deny(c.path+".securityContext.privileged", "is true: the container can read the sidecar", "remove it")
	}
	if j.text(sc, "procMount", c.path+".securityContext.procMount") == "Unmasked" {
		j.deny(c.path+".securityContext.procMount", "is Unmasked, which shows the kernel's own files", "remove it")
	}
	field := c.path + ".securityContext.capabilities"
	caps := j.object(sc, "capabilities", field)
	for _, name := range j.strings(caps, "add", field+".add") {
		if slices.Contains(strongCapabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_")) {
			j.deny(field+".add", name+" can bypass or read the sidecar", "remove it")
		}
	}
	if j.mode == Transparent && !slices.Contains(j.strings(caps, "drop", field+".drop"), "ALL") {
		j.warnings.add(field + ".drop: lacks ALL: a root process can change its user or open raw sockets, and so pass by the sidecar")
	}
	j.guardMounts(c)
	j.guardPorts(c)
}

func (j *injection) guardMounts(c container) {
	for i, m := range j.objects(c.object, "volumeMounts", c.path+".volumeMounts") {
		field := fmt.Sprintf("%s.volumeMounts[%d]", c.path, i)
		name := j.text(m, "name", field+".name")
		at := path.Clean("/" + j.text(m, "mountPath", field+".mountPath"))
		switch {
		case slices.Contains(privateVolumes, name):
			j.deny(field+".name", "only the sidecar may mount "+name, "remove the mount")
		case name == trustVolume:
			if !j.status.seen(c.name) {
				j.deny(field+".name", name+" is reserved", "remove the mount; admission adds it")
			}
		case within(at, trustMount) || within(at, strings.TrimPrefix(trustMount, "/var")): // /var/run is a link to /run
			j.deny(field+".mountPath", "covers the CA bundle at "+trustMount, "mount it elsewhere")
		}
	}
	for i, d := range j.objects(c.object, "volumeDevices", c.path+".volumeDevices") {
		field := fmt.Sprintf("%s.volumeDevices[%d].name", c.path, i)
		if name := j.text(d, "name", field); slices.Contains(ownVolumes, name) {
			j.deny(field, name+" is reserved", "remove it")
		}
	}
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func (j *injection) guardPorts(c container) {
	for i, p := range j.objects(c.object, "ports", c.path+".ports") {
		field := fmt.Sprintf("%s.ports[%d].containerPort", c.path, i)
		n, ok := j.integer(p, "containerPort", field)
		if ok && slices.Contains(append([]int{j.ProxyPort, j.RedirectPort, j.HealthPort}, j.basePorts...), int(n)) {
			j.deny(field, fmt.Sprintf("%d is the sidecar's", n), "listen elsewhere, or let the operator move the sidecar's port")
		}
	}
}

// guardVolume refuses a token with our audience: the control plane takes who
// holds one for the sidecar.
func (j *injection) guardVolume(v volume) {
	if slices.Contains(ownVolumes, v.name) {
		return // made anew, or refused by name
	}
	j.guardHostPath(v)
	projected := j.object(v.object, "projected", v.path+".projected")
	for i, s := range j.objects(projected, "sources", v.path+".projected.sources") {
		field := fmt.Sprintf("%s.projected.sources[%d].serviceAccountToken", v.path, i)
		token := j.object(s, "serviceAccountToken", field)
		if j.text(token, "audience", field+".audience") == j.Audience && token != nil {
			j.deny(field+".audience", j.Audience+" is the sidecar's", "remove the token, or ask for another audience")
		}
		field = fmt.Sprintf("%s.projected.sources[%d].podCertificate", v.path, i)
		if signer := j.text(j.object(s, "podCertificate", field), "signerName", field+".signerName"); strings.HasPrefix(signer, prefix) {
			j.deny(field+".signerName", "is the sidecar's", "remove the certificate, or name another signer")
		}
	}
}

// hostSecrets are where nodes keep the tokens and the memory of every pod, the
// sockets that open any container, and what starts programs as root.
var hostSecrets = []string{
	"/proc", "/sys", "/dev", "/boot", "/root", "/run/secrets", "/run/kubernetes", "/run/user", "/run/systemd", "/run/dbus",
	"/run/containerd", "/run/crio", "/run/docker", "/run/dockershim", "/run/k3s", "/run/podman",
	"/run/docker.sock", "/run/crio.sock", "/run/podman.sock", "/run/cri-dockerd.sock", "/run/dockershim.sock",
	"/etc/kubernetes", "/etc/cni", "/etc/containerd", "/etc/crio", "/etc/docker", "/etc/systemd", "/etc/cron.d", "/etc/crontab",
	"/etc/ssh", "/etc/pam.d", "/etc/sudoers", "/etc/sudoers.d", "/etc/rancher", "/etc/ld.so.preload", "/opt/cni",
	"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/cni", "/var/lib/etcd",
	"/var/lib/rancher", "/var/lib/crio", "/var/lib/k0s", "/var/spool/cron",
}

// guardHostPath refuses folders of the node in which the sidecar's lie. It
// compares names: links and kubelets with a folder of their own are for Pod
// Security, whose baseline refuses every hostPath.
func (j *injection) guardHostPath(v volume) {
	field := v.path + ".hostPath"
	host := j.object(v.object, "hostPath", field)
	if host == nil {
		return
	}
	p := path.Clean("/" + j.text(host, "path", field+".path"))
	if within(p, "/var/run") {
		p = strings.TrimPrefix(p, "/var") // a link on every distribution
	}
	if p == "/" || slices.ContainsFunc(hostSecrets, func(s string) bool { return within(s, p) || within(p, s) }) {
		j.deny(field+".path", "reaches folders of the node from which the sidecar or the node can be taken", "use another kind of volume")
		return
	}
	j.warnings.add(field + ": shows the agent files of the node, and the credentials that lie there; use another kind of volume")
}

// meshes are containers that install redirects of their own.
var meshes = []string{"istio-proxy", "istio-init", "istio-validation", "linkerd-proxy", "linkerd-init", "linkerd-network-validator"}

func (j *injection) guardTransparent() {
	for _, c := range j.containers {
		if slices.Contains(meshes, c.name) {
			j.deny(c.path+".name", c.name+" redirects connections too, and one redirect would hide from the other", "use explicit mode ("+annotation(annotationMode)+")")
		}
	}
	if on, ok := j.truth(j.spec, "hostUsers", "spec.hostUsers"); ok && !on {
		j.deny("spec.hostUsers", "is false: the redirect tells users apart, which a user namespace renames", "remove it, or use explicit mode")
	}
	if level := j.nsLabels[enforcePSA]; level == "restricted" || level == "baseline" {
		j.warnings.add(fmt.Sprintf("namespace.%s: is %s, which refuses NET_ADMIN of %s unless exempted: use explicit mode", label(enforcePSA), level, RedirectName))
	}
}

// strings returns a member that is a list of strings.
func (r *reader) strings(o object, key, path string) []string {
	list, ok := o[key].([]any)
	if !ok && o[key] != nil {
		r.wrongType(path, "a list")
	}
	out := make([]string, 0, len(list))
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			r.wrongType(fmt.Sprintf("%s[%d]", path, i), "a string")
		}
		out = append(out, s)
	}
	return out
}
