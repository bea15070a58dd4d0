package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// rebuild makes of pod what it must be. Whatever is right stays where it is,
// so that a right pod does not change.
func (j *injection) rebuild(pod object) {
	spec := pod["spec"].(object)
	next := &status{Config: j.hash, Mode: j.mode, Nonce: j.placeholderFor, Containers: []string{}}
	for _, key := range []string{"initContainers", "containers"} {
		list, _ := spec[key].([]any)
		for i, v := range list {
			c := v.(object)
			if name, _ := c["name"].(string); !slices.Contains(ownContainers, name) {
				j.equip(c, name, fmt.Sprintf("spec.%s[%d]", key, i), next)
			}
		}
	}
	sidecar, redirect, volumes := j.sidecar(), object(nil), j.ownVolumes()
	if j.mode == Transparent {
		redirect = j.redirectContainer()
	}
	next.Template = templateHash(sidecar, redirect, volumes)
	spec["initContainers"] = initContainers(spec, redirect, sidecar)
	list, _ := spec["volumes"].([]any)
	for _, v := range volumes {
		list = ensure(list, v, "name")
	}
	spec["volumes"] = list

	slices.Sort(next.Kept)
	slices.Sort(next.Containers)
	meta, _ := pod["metadata"].(object)
	if meta == nil {
		meta = object{}
		pod["metadata"] = meta
	}
	annotations, _ := meta["annotations"].(object)
	if annotations == nil {
		annotations = object{}
		meta["annotations"] = annotations
	}
	annotations[annotationStatus] = next.String()
}

// initContainers puts ours first: whoever starts later has a working way out,
// and nobody starts before the sidecar says that it is ready.
func initContainers(spec, redirect, sidecar object) []any {
	var list []any
	if redirect != nil {
		list = append(list, redirect)
	}
	list = append(list, sidecar)
	old, _ := spec["initContainers"].([]any)
	for _, v := range old {
		if name, _ := v.(object)["name"].(string); !slices.Contains(ownContainers, name) {
			list = append(list, v)
		}
	}
	return list
}

// ownVolumes makes ours, in the order of the names.
func (j *injection) ownVolumes() []object {
	memory := func(name, size string) object {
		return object{"name": name, "emptyDir": object{"medium": "Memory", "sizeLimit": size}}
	}
	return []object{
		memory(trustVolume, "8Mi"),
		{"name": tokenVolume, "projected": object{"defaultMode": number(0o644), "sources": []any{j.identitySource()}}},
		memory(stateVolume, "8Mi"),
		{"name": spoolVolume, "emptyDir": object{"sizeLimit": ofBytes(j.sizes.Volume).String()}},
		memory(noneVolume, "1Mi"),
	}
}

// identitySource is what the kubelet puts into the sidecar's own volume.
func (j *injection) identitySource() object {
	if j.Identity == PodCertificate {
		return object{"podCertificate": object{
			"signerName": PodSigner, "keyType": "ECDSAP256", "credentialBundlePath": "credentials.pem",
			// The issuer decides, and gives an hour; this is the most.
			"maxExpirationSeconds": number(7200),
		}}
	}
	return object{"serviceAccountToken": object{
		"audience": j.Audience, "expirationSeconds": number(int64(j.TokenTTL.Seconds())), "path": "token",
	}}
}

// ensure puts want into a list: in the place of the first member whose key is
// the same, else at the end. Further ones are removed.
func ensure(list []any, want object, key string) []any {
	found := false
	out := list[:0]
	for _, v := range list {
		if o, ok := v.(object); ok && o[key] == want[key] {
			if found {
				continue
			}
			found, v = true, want
		}
		out = append(out, v)
	}
	if !found {
		out = append(out, want)
	}
	return out
}

// sidecar is the native sidecar: an init container that stays. It has no
// lifecycle hooks. Before the start the startup probe is what the others wait
// for; at the end the kubelet stops it after them, so that a hook which drains
// would only cut their last calls. All defaults of the API are written out, so
// that the pod comes back as it was built.
func (j *injection) sidecar() object {
	return object{
		"name":            SidecarName,
		"image":           j.Image,
		"imagePullPolicy": j.ImagePullPolicy,
		"args": []any{
			"proxy", "--mode=" + string(j.mode),
			"--listen=127.0.0.1:" + strconv.Itoa(j.ProxyPort),
			"--redirect-port=" + strconv.Itoa(j.RedirectPort),
			"--health=:" + strconv.Itoa(j.HealthPort),
		},
		"env":                      j.sidecarEnv(),
		"resources":                j.proxy.object(),
		"restartPolicy":            "Always",
		"securityContext":          securityContext(j.UID, nil),
		"startupProbe":             j.probe("/started", 1, 120),
		"readinessProbe":           j.probe("/ready", 5, 3),
		"terminationMessagePath":   "/dev/termination-log",
		"terminationMessagePolicy": "FallbackToLogsOnError",
		"volumeMounts": []any{
			object{"name": trustVolume, "mountPath": trustMount},
			object{"name": stateVolume, "mountPath": stateMount},
			object{"name": spoolVolume, "mountPath": spoolMount},
			object{"name": tokenVolume, "mountPath": tokenMount, "readOnly": true},
			noAPIToken(),
		},
	}
}

// noAPIToken stands where the ServiceAccount plugin, which runs again after
// us, would mount a token for the API server.
func noAPIToken() object {
	return object{"name": noneVolume, "mountPath": apiToken, "readOnly": true}
}

