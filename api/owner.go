package api

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Annotations that name accountable owners.
const (
	OwnersAnnotation = "attache.dev/owners" // of a namespace: all, comma-separated
	OwnerAnnotation  = "attache.dev/owner"  // of a pod: one of them
)

// Where an owner was read (identity.Workload.OwnerSource).
const (
	OwnerFromConfig    = "config"    // AttacheConfig
	OwnerFromNamespace = "namespace" // its annotation
)

var ownerRule = regexp.MustCompile(`^[^\x00-\x20\x7f,][^\x00-\x1f\x7f,]{0,127}$`)

// Owners are the accountable owners among which the pods of a namespace may
// choose, and where they come from: the cluster's AttacheConfig, or else
// annotation [OwnersAnnotation] of the namespace. Pods have no say. Without any
// both results are empty.
func Owners(c *v1alpha1.ClusterConfig, namespace string, annotations map[string]string) (owners []string, source string) {
	if list, ok := c.Owners[namespace]; ok && len(list) > 0 {
		return list, OwnerFromConfig
	}
	for o := range strings.SplitSeq(annotations[OwnersAnnotation], ",") {
		if o = strings.TrimSpace(o); ownerRule.MatchString(o) && !slices.Contains(owners, o) {
			owners = append(owners, o)
		}
	}
	if len(owners) > 0 {
		return owners, OwnerFromNamespace
	}
	if list := c.Owners["*"]; len(list) > 0 {
		return list, OwnerFromConfig
	}
	return nil, ""
}

// ChooseOwner is the owner of a pod with this [OwnerAnnotation]: the one it
// names, which must be of the list, or the first.
func ChooseOwner(owners []string, annotation string) (string, error) {
	switch annotation = strings.TrimSpace(annotation); {
	case annotation == "" && len(owners) == 0:
		return "", nil
	case annotation == "":
		return owners[0], nil
	case !slices.Contains(owners, annotation):
		return "", fmt.Errorf("annotation %s is none of the namespace's owners; ask the cluster's operator to add it, or remove it", OwnerAnnotation)
	}
	return annotation, nil
}
