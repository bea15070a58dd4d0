package inject

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/internal/podspool"
)

// Template identifies what admission puts into pods: the sidecar, the redirect
// and their volumes, without what differs between pods of one operator's
// settings (resources, size of the spool, log level, placeholders, base URLs, exclusions) and
// without the image, which is judged by its digest.
type Template struct {
	Hash  string `json:"hash"`
	Image string `json:"image"` // as the pod names it; what runs is in the pod's status
	Mode  Mode   `json:"mode"`
}

// Templates returns the templates that c makes, one for each of its modes. A
// pod of another is of other settings, or not what admission made of it.
func (c Config) Templates() ([]Template, error) {
	c.setDefaults()
	c.Nonce = noNonce
	c.LimitRange, c.Placeholders, c.Variables, c.BaseURLs = LimitRange{}, nil, nil, nil
	var list []Template
	for _, m := range c.Modes {
		pod := object{"spec": object{"containers": []any{object{"name": "agent"}}}}
		r, err := Pod(pod, object{"labels": object{labelInject: "enabled", labelMode: string(m)}}, c)
		if err != nil {
			return nil, err
		}
		t, err := TemplateOf(r.Pod)
		if err != nil {
			return nil, fmt.Errorf("the template of %s mode: %w", m, err)
		}
		list = append(list, t)
	}
	return list, nil
}

// Verify checks that a pod of the API is what admission makes of one by c now.
// The error is a [*Denied], or matches [ErrConfig].
func Verify(pod map[string]any, c Config) (Template, error) {
	t, err := TemplateOf(pod)
	if err != nil {
		return Template{}, err
	}
	want, err := c.Templates()
	if err != nil {
		return Template{}, err
	}
	if !slices.Contains(want, t) {
		return Template{}, &Denied{[]Problem{{"spec.initContainers", "the sidecar is not of the operator's present template and image", "make the pod anew"}}}
	}
	return t, nil
}

// TemplateOf reads the template of a pod, as the API has it, and checks that
// nothing around it can take the sidecar's place: that no other container
// shares its volumes, its user, its token's audience or its processes. The
// caller decides which templates and digests it accepts.
//
// The pod should be unstructured: a typed one hides fields that are newer than
// the program. The error is a [*Denied].
func TemplateOf(pod map[string]any) (Template, error) {
	pod, err := plain(pod)
	if err != nil {
		return Template{}, err
	}
	v := &verification{injection: injection{template: &template{}, status: &status{containers: map[string]bool{}}}}
	v.read(pod)
	if len(v.problems) == 0 {
		v.find()
	}
	if len(v.problems) == 0 {
		v.settings()
	}
	if len(v.problems) == 0 {
		v.others()
	}
	if len(v.problems) > 0 {
		return Template{}, &Denied{v.problems}
	}
	t := Template{Mode: v.mode}
	t.Image, _ = v.sidecar["image"].(string)
	t.Hash = templateHash(v.sidecar, v.redirect, v.parts)
	return t, nil
}

// plain turns numbers of any kind into json.Number.
func plain(pod map[string]any) (object, error) {
	b, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var o object
	if err := d.Decode(&o); err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	return o, nil
}

// verification is one call of [TemplateOf].
type verification struct {
	injection
	sidecar, redirect object
	parts             []object // our volumes, in the order of ownVolumes
}

const madeByAdmission = "make the pod anew in a namespace that is labelled " + labelInject + "=enabled"

// find picks out what is ours: each part once, and the redirect first.
func (v *verification) find() {
	for _, c := range v.own {
		part := &v.sidecar
		if c.name == RedirectName {
			part = &v.redirect
		}
		switch {
		case !c.init:
			v.deny(c.path+".name", c.name+" is not an init container", madeByAdmission)
		case *part != nil:
			v.deny(c.path+".name", c.name+" is there twice", madeByAdmission)
		case c.name == RedirectName && v.sidecar != nil:
			v.deny(c.path+".name", c.name+" comes after the sidecar", madeByAdmission)
		}
		*part = c.object
	}
	if v.sidecar == nil {
		v.deny("spec.initContainers", "lack the sidecar", madeByAdmission)
	}
	v.parts = make([]object, len(ownVolumes))
	for _, vol := range v.volumes {
		i := slices.Index(ownVolumes, vol.name)
		if i < 0 {
			continue
		}
		if v.parts[i] != nil {
			v.deny(vol.path+".name", vol.name+" is there twice", madeByAdmission)
		}
		v.parts[i] = vol.object
	}
	for i, o := range v.parts {
		if o == nil {
			v.deny("spec.volumes", "lack "+ownVolumes[i], madeByAdmission)
		}
	}
}

