package crd

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Types of conditions. Each is about the generation in its observedGeneration.
const (
	// ConditionAccepted: the object is valid and in force. Where it is not, the
	// last good generation stays in force, if there was one (status.inForce).
	ConditionAccepted = "Accepted"
	// ConditionResolvedRefs: what the rules refer to exists, and may be used so.
	// Rules of which that is not true deny what they match.
	ConditionResolvedRefs = "ResolvedRefs"
	// ConditionProgrammed: every sidecar that the object concerns has
	// acknowledged it.
	ConditionProgrammed = "Programmed"
	// ConditionComplete of a Revocation: every sidecar has acknowledged it, or
	// what it holds has expired.
	ConditionComplete = "Complete"
)

// Reasons of conditions. Others are those of package api.
const (
	ReasonAccepted     = "Accepted"
	ReasonResolvedRefs = "ResolvedRefs"
	ReasonProgrammed   = "Programmed"
	ReasonPending      = "Pending"  // sidecars have yet to acknowledge
	ReasonRejected     = "Rejected" // a sidecar refused the documents
)

// Status of an object that sidecars load.
type Status struct {
	// Conditions are Accepted, ResolvedRefs and Programmed.
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Sidecars says how many sidecars have what is in force.
	Sidecars *Sidecars `json:"sidecars,omitempty"`
	// InForce is the last good generation.
	InForce *InForce `json:"inForce,omitempty"`
}

// Sidecars counts those that the object concerns.
type Sidecars struct {
	// Programmed have acknowledged the generation in force.
	// +kubebuilder:validation:Minimum=0
	Programmed int32 `json:"programmed"`
	// Rejected have refused it and keep what they had.
	// +kubebuilder:validation:Minimum=0
	Rejected int32 `json:"rejected"`
	// +kubebuilder:validation:Minimum=0
	Total int32 `json:"total"`
	// Summary is "programmed/total", for people.
	// +kubebuilder:validation:MaxLength=32
	Summary string `json:"summary"`
}

// InForce is a generation that was good. It stays in force while a later one
// is bad, also when the control plane starts anew.
type InForce struct {
	Generation int64 `json:"generation"`
	// Spec of that generation, kept only while a later one is bad.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Spec *runtime.RawExtension `json:"spec,omitempty"`
}

// RevocationStatus says who has yet to hear of it.
type RevocationStatus struct {
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +kubebuilder:validation:Minimum=0
	Acknowledged int32 `json:"acknowledged"`
	// +kubebuilder:validation:Minimum=0
	Total int32 `json:"total"`
	// Outstanding sidecars have not acknowledged it; at most 100 are listed.
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=100
	Outstanding []OutstandingPod `json:"outstanding,omitempty"`
}

// OutstandingPod is a pod whose sidecar has not acknowledged a revocation.
type OutstandingPod struct {
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// +kubebuilder:validation:MaxLength=253
	Pod string `json:"pod"`
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// LastHeard is when its stream was last alive.
	LastHeard metav1.Time `json:"lastHeard,omitempty"`
	// LatestExpiry of what it may hold.
	LatestExpiry metav1.Time `json:"latestExpiry,omitempty"`
}

// CredentialProviderList is a list of CredentialProvider.
//
// +kubebuilder:object:root=true
type CredentialProviderList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CredentialProvider `json:"items"`
}

// ClusterCredentialProviderList is a list of ClusterCredentialProvider.
//
// +kubebuilder:object:root=true
type ClusterCredentialProviderList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterCredentialProvider `json:"items"`
}

// AccessPolicyList is a list of AccessPolicy.
//
// +kubebuilder:object:root=true
type AccessPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessPolicy `json:"items"`
}

// ClusterAccessPolicyList is a list of ClusterAccessPolicy.
//
// +kubebuilder:object:root=true
type ClusterAccessPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterAccessPolicy `json:"items"`
}

// AttacheConfigList is a list of AttacheConfig.
//
// +kubebuilder:object:root=true
type AttacheConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AttacheConfig `json:"items"`
}

// RevocationList is a list of Revocation.
//
// +kubebuilder:object:root=true
type RevocationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Revocation `json:"items"`
}
