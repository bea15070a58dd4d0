// Package inject puts the sidecar into pods. It is a pure function: no clock,
// no randomness, no network and no Kubernetes client, so that a dry run and a
// real admission take the same path, and an issuer can ask later whether a pod
// still is what admission made it.
//
// Pods are unstructured JSON. A typed pod of an older API than the server's
// would drop the fields that it does not know, and the patch would remove them.
//
// Injection is a rebuild, never "already there by name": what belongs to us is
// taken out and made anew, and the patch is the difference. A pod that is right
// gives no patch; one that another webhook changed in between is repaired.
package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/internal/podspool"
	"github.com/attache-dev/attache/internal/trust"
)

// Result is what became of a pod.
type Result struct {
	// Pod is the pod with the sidecar. It shares nothing with the input.
	Pod map[string]any
	// Patch turns the input into Pod; empty if there is nothing to do.
	Patch []Operation
	// Warnings are for the author: at most 20, none holds a value of theirs.
	Warnings []string
	// Skipped says why the pod was left alone; "" if it was not. OptedOut says
	// that the pod asked for it, as its namespace lets it.
	Skipped  string
	OptedOut bool
	// Mode is how the pod's calls reach the sidecar.
	Mode Mode
}

// Problem is a reason to refuse a pod.
type Problem struct {
	Field   string // path from the pod's root
	Message string // what is wrong
	Fix     string // what the author can do
}

// String formats p as one line.
func (p Problem) String() string { return p.Field + ": " + p.Message + "; " + p.Fix }

// Denied is the error for a pod that must not be admitted. Its text is for the
// author and holds no value of a variable.
type Denied struct{ Problems []Problem }

