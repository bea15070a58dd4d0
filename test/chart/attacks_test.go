package chart

import (
	"fmt"

	"github.com/attache-dev/attache/webhook/inject"
)

// podAttack is a pod as it could come out of admission, if somebody got past
// the webhook or changed the pod after it. want is a part of the message of the
// one validation that must refuse it, and of no other.
type podAttack struct {
	name   string
	number string // in kubernetes.md §3.4; "" for those found since
	want   string
	// rendering: "" is the default values; others are in renderings.
	rendering string
	mode      inject.Mode
	// from is what change starts from; nil: the injected pod.
	from   func() object
	change func(pod object)
	// labels of the namespace beside the opt-in.
	labels map[string]string
}

// renderings of the chart whose validations the default one lacks.
var renderings = map[string]string{
	"strict": "guards: {strict: true, hostPath: all}\n",
}

func onSpec(change func(spec object)) func(object) {
	return func(p object) { edit(p, change, "spec") }
}

func onAgent(change func(c object)) func(object) {
	return func(p object) { edit(p, change, "spec", "containers", "agent") }
}

func onSetup(change func(c object)) func(object) {
	return func(p object) { edit(p, change, "spec", "initContainers", "setup") }
}

func onSidecar(change func(c object)) func(object) {
	return func(p object) { edit(p, change, "spec", "initContainers", inject.SidecarName) }
}

func onRedirect(change func(c object)) func(object) {
	return func(p object) { edit(p, change, "spec", "initContainers", inject.RedirectName) }
}

func onVolume(name string, change func(v object)) func(object) {
	return func(p object) { edit(p, change, "spec", "volumes", name) }
}

func set(key string, value any) func(object) { return func(o object) { o[key] = value } }

func mount(m object) func(object) {
	return func(c object) { appendTo(c, "volumeMounts", m) }
}

func addVolume(v object) func(object) {
	return onSpec(func(spec object) { appendTo(spec, "volumes", v) })
}

func hostPath(path string) func(object) {
	return addVolume(object{"name": "node", "hostPath": object{"path": path}})
}

func security(sc object) func(object) { return set("securityContext", sc) }

func capability(name string) func(object) {
	return security(object{"capabilities": object{"add": []any{name}}})
}

func token(audience string) object {
	return object{"name": "mine", "projected": object{"sources": []any{
		object{"downwardAPI": object{"items": []any{object{"path": "l", "fieldRef": object{"fieldPath": "metadata.labels"}}}}},
		object{"serviceAccountToken": object{"audience": audience, "path": "t"}},
	}}}
}

func both(changes ...func(object)) func(object) {
	return func(p object) {
		for _, c := range changes {
			c(p)
		}
	}
}

// initOrder puts the init containers in this order.
func initOrder(names ...string) func(object) {
	return onSpec(func(spec object) {
		byName := map[string]any{}
		for _, c := range spec["initContainers"].([]any) {
			byName[c.(object)["name"].(string)] = c
		}
		var list []any
		for _, n := range names {
			list = append(list, byName[n])
		}
		spec["initContainers"] = list
	})
}

// look is a container that looks like ours to who asks for the name alone.
func look(spec object) {
	appendTo(spec, "initContainers", object{"name": inject.SidecarName, "image": image, "restartPolicy": "Always", "args": []any{"proxy"}})
}

const (
	notAsBuilt   = "attache-sidecar is not as admission builds it"
	badRedirect  = "attache-redirect is not as admission builds it"
	onlySidecar  = "only the sidecar may mount"
	reservedName = "the names attache-sidecar and attache-redirect are reserved"
	reservedVol  = "spec.volumes: names that begin with attache- are reserved"
	badAudience  = "certificate of its signer, is the sidecar's"
	badUID       = "64200 is the sidecar's alone"
	badPriv      = "a privileged container can read the sidecar"
	badCap       = "a capability that can pass by or read the sidecar"
	badImage     = "attache-redirect is none of those accepted"
	badTrust     = "/var/run/attache is where the CA bundle is"
	badOrder     = "something stands before attache-sidecar"
	badPort      = "15001, 15002 and 15020 are the sidecar's"
	badNode      = "folders of the node from which"
	missing      = "has no attache-sidecar, which admission adds"
	badOptOut    = "is false, which the namespace does not allow"
	badMesh      = "another mesh redirects connections too"
	badMirror    = "only nodes make mirrors"
)