func (j *injection) probe(path string, period, failures int64) object {
	return object{
		"httpGet":          object{"path": path, "port": number(int64(j.HealthPort)), "scheme": "HTTP"},
		"timeoutSeconds":   number(2),
		"periodSeconds":    number(period),
		"successThreshold": number(1),
		"failureThreshold": number(failures),
	}
}

// redirectUser is root, or the sidecar's user, whom no container of the
// author's may have, and whose connections the rules will let pass.
func (j *injection) redirectUser() int64 {
	if j.RedirectAs == Sidecar {
		return j.UID
	}
	return 0
}

// securityContext is what the restricted Pod Security Standard asks for, but
// for the capabilities and the user of the redirect. Without privilege
// escalation the kernel still gives a file's capabilities to those whom the
// runtime left them before execve (see docs/redirect.md).
func securityContext(uid int64, capabilities []any) object {
	caps := object{"drop": []any{"ALL"}}
	if capabilities != nil {
		caps["add"] = capabilities
	}
	return object{
		"allowPrivilegeEscalation": false,
		"capabilities":             caps,
		"privileged":               false,
		"readOnlyRootFilesystem":   true,
		"runAsGroup":               number(uid),
		"runAsNonRoot":             uid != 0,
		"runAsUser":                number(uid),
		"seccompProfile":           object{"type": "RuntimeDefault"},
	}
}

// identityEnv names the file of identitySource.
func (j *injection) identityEnv() object {
	if j.Identity == PodCertificate {
		return object{"name": "ATTACHE_POD_CERTIFICATE", "value": tokenMount + "/credentials.pem"}
	}
	return object{"name": "ATTACHE_TOKEN_FILE", "value": tokenMount + "/token"}
}

// sidecarEnv are the variables of the sidecar. Nothing in it is secret: a pod
// can be read by many.
func (j *injection) sidecarEnv() []any {
	literal := func(name, value string) object { return object{"name": name, "value": value} }
	field := func(name, path string) object {
		return object{"name": name, "valueFrom": object{"fieldRef": object{"apiVersion": "v1", "fieldPath": path}}}
	}
	env := []any{
		field("ATTACHE_POD_NAME", "metadata.name"),
		field("ATTACHE_POD_NAMESPACE", "metadata.namespace"),
		field("ATTACHE_POD_UID", "metadata.uid"),
		field("ATTACHE_NODE_NAME", "spec.nodeName"),
		literal("ATTACHE_LOG_LEVEL", j.logLevel),
		j.identityEnv(),
		literal("ATTACHE_TRUST_DIR", trustDir),
		// Go collects garbage before the kernel kills.
		literal("GOMEMLIMIT", strconv.FormatInt(int64(j.proxy.memory.limit)/1000*9/10, 10)),
	}
	if j.Control != "" {
		env = append(env, literal("ATTACHE_CONTROL", escapeEnv(j.Control)))
	}
	if j.ControlCA != "" {
		env = append(env, literal("ATTACHE_CONTROL_CA", escapeEnv(j.ControlCA)))
	}
	if j.Audit != "" {
		env = append(env, literal("ATTACHE_AUDIT", escapeEnv(j.Audit)))
	}
	if n, ok := j.spoolEnv(); ok {
		env = append(env, literal(envSpoolBytes, n))
	}
	if len(j.Placeholders) > 0 {
		env = append(env, literal(envPlaceholders, escapeEnv(j.placeholderList())))
	}
	if len(j.BaseURLs) > 0 {
		env = append(env, literal(envBaseURLs, escapeEnv(j.baseURLList())))
	}
	return env
}

// escapeEnv keeps the kubelet from expanding $(NAME).
func escapeEnv(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// placeholderList tells the sidecar what stands in the agent's variables.
func (j *injection) placeholderList() string {
	type entry struct {
		Placeholder
		Value string `json:"value"`
	}
	list := make([]entry, len(j.Placeholders))
	for i, p := range j.Placeholders {
		list[i] = entry{p, j.placeholder(p)}
	}
	b, err := json.Marshal(list)
	if err != nil {
		panic(fmt.Sprintf("marshal placeholders: %v", err)) // strings only
	}
	return string(b)
}

func (j *injection) redirectContainer() object {
	args := []any{
		"redirect",
		"--to-port=" + strconv.Itoa(j.RedirectPort),
		"--exempt-uid=" + strconv.FormatInt(j.UID, 10),
	}
	if len(j.APIServers) > 0 {
		args = append(args, "--apiserver="+join(j.APIServers))
	}
	if len(j.Nameservers) > 0 {
		args = append(args, "--nameservers="+join(j.Nameservers))
	}
	if len(j.cidrs) > 0 {
		args = append(args, "--exclude-cidrs="+strings.Join(j.cidrs, ","))
	}
	if len(j.ports) > 0 {
		args = append(args, "--exclude-ports="+strings.Join(j.ports, ","))
	}
	return object{
		"name":                     RedirectName,
		"image":                    j.Image,
		"imagePullPolicy":          j.ImagePullPolicy,
		"args":                     args,
		"resources":                j.helper.object(),
		"securityContext":          securityContext(j.redirectUser(), []any{"NET_ADMIN"}),
		"terminationMessagePath":   "/dev/termination-log",
		"terminationMessagePolicy": "FallbackToLogsOnError",
		"volumeMounts":             []any{noAPIToken()},
	}
}

func join[T fmt.Stringer](list []T) string {
	text := make([]string, len(list))
	for i, v := range list {
		text[i] = v.String()
	}
	return strings.Join(text, ",")
}