// Error lists the problems, the first 20 of them.
func (d *Denied) Error() string {
	var lines []string
	for i, p := range d.Problems {
		if i == maxLines {
			lines = append(lines, fmt.Sprintf("and %d more", len(d.Problems)-i))
			break
		}
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// maxLines bounds what an author has to read at once.
const maxLines = 20

// ErrConfig is matched by errors about the [Config], not about the pod.
var ErrConfig = errors.New("injection config")

// Pod decides about a pod, given its namespace's metadata, and injects the
// sidecar. Both are objects as encoding/json decodes them with UseNumber; they
// are not changed. The error is a [*Denied], or matches [ErrConfig].
func Pod(pod, namespace map[string]any, c Config) (Result, error) {
	t, err := newTemplate(c)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	j := &injection{template: t}
	j.nsLabels = j.object(namespace, "labels", "namespace.metadata.labels")
	if len(j.problems) == 0 && j.nsLabels[labelInject] != "enabled" {
		return Result{Pod: clone(pod).(object), Skipped: "the namespace is not labelled " + labelInject + "=enabled"}, nil
	}
	j.read(pod)
	if len(j.problems) == 0 {
		if why := j.skip(); why != "" && !j.usesNames() {
			return Result{Pod: clone(pod).(object), Skipped: why, OptedOut: j.labels[labelInject] == "false", Warnings: j.warnings.list()}, nil
		}
	}
	if len(j.problems) == 0 { // what follows relies on the shape
		j.choose()
		j.setVariables()
		j.guard()
	}
	if len(j.problems) == 0 {
		j.resources()
	}
	if len(j.problems) > 0 {
		return Result{}, &Denied{j.problems}
	}
	out := clone(pod).(object)
	j.rebuild(out)
	return Result{Pod: out, Patch: diff(pod, out), Warnings: j.warnings.list(), Mode: j.mode}, nil
}

// injection is the state of one call of [Pod].
type injection struct {
	*template
	reader
	warnings warnings

	labels, annotations object // the pod's
	nsLabels            object
	spec                object
	containers          []container // the author's, init containers first
	own                 []container // with our names
	volumes             []volume
	status              *status // of an earlier round; nil in the first

	mode           Mode
	logLevel       string
	cidrs, ports   []string
	asked          map[string]quantity // resources by annotation
	proxy, helper  resources           // of the sidecar and of the redirect
	sizes          podspool.Sizes      // of this pod's spool
	placeholderFor string              // nonce
	vars           []trust.Variable    // of every container
	names          map[string]bool     // of vars
}

// container is one container of the input.
type container struct {
	object
	path, name string
	init       bool
}

// volume is one volume of the input.
type volume struct {
	object
	path, name string
}

// read finds the parts of the pod and reports those of a wrong type.
func (j *injection) read(pod object) {
	meta := j.object(pod, "metadata", "metadata")
	j.labels = j.object(meta, "labels", "metadata.labels")
	j.annotations = j.object(meta, "annotations", "metadata.annotations")
	j.spec = j.object(pod, "spec", "spec")
	if j.spec == nil {
		j.deny("spec", "is missing", "send a whole pod")
		return
	}
	j.readContainers("initContainers", true)
	j.readContainers("containers", false)
	for i, v := range j.objects(j.spec, "volumes", "spec.volumes") {
		path := fmt.Sprintf("spec.volumes[%d]", i)
		j.volumes = append(j.volumes, volume{v, path, j.text(v, "name", path+".name")})
	}
}

// maxContainers bounds each list of the author's: every container gets some 3 KiB, and what
// the API stores is at most 1.5 MiB.
const maxContainers = 200

func (j *injection) readContainers(list string, init bool) {
	before := len(j.containers)
	for i, o := range j.objects(j.spec, list, "spec."+list) {
		path := fmt.Sprintf("spec.%s[%d]", list, i)
		c := container{o, path, j.text(o, "name", path+".name"), init}
		for _, key := range []string{"env", "envFrom", "volumeMounts", "ports"} {
			j.objects(o, key, path+"."+key)
		}
		if slices.Contains(ownContainers, c.name) {
			j.own = append(j.own, c)
		} else {
			j.containers = append(j.containers, c)
		}
	}
	n := len(j.containers) - before
	if n > maxContainers {
		j.deny("spec."+list, fmt.Sprintf("has %d members", n), fmt.Sprintf("use at most %d", maxContainers))
	}
	if !init && n == 0 {
		j.deny("spec.containers", "has none", "add the agent's container")
	}
}

// usesNames refuses our names in a pod that gets no sidecar: nothing of ours
// would be made anew there.
func (j *injection) usesNames() bool {
	before := len(j.problems)
	for _, c := range j.own {
		j.deny(c.path+".name", c.name+" is reserved", "rename the container")
	}
	for _, v := range j.volumes {
		if slices.Contains(ownVolumes, v.name) {
			j.deny(v.path+".name", v.name+" is reserved", "rename the volume")
		}
	}
	return len(j.problems) > before
}

// skip says why the pod needs no sidecar; "" if it does.
func (j *injection) skip() string {
	if _, ok := j.annotations["kubernetes.io/config.mirror"]; ok {
		return "is the mirror of a static pod, which the API cannot change"
	}
	osName := j.text(j.object(j.spec, "os", "spec.os"), "name", "spec.os.name")
	selector := j.object(j.spec, "nodeSelector", "spec.nodeSelector")
	if osName == "windows" || selector["kubernetes.io/os"] == "windows" {
		j.warnings.add("spec: a Windows pod gets no sidecar, and no credentials")
		return "is a Windows pod"
	}
	switch j.labels[labelInject] {
	case nil, "enabled", "true":
		return ""
	case "false":
		if j.nsLabels[labelOptOut] == "true" {
			return "the pod is labelled " + labelInject + "=false, which its namespace allows"
		}
		j.deny(label(labelInject), "is false, which the namespace does not allow",
			"remove the label, or let the operator label the namespace "+labelOptOut+"=true")
	default:
		j.deny(label(labelInject), "is neither enabled nor false", "remove the label")
	}
	return ""
}
