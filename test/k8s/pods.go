package main

import (
	"fmt"
	"strings"
)

// app is a pod's template in short. Nothing in it knows of Attaché.
type app struct {
	name    string
	image   string   // default imageAgent
	args    []string // of the container
	command []string
	user    string // securityContext of the container, in YAML flow style
	init    string // a further init container, in YAML flow style
	restart string // restartPolicy
	spec    string // further fields of the pod's spec, in YAML flow style
	notes   string // annotations, in YAML flow style
	extra   string // further fields of the container, in YAML flow style
	labels  string // further labels: ", KEY: VALUE"
}

// secure is what Pod Security "restricted" asks for.
const secure = `{allowPrivilegeEscalation: false, runAsNonRoot: true, runAsUser: 1000, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}`

// template is the pod's metadata and spec, in YAML flow style.
func (a app) template() string {
	if a.image == "" {
		a.image = imageAgent
	}
	if a.user == "" {
		a.user = secure
	}
	c := fmt.Sprintf("name: app, image: %q, imagePullPolicy: Never, securityContext: %s", a.image, a.user)
	if len(a.command) > 0 {
		c += ", command: " + quoted(a.command)
	}
	if len(a.args) > 0 {
		c += ", args: " + quoted(a.args)
	}
	if a.extra != "" {
		c += ", " + a.extra
	}
	spec := "serviceAccountName: " + account + ", terminationGracePeriodSeconds: 1, containers: [{" + c + "}]"
	if a.init != "" {
		spec += ", initContainers: [" + a.init + "]"
	}
	if a.restart != "" {
		spec += ", restartPolicy: " + a.restart
	}
	if a.spec != "" {
		spec += ", " + a.spec
	}
	return fmt.Sprintf("{metadata: {labels: {app: %s%s}, annotations: {%s}}, spec: {%s}}", a.name, a.labels, a.notes, spec)
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

func (a app) deployment(ns string) string { return a.workload(ns, "Deployment", "") }

func (a app) workload(ns, kind, more string) string {
	return fmt.Sprintf("{apiVersion: apps/v1, kind: %s, metadata: {name: %s, namespace: %s}, spec: {replicas: 1, %s selector: {matchLabels: {app: %s}}, template: %s}}",
		kind, a.name, ns, more, a.name, a.template())
}

func (a app) job(ns string) string {
	a.restart = "Never"
	return fmt.Sprintf("{apiVersion: batch/v1, kind: Job, metadata: {name: %s, namespace: %s}, spec: {backoffLimit: 0, template: %s}}", a.name, ns, a.template())
}

// pod is a bare one; fields of its template begin where metadata ends.
func (a app) pod(ns string) string {
	t := strings.Replace(a.template(), "{metadata: {", fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, ", a.name, ns), 1)
	return t
}

func at(host, path string) string { return "https://" + host + path }

// looping calls a URL every 300 ms.
func looping(name, host string) app {
	return app{name: name, args: []string{"loop", "300ms", at(host, "/v1/"+name)}}
}