var podAttacks = []podAttack{
	{name: "agent mounts the token", number: "1", want: onlySidecar, change: onAgent(mount(object{"name": "attache-token", "mountPath": "/t"}))},
	{name: "init container mounts the state", number: "1", want: onlySidecar, change: onSetup(mount(object{"name": "attache-state", "mountPath": "/s"}))},
	{name: "agent mounts the spool by subPath", want: onlySidecar, change: onAgent(mount(object{"name": "attache-spool", "mountPath": "/s", "subPath": "x"}))},
	{name: "native sidecar of the author's mounts the token", want: onlySidecar,
		change: both(onSetup(set("restartPolicy", "Always")), onSetup(mount(object{"name": "attache-token", "mountPath": "/t"})))},
	{name: "token with our audience", number: "3", want: badAudience, change: addVolume(token("attache.dev"))},
	{name: "certificate of our signer", want: badAudience, change: addVolume(object{"name": "c", "projected": object{"sources": []any{
		object{"podCertificate": object{"signerName": "attache.dev/control", "keyType": "ED25519", "credentialBundlePath": "c"}}}}})},
	{name: "the sidecar's user for the pod", number: "4", want: badUID, change: onSpec(security(object{"runAsUser": 64200}))},
	{name: "the sidecar's user for a container", number: "4", want: badUID, change: onAgent(security(object{"runAsUser": 64200}))},
	{name: "the sidecar's user for an init container", number: "4", want: badUID, change: onSetup(security(object{"runAsUser": 64200}))},
	{name: "NET_ADMIN", number: "5", want: badCap, change: onAgent(capability("NET_ADMIN"))},
	{name: "cap_sys_ptrace in small letters", number: "5", want: badCap, change: onAgent(capability("cap_sys_ptrace"))},
	{name: "all capabilities for an init container", number: "5", want: badCap, change: onSetup(capability("ALL"))},
	{name: "BPF", number: "5", want: badCap, change: onAgent(capability("CAP_BPF"))},
	{name: "privileged", number: "5", want: badPriv, change: onAgent(security(object{"privileged": true}))},
	{name: "unmasked proc", want: "is Unmasked, which shows", change: both(onAgent(security(object{"procMount": "Unmasked"})), onSpec(set("hostUsers", false)))},
	{name: "the node's network", number: "6", want: "spec.hostNetwork: is true", change: onSpec(set("hostNetwork", true))},
	{name: "the node's processes", number: "6", want: "spec.hostPID: is true", change: onSpec(set("hostPID", true))},
	{name: "shared processes", number: "6", want: "spec.shareProcessNamespace: is true", change: onSpec(set("shareProcessNamespace", true))},
	{name: "another image as sidecar", number: "8", want: badImage, change: onSidecar(set("image", "evil"))},
	{name: "another image as redirect", number: "8", want: badImage, mode: inject.Transparent, change: onRedirect(set("image", image+"-evil"))},
	{name: "our image with a command", want: notAsBuilt, change: onSidecar(set("command", []any{"/attache-sidecar", "redirect"}))},
	{name: "our image with other arguments", want: notAsBuilt, change: onSidecar(set("args", []any{"version"}))},
	{name: "our image against another control plane", want: notAsBuilt, change: onSidecar(func(c object) {
		edit(c, set("value", "evil.example:443"), "env", "ATTACHE_CONTROL")
	})},
	{name: "our image with the agent's volume", want: notAsBuilt, change: both(addVolume(object{"name": "shared", "emptyDir": object{}}),
		onSidecar(mount(object{"name": "shared", "mountPath": "/var/lib/attache"})))},
	{name: "our image with variables from a ConfigMap", want: notAsBuilt, change: onSidecar(set("envFrom", []any{object{"configMapRef": object{"name": "x"}}}))},
	{name: "our image with a hook", want: notAsBuilt, change: onSidecar(set("lifecycle", object{"preStop": object{"exec": object{"command": []any{"x"}}}}))},
	{name: "our image as another user", want: notAsBuilt, change: onSidecar(func(c object) {
		edit(c, set("runAsUser", 1000), "securityContext")
	})},
	{name: "sidecar that the others do not wait for", want: notAsBuilt, change: onSidecar(func(c object) { delete(c, "startupProbe") })},
	{name: "sidecar that ends before the agent starts", want: notAsBuilt, change: onSidecar(func(c object) {
		delete(c, "restartPolicy")
		delete(c, "startupProbe")
		delete(c, "readinessProbe")
	})},
	{name: "redirect with more capabilities", want: badRedirect, mode: inject.Transparent, change: onRedirect(func(c object) {
		edit(c, set("add", []any{"NET_ADMIN", "SYS_PTRACE"}), "securityContext", "capabilities")
	})},
	{name: "redirect that mounts the token", want: badRedirect, mode: inject.Transparent, change: onRedirect(mount(object{"name": "attache-token", "mountPath": "/t"}))},
	{name: "redirect that does something else", want: badRedirect, mode: inject.Transparent, change: onRedirect(set("args", []any{"proxy"}))},
	{name: "init container before the sidecar", want: badOrder, change: initOrder("setup", inject.SidecarName)},
	{name: "init container before the redirect", want: badOrder, mode: inject.Transparent, change: initOrder("setup", inject.RedirectName, inject.SidecarName)},
	{name: "init container between redirect and sidecar", want: badOrder, mode: inject.Transparent, change: initOrder(inject.RedirectName, "setup", inject.SidecarName)},
	{name: "container with our name", want: reservedName, change: onSpec(func(spec object) {
		appendTo(spec, "containers", object{"name": inject.RedirectName, "image": "x"})
	})},
	{name: "Windows pod with our container", want: reservedName, from: agentPod,
		change: both(onSpec(look), initOrder(inject.SidecarName, "setup"), onSidecar(set("startupProbe", object{"tcpSocket": object{"port": 15020}})), onSidecar(security(object{"runAsUser": 64200})),
			onSpec(set("automountServiceAccountToken", false)), onSpec(set("nodeSelector", object{"kubernetes.io/os": "windows"})))},
	{name: "Windows pod with our audience", want: badAudience, from: agentPod,
		change: both(onSpec(set("nodeSelector", object{"kubernetes.io/os": "windows"})), addVolume(token("attache.dev")))},
	{name: "Windows pod with our token's volume", want: reservedVol, from: agentPod,
		change: both(onSpec(set("nodeSelector", object{"kubernetes.io/os": "windows"})), addVolume(func() object {
			v := token("attache.dev")
			v["name"] = "attache-token"
			return v
		}()))},
	{name: "opted-out pod with our audience", want: badAudience, from: agentPod, labels: map[string]string{"attache.dev/allow-opt-out": "true"},
		change: both(addVolume(token("attache.dev")), func(p object) { edit(p, set("attache.dev/inject", "false"), "metadata", "labels") })},
	{name: "state on a disk of the author's", want: reservedVol, change: onVolume("attache-state", func(v object) {
		delete(v, "emptyDir")
		v["persistentVolumeClaim"] = object{"claimName": "mine"}
	})},
	{name: "more in the token's volume", want: reservedVol, change: onVolume("attache-token", func(v object) {
		edit(v, func(p object) { appendTo(p, "sources", object{"secret": object{"name": "x"}}) }, "projected")
	})},
	{name: "bundle that the agent can write", want: badTrust, change: onAgent(func(c object) {
		edit(c, set("readOnly", false), "volumeMounts", "attache-trust")
	})},
	{name: "part of the bundle elsewhere", want: badTrust, change: onAgent(mount(object{"name": "attache-trust", "mountPath": "/etc/ssl", "readOnly": true, "subPath": "x"}))},
	{name: "mount over the bundle", want: badTrust, change: both(addVolume(object{"name": "m", "emptyDir": object{}}),
		onAgent(mount(object{"name": "m", "mountPath": "/run//attache/./trust"})))},
	{name: "mount over the bundle by dots", want: badTrust, change: both(addVolume(object{"name": "m", "emptyDir": object{}}),
		onAgent(mount(object{"name": "m", "mountPath": "/tmp/../var/run/attache"})))},
	{name: "the sidecar's port", want: badPort, change: onAgent(set("ports", []any{object{"containerPort": 15002}}))},
	{name: "the sidecar's port on the node", want: badPort, change: onSetup(set("ports", []any{object{"containerPort": 15020, "hostPort": 15020}}))},
	{name: "the kubelet's folder", want: badNode, change: hostPath("/var/lib/kubelet/pods")},
	{name: "above the kubelet's folder", want: badNode, change: hostPath("/var/lib/")},
	{name: "the whole node", want: badNode, change: hostPath("/")},
	{name: "the runtime's socket, oddly written", want: badNode, change: hostPath("//var/./run//containerd/containerd.sock")},
	{name: "the node's processes by path", want: badNode, change: hostPath("/proc")},
	{name: "static pods", want: badNode, change: hostPath("/etc/kubernetes/manifests")},
	{name: "the kernel's settings", want: badNode, change: hostPath("/sys/kernel")},
	{name: "memory devices", want: badNode, change: hostPath("/dev")},
	{name: "a socket of a runtime", want: badNode, change: hostPath("/var/run/dockershim.sock")},
	{name: "any hostPath", want: "hostPath is not allowed in this cluster", rendering: "strict", change: hostPath("/srv/data")},
	{name: "pod that no webhook has seen", number: "12", want: missing, from: agentPod, change: func(object) {}},
	{name: "pod that opts out", want: badOptOut, change: func(p object) { edit(p, set("attache.dev/inject", "false"), "metadata", "labels") }},
	{name: "pod that is neither in nor out", want: "is neither enabled nor false", change: func(p object) { edit(p, set("attache.dev/inject", "no"), "metadata", "labels") }},
	{name: "pod that says it is a static pod's mirror", want: badMirror, change: func(p object) {
		edit(p, func(m object) {
			edit(m, set("kubernetes.io/config.mirror", "x"), "annotations")
		}, "metadata")
		edit(p, func(s object) {
			s["nodeName"] = "n1"
			delete(s, "serviceAccountName")
			var kept []any
			for _, v := range s["volumes"].([]any) {
				if v.(object)["name"] != "attache-token" {
					kept = append(kept, v)
				}
			}
			s["volumes"] = kept
			c := s["initContainers"].([]any)[0].(object)
			var mounts []any
			for _, m := range c["volumeMounts"].([]any) {
				if m.(object)["name"] != "attache-token" {
					mounts = append(mounts, m)
				}
			}
			c["volumeMounts"] = mounts
		}, "spec")
	}},
	{name: "another mesh in transparent mode", want: badMesh, mode: inject.Transparent, change: onSpec(func(s object) {
		appendTo(s, "containers", object{"name": "istio-proxy", "image": "x"})
	})},
	{name: "user namespace in transparent mode", want: "spec.hostUsers: is false", mode: inject.Transparent, change: onSpec(set("hostUsers", false))},
	{name: "root that may change its user", want: "capabilities.drop: lacks ALL", rendering: "strict", mode: inject.Transparent,
		change: both(confined, onAgent(security(object{"allowPrivilegeEscalation": false})))},
	{name: "capability to change the user, back again", want: "has more than NET_BIND_SERVICE", rendering: "strict", mode: inject.Transparent,
		change: both(confined, onAgent(func(c object) { edit(c, set("add", []any{"SETUID"}), "securityContext", "capabilities") }))},
	{name: "set-user-id file of the sidecar's user", want: "allowPrivilegeEscalation: is not false", rendering: "strict", mode: inject.Transparent,
		change: both(confined, onAgent(func(c object) { edit(c, func(o object) { delete(o, "allowPrivilegeEscalation") }, "securityContext") }))},
	{name: "user of the image", want: "runAsUser: is not set", rendering: "strict", mode: inject.Transparent,
		change: both(confined, onSpec(func(s object) { delete(s, "securityContext") }))},
}

