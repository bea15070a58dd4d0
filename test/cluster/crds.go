package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"
)

// crdFolder of the chart, from the project's root.
const crdFolder = "charts/attache/files/crds"

// InstallCRDs applies every custom resource definition of the chart and
// returns when the API server serves them. Safe to call more than once.
func (e *Env) InstallCRDs(ctx context.Context) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(root, crdFolder, "*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("no custom resource definitions in " + crdFolder)
	}
	client, err := clientset.NewForConfig(e.Config)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := applyCRD(ctx, client, file); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

func applyCRD(ctx context.Context, client clientset.Interface, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var crd apiextensions.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return err
	}
	if strings.TrimSpace(crd.Name) == "" {
		return errors.New("is not a custom resource definition")
	}
	body, err := yaml.YAMLToJSON(text)
	if err != nil {
		return err
	}
	crds := client.ApiextensionsV1().CustomResourceDefinitions()
	force := true
	if _, err := crds.Patch(ctx, crd.Name, "application/apply-patch+yaml", body, metav1.PatchOptions{FieldManager: "test", Force: &force}); err != nil {
		return err
	}
	w, err := crds.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + crd.Name})
	if err != nil {
		return err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if now, ok := event.Object.(*apiextensions.CustomResourceDefinition); ok && event.Type != watch.Deleted && established(now) {
			return nil
		}
	}
	return fmt.Errorf("was not established: %w", context.Cause(ctx))
}

func established(crd *apiextensions.CustomResourceDefinition) bool {
	for _, c := range crd.Status.Conditions {
		if c.Type == apiextensions.Established && c.Status == apiextensions.ConditionTrue {
			return true
		}
	}
	return false
}
