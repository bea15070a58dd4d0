// Package defaults does what the chart cannot: it applies the AttacheConfig of
// the chart's values, whose kind Helm does not know when it installs, and makes
// what could refuse pods end with the control plane's namespace, whose uid no
// template knows.
package defaults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// fieldOwner is who applied, in managedFields. It is not the control plane's
// own: what an operator sets beside the chart's values is left alone.
const fieldOwner = "attache-defaults"

var (
	configs    = schema.GroupVersionResource{Group: "attache.dev", Version: "v1alpha1", Resource: "attacheconfigs"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// refusers are the objects that keep pods from starting when the control plane
// is gone: webhooks without a server, and guards without parameters.
func refusers() []object {
	kind := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource}
	}
	const bindings = "validatingadmissionpolicybindings"
	return []object{
		{kind("mutatingwebhookconfigurations"), "attache"},
		{kind("validatingwebhookconfigurations"), "attache"},
		{kind(bindings), "attache-pods"},
		{kind(bindings), "attache-pod-updates"},
		{kind(bindings), "attache-bindings"},
	}
}

type object struct {
	schema.GroupVersionResource
	name string
}

// Options say what to do.
type Options struct {
	File      string // with the AttacheConfig; "": none is applied
	Namespace string // of the control plane
	Log       *slog.Logger
}

// Run does all of it, trying again what fails: the resource definitions may be
// younger than this process. It returns nil when all is done, or ctx's error.
// One replica at a time should call it.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("defaults: %w", err)
	}
	delay := time.Second
	for {
		err := errors.Join(apply(ctx, client, o.File), own(ctx, client, o.Namespace, o.Log))
		if err == nil {
			return nil
		}
		o.Log.WarnContext(ctx, "defaults are not applied yet", "error", err.Error(), "again_in", delay.String())
		select {
		case <-ctx.Done():
			return fmt.Errorf("defaults: %w", context.Cause(ctx))
		case <-time.After(delay):
		}
		delay = min(2*delay, time.Minute)
	}
}

// apply applies the AttacheConfig of a file. Fields that the file had before and
// has no more are removed; those of others stay.
func apply(ctx context.Context, client dynamic.Interface, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the chart's AttacheConfig: %w", err)
	}
	var o unstructured.Unstructured
	if err := yaml.Unmarshal(text, &o.Object); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if o.GetKind() != "AttacheConfig" || o.GetName() == "" {
		return fmt.Errorf("%s: is no AttacheConfig with a name", file)
	}
	if _, err := client.Resource(configs).Apply(ctx, o.GetName(), &o, metav1.ApplyOptions{FieldManager: fieldOwner, Force: true}); err != nil {
		return fmt.Errorf("apply AttacheConfig %s: %w; correct the chart's values below config", o.GetName(), err)
	}
	return nil
}

// own makes the namespace the owner of what refuses pods: whoever deletes the
// namespace, and forgets the rest, stops no pod. A cluster that forbids it
// (OwnerReferencesPermissionEnforcement) is told of once, and works as well.
func own(ctx context.Context, client dynamic.Interface, namespace string, log *slog.Logger) error {
	ns, err := client.Resource(namespaces).Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"ownerReferences": []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Namespace", Name: ns.GetName(), UID: ns.GetUID(),
	}}}})
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range refusers() {
		_, err := client.Resource(o.GroupVersionResource).Patch(ctx, o.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldOwner})
		switch {
		case apierrors.IsNotFound(err): // not installed
		case apierrors.IsForbidden(err):
			log.WarnContext(ctx, "stays when the namespace is deleted: delete it by hand then", "resource", o.Resource, "name", o.name, "error", err.Error())
		case err != nil:
			errs = append(errs, fmt.Errorf("own %s %s: %w", o.Resource, o.name, err))
		}
	}
	return errors.Join(errs...)
}
