// Package status is the operator's view of a cluster: which namespaces are opted
// in, which of their pods have which sidecar, and which policies are in force
// where. It only reads.
package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/webhook/inject"
)

// States of a pod's sidecar.
const (
	Current    = "current"    // what admission makes now
	Old        = "old"        // what it made before, still accepted
	Retired    = "retired"    // the operator gave it up; it gets no identity
	Unaccepted = "unaccepted" // its template or image was never accepted
	Foreign    = "foreign"    // is not what admission makes; it gets no identity
	Uninjected = "uninjected" // has no sidecar, and so no guard
	OptedOut   = "opted-out"  // as its namespace allows, or a Windows pod
)

// Report is all of it, in the order of names.
type Report struct {
	Kubernetes string      `json:"kubernetes"` // the API server's version
	Templates  []Template  `json:"templates"`
	Namespaces []Namespace `json:"namespaces"`
	Pods       []Pod       `json:"pods"`
	Objects    []Object    `json:"objects"`
	// Warnings are of the control plane itself.
	Warnings []string `json:"warnings,omitempty"`
}

// Template is an accepted one, with the number of live pods that have it.
type Template struct {
	Name     string    `json:"name"` // for templates retire
	Template string    `json:"template"`
	Image    string    `json:"image"`
	Digest   string    `json:"digest,omitempty"`
	Since    time.Time `json:"since"`
	Retired  bool      `json:"retired,omitempty"`
	Current  bool      `json:"current,omitempty"`
	Pods     int       `json:"pods"`
}

// Namespace is one that is opted in.
type Namespace struct {
	Name string `json:"name"`
	Mode string `json:"mode,omitempty"` // of its label; empty: the cluster's
	Pods int    `json:"pods"`           // that have not ended
	// By counts them by state.
	By map[string]int `json:"by,omitempty"`
	// NotReady have a sidecar that cannot serve.
	NotReady int `json:"notReady"`
}

// Pod is one of an opted-in namespace that has not ended.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	State     string `json:"state"`
	Template  string `json:"template,omitempty"`
	Image     string `json:"image,omitempty"`
	Mode      string `json:"mode,omitempty"`
	Ready     bool   `json:"ready"`              // the sidecar
	Restarts  int64  `json:"restarts,omitempty"` // of the sidecar
	Attested  bool   `json:"attested"`           // holds an identity, or did lately
	Why       string `json:"why,omitempty"`      // it is not current
}

// Object is a policy or a provider.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Accepted, Resolved and Programmed are True, False or Unknown.
	Accepted   string        `json:"accepted"`
	Resolved   string        `json:"resolved"`
	Programmed string        `json:"programmed"`
	Sidecars   *crd.Sidecars `json:"sidecars,omitempty"`
	Message    string        `json:"message,omitempty"` // of the first condition that is not True
}

// CurrentAnnotation of the accepted templates' ConfigMap names the hashes that
// admission makes now, separated by commas.
const CurrentAnnotation = "attache.dev/current-templates"

// Options choose what is read.
type Options struct {
	Reader    client.Reader // of the API, not of a cache
	Namespace string        // of the control plane
	Only      string        // this opted-in namespace alone; "" for all
	Set       *issuer.Set   // the accepted templates
}