// settings reads from the sidecar what the others are measured by. Whoever
// accepts the template's hash accepts them.
func (v *verification) settings() {
	sc, _ := v.sidecar["securityContext"].(object)
	v.UID, _ = v.integer(sc, "runAsUser", SidecarName+".securityContext.runAsUser")
	for _, arg := range v.strings(v.sidecar, "args", SidecarName+".args") {
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "--mode":
			v.mode = Mode(value)
		case "--listen":
			v.ProxyPort = port(value)
		case "--redirect-port":
			v.RedirectPort = port(value)
		case "--health":
			v.HealthPort = port(value)
		}
	}
	token, _ := v.parts[slices.Index(ownVolumes, tokenVolume)]["projected"].(object)
	sources, _ := token["sources"].([]any)
	for _, s := range sources {
		s, _ := s.(object)
		if t, ok := s["serviceAccountToken"].(object); ok {
			v.Audience, _ = t["audience"].(string)
		}
		if c, ok := s["podCertificate"].(object); ok && c["signerName"] == PodSigner {
			// No token of ours is in the pod then; that nobody has another's, the
			// issuer sees too.
			v.Identity, v.Audience = PodCertificate, defaultAudience
		}
	}
	switch {
	case v.UID == 0 || v.Audience == "":
		v.deny("spec.initContainers", "the sidecar has no user, or no token or certificate of its own", madeByAdmission)
	case v.mode != Explicit && v.mode != Transparent:
		v.deny("spec.initContainers", "the sidecar has no mode", madeByAdmission)
	case (v.mode == Transparent) != (v.redirect != nil):
		v.deny("spec.initContainers", "have a redirect in explicit mode, or none in transparent mode", madeByAdmission)
	case v.redirect != nil && !equal(v.redirect["image"], v.sidecar["image"]):
		v.deny("spec.initContainers", "the redirect has another image than the sidecar", madeByAdmission)
	}
}

func port(address string) int {
	n, err := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
	if err != nil {
		return 0 // no container has it
	}
	return n
}

// others guards the rest of the pod, ephemeral containers too.
func (v *verification) others() {
	v.guardSharing()
	for i, o := range v.objects(v.spec, "ephemeralContainers", "spec.ephemeralContainers") {
		path := fmt.Sprintf("spec.ephemeralContainers[%d]", i)
		c := container{object: o, path: path, name: v.text(o, "name", path+".name")}
		if slices.Contains(ownContainers, c.name) {
			v.deny(path+".name", c.name+" is reserved", "make the pod anew")
		}
		if slices.Contains(ownContainers, v.text(o, "targetContainerName", path+".targetContainerName")) {
			v.deny(path+".targetContainerName", "shows the sidecar's processes", "make the pod anew")
		}
		v.containers = append(v.containers, c)
	}
	for _, c := range v.containers {
		v.status.containers[c.name] = true // may mount the CA bundle
		v.guardContainer(c)
		v.trustReadOnly(c)
	}
	for _, vol := range v.volumes {
		v.guardVolume(vol)
	}
}

// trustReadOnly keeps the agent from changing what its other containers trust.
func (v *verification) trustReadOnly(c container) {
	for i, m := range v.objects(c.object, "volumeMounts", c.path+".volumeMounts") {
		if on, _ := m["readOnly"].(bool); m["name"] == trustVolume && !on {
			v.deny(fmt.Sprintf("%s.volumeMounts[%d].readOnly", c.path, i), "is not true: the container can change the CA bundle", madeByAdmission)
		}
	}
}

// templateShape changes whenever the same settings give another template.
const templateShape = "attache.dev/template/1\n"

// perPod are variables of the sidecar that differ between pods of a template.
var perPod = []string{"ATTACHE_LOG_LEVEL", "GOMEMLIMIT", envPlaceholders, envBaseURLs, envSpoolBytes}

// templateHash takes the parts of a pod that are ours; redirect is nil in
// explicit mode. They are not changed.
func templateHash(sidecar, redirect object, volumes []object) string {
	sidecar, redirect = common(sidecar), common(redirect)
	env, _ := sidecar["env"].([]any)
	sidecar["env"] = slices.DeleteFunc(slices.Clone(env), func(e any) bool {
		o, _ := e.(object)
		name, _ := o["name"].(string)
		return slices.Contains(perPod, name) && o["valueFrom"] == nil && len(o) == 2
	})
	args, _ := redirect["args"].([]any)
	redirect["args"] = slices.DeleteFunc(slices.Clone(args), func(a any) bool {
		s, _ := a.(string)
		return strings.HasPrefix(s, "--exclude-")
	})
	b, err := json.Marshal([]any{sidecar, redirect, ofAnySize(volumes)}) // keys in order
	if err != nil {
		panic(fmt.Sprintf("marshal template: %v", err)) // is JSON
	}
	sum := sha256.Sum256(append([]byte(templateShape), b...))
	return hex.EncodeToString(sum[:16])
}

// ofAnySize are our volumes with the default size of the spool's, since pods may
// have their own. They are not changed.
func ofAnySize(volumes []object) []object {
	volumes = slices.Clone(volumes)
	for i, v := range volumes {
		dir, ok := v["emptyDir"].(object)
		if _, sized := dir["sizeLimit"].(string); v["name"] != spoolVolume || !ok || !sized {
			continue
		}
		v, dir = maps.Clone(v), maps.Clone(dir)
		dir["sizeLimit"] = ofBytes(podspool.Of(podspool.DefaultSpool).Volume).String()
		v["emptyDir"] = dir
		volumes[i] = v
	}
	return volumes
}

// common is a container without what its pod or its registry decides. A
// plugin of the API server may change imagePullPolicy.
func common(c object) object {
	o := make(object, len(c))
	for k, v := range c {
		switch k {
		case "image", "imagePullPolicy", "resources":
		default:
			o[k] = v
		}
	}
	return o
}
