// Package crd holds the documents of package v1alpha1 as custom resources of
// Kubernetes: the same specs with Kubernetes' own metadata and a status. Only
// what talks to an API server imports it; the CRDs in charts/attache/files are
// made of it by `make generate`.
//
// +kubebuilder:object:generate=true
// +groupName=attache.dev
// +versionName=v1alpha1
package crd

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// GroupVersion of all kinds.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "attache.dev", Version: "v1alpha1"}
}

// Kind is the kind of that name, or its list's.
func Kind(name string) schema.GroupVersionKind { return GroupVersion().WithKind(name) }

// PolicyKinds are those that bundles are made of: all but Revocation.
func PolicyKinds() []string {
	return []string{
		v1alpha1.KindAttacheConfig, v1alpha1.KindClusterCredentialProvider, v1alpha1.KindClusterAccessPolicy,
		v1alpha1.KindCredentialProvider, v1alpha1.KindAccessPolicy,
	}
}

// AddToScheme registers all kinds.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(),
		&CredentialProvider{}, &CredentialProviderList{},
		&ClusterCredentialProvider{}, &ClusterCredentialProviderList{},
		&AccessPolicy{}, &AccessPolicyList{},
		&ClusterAccessPolicy{}, &ClusterAccessPolicyList{},
		&AttacheConfig{}, &AttacheConfigList{},
		&Revocation{}, &RevocationList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}

// Object is the resource as package api reads it. Kinds of cluster scope have
// no namespace.
func Object(kind string, m metav1.ObjectMeta, spec any) (api.Object, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return api.Object{}, fmt.Errorf("%s %s: marshal spec: %w", kind, m.Name, err)
	}
	return api.Object{Kind: kind, Namespace: m.Namespace, Name: m.Name, Generation: m.Generation, Created: m.CreationTimestamp.Time, Spec: b}, nil
}

// CredentialProvider says how one kind of credential is minted, where it may
// go, and how it is put on a request.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cprov,categories=attache
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Resolved",type=string,JSONPath=`.status.conditions[?(@.type=="ResolvedRefs")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.sidecars.summary`
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.spec.destinations[*].host`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CredentialProvider struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.CredentialProviderSpec `json:"spec"`
	Status Status                          `json:"status,omitempty"`
}

// ClusterCredentialProvider is a CredentialProvider that the operator of a
// cluster shares with some of its namespaces.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ccprov,categories=attache
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Resolved",type=string,JSONPath=`.status.conditions[?(@.type=="ResolvedRefs")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.sidecars.summary`
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.spec.destinations[*].host`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterCredentialProvider struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.ClusterCredentialProviderSpec `json:"spec"`
	Status Status                                 `json:"status,omitempty"`
}

// AccessPolicy says which workloads of its namespace may make which calls with
// which credential.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=apol,categories=attache
// +kubebuilder:metadata:labels="gateway.networking.k8s.io/policy=Inherited"
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Resolved",type=string,JSONPath=`.status.conditions[?(@.type=="ResolvedRefs")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.sidecars.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccessPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.AccessPolicySpec `json:"spec"`
	Status Status                    `json:"status,omitempty"`
}

// ClusterAccessPolicy holds guard rails of the operator of a cluster, which no
// namespace can widen.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=capol,categories=attache
// +kubebuilder:metadata:labels="gateway.networking.k8s.io/policy=Inherited"
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Resolved",type=string,JSONPath=`.status.conditions[?(@.type=="ResolvedRefs")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.sidecars.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.targetRefs) || self.spec.targetRefs.all(t, t.kind == 'Namespace')",message="spec.targetRefs: a ClusterAccessPolicy attaches to namespaces; select service accounts by spec.workloads",fieldPath=".spec.targetRefs"
type ClusterAccessPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.AccessPolicySpec `json:"spec"`
	Status Status                    `json:"status,omitempty"`
}

// AttacheConfig configures Attaché itself. Only the one called default is
// looked at.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=attacheconfigs,categories=attache
// +kubebuilder:printcolumn:name="Trust domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.cluster.injection.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="metadata.name: a cluster's AttacheConfig is called default"
type AttacheConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.AttacheConfigSpec `json:"spec"`
	Status Status                     `json:"status,omitempty"`
}

// Revocation ends credentials and identities at once, in every sidecar that it
// concerns. Its spec cannot be changed.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=arev,categories=attache
// +kubebuilder:printcolumn:name="Acknowledged",type=integer,JSONPath=`.status.acknowledged`
// +kubebuilder:printcolumn:name="Total",type=integer,JSONPath=`.status.total`
// +kubebuilder:printcolumn:name="Complete",type=string,JSONPath=`.status.conditions[?(@.type=="Complete")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Revocation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v1alpha1.RevocationSpec `json:"spec"`
	Status RevocationStatus        `json:"status,omitempty"`
}