// Read makes the report, except for the version.
func Read(ctx context.Context, o Options) (*Report, error) {
	r := &Report{Templates: []Template{}, Namespaces: []Namespace{}, Pods: []Pod{}, Objects: []Object{}}
	if err := r.readTemplates(ctx, o); err != nil {
		return nil, fmt.Errorf("read the accepted templates: %w", err)
	}
	if err := r.readRecords(ctx, o); err != nil {
		return nil, fmt.Errorf("look at the record store's pods: %w", err)
	}
	attested, err := issuer.List(ctx, o.Reader, o.Namespace)
	if err != nil {
		return nil, fmt.Errorf("read who was attested: %w", err)
	}
	has := map[string]issuer.Attested{}
	for _, a := range attested {
		has[a.UID] = a
	}
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := o.Reader.List(ctx, &list, client.MatchingLabels{api.InjectLabel: api.InjectEnabled}); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b metav1.PartialObjectMetadata) int { return cmp.Compare(a.Name, b.Name) })
	for i := range list.Items {
		if ns := &list.Items[i]; o.Only == "" || o.Only == ns.Name {
			if err := r.readNamespace(ctx, o.Reader, ns, has); err != nil {
				return nil, fmt.Errorf("list pods of %s: %w", ns.Name, err)
			}
		}
	}
	if o.Only != "" && len(r.Namespaces) == 0 {
		return nil, fmt.Errorf("namespace %s is not there, or not labelled %s=enabled", o.Only, api.InjectLabel)
	}
	for _, kind := range []string{
		v1alpha1.KindClusterCredentialProvider, v1alpha1.KindClusterAccessPolicy, v1alpha1.KindCredentialProvider, v1alpha1.KindAccessPolicy, v1alpha1.KindAttacheConfig,
	} {
		if err := r.readObjects(ctx, o, kind); err != nil {
			return nil, fmt.Errorf("list %s: %w", kind, err)
		}
	}
	return r, nil
}

// Wrong says what an operator should look at; nil if nothing.
func (r *Report) Wrong() error {
	var errs []error
	for _, w := range r.Warnings {
		errs = append(errs, errors.New(w))
	}
	for _, p := range r.Pods {
		switch p.State {
		case Retired, Unaccepted, Foreign, Uninjected:
			errs = append(errs, fmt.Errorf("pod %s/%s is %s", p.Namespace, p.Name, p.State))
		}
	}
	for _, o := range r.Objects {
		if o.Accepted == "False" || o.Resolved == "False" || o.Sidecars != nil && o.Sidecars.Rejected > 0 {
			errs = append(errs, fmt.Errorf("%s %s: %s", o.Kind, strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"), o.Message))
		}
	}
	return errors.Join(errs...)
}

func (r *Report) readTemplates(ctx context.Context, o Options) error {
	set, err := o.Set.List(ctx)
	if err != nil {
		return err
	}
	cm := &corev1.ConfigMap{}
	if err := o.Reader.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: issuer.TemplatesName}, cm); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	now := strings.Split(cm.Annotations[CurrentAnnotation], ",")
	for _, a := range set {
		r.Templates = append(r.Templates, Template{
			Name: a.Name(), Template: a.Template, Image: a.Image, Digest: a.Digest, Since: a.Since, Retired: a.Retired,
			Current: slices.Contains(now, a.Name()),
		})
	}
	return nil
}

// pageSize bounds one answer of the API server.
const pageSize = 250

func (r *Report) readNamespace(ctx context.Context, c client.Reader, ns *metav1.PartialObjectMetadata, attested map[string]issuer.Attested) error {
	n := Namespace{Name: ns.Name, Mode: ns.Labels[api.ModeLabel], By: map[string]int{}}
	for token := ""; ; {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		if err := c.List(ctx, list, client.InNamespace(ns.Name), client.Limit(pageSize), client.Continue(token)); err != nil {
			return err
		}
		for i := range list.Items {
			u := &list.Items[i]
			if phase, _, _ := unstructured.NestedString(u.Object, "status", "phase"); phase == "Succeeded" || phase == "Failed" {
				continue
			}
			p := r.pod(u, ns.Labels[api.OptOutLabel] == "true", attested)
			n.Pods++
			n.By[p.State]++
			if p.State != Uninjected && p.State != OptedOut && !p.Ready {
				n.NotReady++
			}
			r.Pods = append(r.Pods, p)
		}
		if token = list.GetContinue(); token == "" {
			break
		}
	}
	r.Namespaces = append(r.Namespaces, n)
	return nil
}