// confined has what guards.strict asks for.
func confined(p object) {
	for _, on := range []func(func(object)) func(object){onSetup, onAgent} {
		on(security(object{"capabilities": object{"drop": []any{"ALL"}}, "allowPrivilegeEscalation": false}))(p)
	}
	edit(p, security(object{"capabilities": object{"drop": []any{"ALL"}, "add": []any{"NET_BIND_SERVICE"}}, "allowPrivilegeEscalation": false}), "spec", "containers", "helper")
	onSpec(security(object{"runAsUser": 1000}))(p)
}

// harmlessPods are admitted.
var harmlessPods = []podAttack{
	{name: "explicit", change: func(object) {}},
	{name: "transparent", mode: inject.Transparent, change: func(object) {}},
	{name: "NET_BIND_SERVICE", change: onAgent(capability("NET_BIND_SERVICE"))},
	{name: "another user", change: onAgent(security(object{"runAsUser": 64201}))},
	{name: "token with another audience", change: addVolume(token("vault"))},
	{name: "host path of no secrets", change: hostPath("/srv/data")},
	{name: "host path that only begins like one", change: hostPath("/var/lib/kubelet-plugins-of-others")},
	{name: "host path with dots in a name", change: hostPath("/srv/a..b")},
	{name: "host path to the clock", change: hostPath("/etc/localtime")},
	{name: "mount beside the bundle", change: both(addVolume(object{"name": "m", "emptyDir": object{}}), onAgent(mount(object{"name": "m", "mountPath": "/var/run/attached"})))},
	{name: "port", change: onAgent(set("ports", []any{object{"containerPort": 8080}}))},
	{name: "opted out where the namespace allows it", from: agentPod, labels: map[string]string{"attache.dev/allow-opt-out": "true"},
		change: func(p object) { edit(p, set("attache.dev/inject", "false"), "metadata", "labels") }},
	{name: "Windows", from: agentPod, change: onSpec(set("os", object{"name": "windows"}))},
	{name: "mesh in explicit mode", change: onSpec(func(s object) { appendTo(s, "containers", object{"name": "istio-proxy", "image": "x"}) })},
	{name: "user namespace in explicit mode", change: onSpec(set("hostUsers", false))},
	{name: "gate, node and host name of the author's", change: onSpec(func(s object) {
		s["schedulingGates"] = []any{object{"name": "example.com/wait"}}
		s["hostAliases"] = []any{object{"ip": "10.0.0.1", "hostnames": []any{"attache-control." + release + ".svc"}}}
		s["automountServiceAccountToken"] = false
	})},
	{name: "as many containers and mounts as injection takes", change: onSpec(func(s object) {
		for i := range 40 {
			appendTo(s, "volumes", object{"name": fmt.Sprintf("v%d", i), "hostPath": object{"path": fmt.Sprintf("/srv//a/./b/c/d/e/f/%d", i)}})
		}
		for i := range 190 {
			c := object{"name": fmt.Sprintf("c%d", i), "image": "x", "ports": []any{object{"containerPort": 8000 + i}}}
			capability("NET_BIND_SERVICE")(c)
			for j := range 40 {
				mount(object{"name": fmt.Sprintf("v%d", j), "mountPath": fmt.Sprintf("/a//b/./c/d/e/f/%d", j)})(c)
			}
			appendTo(s, "containers", c)
		}
	})},
	{name: "strict, and it complies", rendering: "strict", mode: inject.Transparent, change: confined},
	{name: "strict asks nothing in explicit mode", rendering: "strict", change: func(object) {}},
}