// pod judges one pod.
func (r *Report) pod(u *unstructured.Unstructured, mayOptOut bool, attested map[string]issuer.Attested) Pod {
	p := Pod{Namespace: u.GetNamespace(), Name: u.GetName()}
	inits, _, _ := unstructured.NestedSlice(u.Object, "spec", "initContainers")
	injected := slices.ContainsFunc(inits, func(v any) bool { return named(v, inject.SidecarName) })
	os, _, _ := unstructured.NestedString(u.Object, "spec", "os", "name")
	switch {
	case !injected && (os == "windows" || mayOptOut && u.GetLabels()[api.InjectLabel] == "false"):
		p.State = OptedOut
		return p
	case !injected:
		p.State, p.Why = Uninjected, "has no sidecar: it is older than its namespace's label, or the webhook was not asked"
		return p
	}
	status, _, _ := unstructured.NestedSlice(u.Object, "status", "initContainerStatuses")
	digest := ""
	for _, v := range status {
		if s, _ := v.(map[string]any); named(v, inject.SidecarName) {
			p.Ready, _ = s["ready"].(bool)
			p.Restarts, _ = s["restartCount"].(int64)
			id, _ := s["imageID"].(string)
			digest = digestOf(id)
		}
	}
	t, err := inject.TemplateOf(u.Object)
	if err != nil {
		p.State, p.Why = Foreign, err.Error()
		return p
	}
	p.Template, p.Image, p.Mode = t.Hash, t.Image, string(t.Mode)
	if a, ok := attested[string(u.GetUID())]; ok {
		p.Attested = true
		digest = cmp.Or(a.Digest, digest)
	}
	r.judge(&p, cmp.Or(digestOf(t.Image), digest))
	return p
}

// judge compares a pod's sidecar with the accepted ones and counts it.
func (r *Report) judge(p *Pod, digest string) {
	p.State, p.Why = Unaccepted, "no accepted template has this shape and image"
	for i := range r.Templates {
		t := &r.Templates[i]
		if t.Template != p.Template || t.Digest != "" && t.Digest != digest || t.Digest == "" && t.Image != p.Image {
			continue
		}
		t.Pods++
		switch {
		case t.Retired:
			p.State, p.Why = Retired, "its template is retired; make the pod anew"
		case t.Current:
			p.State, p.Why = Current, ""
		default:
			p.State, p.Why = Old, "admission makes another sidecar now"
		}
		return
	}
}

func named(v any, name string) bool {
	o, _ := v.(map[string]any)
	return o["name"] == name
}

// digestOf is the digest at the end of a reference, or "".
func digestOf(image string) string {
	if i := strings.LastIndex(image, "sha256:"); i >= 0 {
		return image[i:]
	}
	return ""
}

func (r *Report) readObjects(ctx context.Context, o Options, kind string) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(crd.GroupVersion().WithKind(kind + "List"))
	var opts []client.ListOption
	if o.Only != "" && (kind == v1alpha1.KindCredentialProvider || kind == v1alpha1.KindAccessPolicy) {
		opts = append(opts, client.InNamespace(o.Only))
	}
	if err := o.Reader.List(ctx, list, opts...); err != nil {
		return err
	}
	for i := range list.Items {
		u := &list.Items[i]
		var s crd.Status
		if b, err := json.Marshal(u.Object["status"]); err != nil || json.Unmarshal(b, &s) != nil {
			s = crd.Status{} // then all is unknown
		}
		r.Objects = append(r.Objects, object(u, &s))
	}
	return nil
}

func object(u *unstructured.Unstructured, s *crd.Status) Object {
	o := Object{Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName(), Sidecars: s.Sidecars}
	for _, c := range []struct {
		name string
		to   *string
	}{{"Accepted", &o.Accepted}, {"ResolvedRefs", &o.Resolved}, {"Programmed", &o.Programmed}} {
		*c.to = string(metav1.ConditionUnknown)
		found := meta.FindStatusCondition(s.Conditions, c.name)
		switch {
		case found == nil:
			continue
		case found.ObservedGeneration < u.GetGeneration():
			o.Message = cmp.Or(o.Message, "the control plane has not looked at this generation yet")
			continue
		}
		*c.to = string(found.Status)
		if found.Status != metav1.ConditionTrue {
			o.Message = cmp.Or(o.Message, found.Message)
		}
	}
	return o
}
