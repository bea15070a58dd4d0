// Package v1alpha1 holds the documents that configure Attaché. The same YAML
// works in a folder on a laptop and as custom resources in a cluster.
//
// +kubebuilder:object:generate=true
package v1alpha1

import (
	"encoding/json"
	"fmt"
	"time"
)

// Group and version of every document.
const (
	APIVersion = "attache.dev/v1alpha1"

	KindCredentialProvider        = "CredentialProvider"
	KindClusterCredentialProvider = "ClusterCredentialProvider"
	KindAccessPolicy              = "AccessPolicy"
	KindClusterAccessPolicy       = "ClusterAccessPolicy"
	KindAttacheConfig             = "AttacheConfig"
	KindRevocation                = "Revocation" // in a cluster only
)

// TypeMeta names a document's schema.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// ObjectMeta names a document.
type ObjectMeta struct {
	// Name is unique for its kind and namespace; a provider's in all
	// namespaces, since rules name providers without one.
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"` // default: none
	// Labels and Annotations are the user's own; Attaché ignores them.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Duration is a time.Duration written as Go text ("90s", "5m").
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalJSON implements [json.Marshaler].
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements [json.Unmarshaler].
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is text such as \"90s\" or \"5m\"")
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration; write it as \"90s\" or \"5m\"", s)
	}
	*d = Duration(v)
	return nil
}

// Destination is a place that requests may go to and how it is reached and
// verified. Providers and policies both list destinations; two entries for one
// host and port must not differ.
// +kubebuilder:validation:XValidation:rule="!has(self.onlyCA) || !self.onlyCA || has(self.caFile) || has(self.caBundle)",message="onlyCA needs a certificate authority; give caBundle"
// +kubebuilder:validation:XValidation:rule="!has(self.scheme) || self.scheme != 'http' || !(has(self.caFile) || has(self.caBundle) || has(self.onlyCA) || has(self.serverName) || has(self.clientSVID))",message="caFile, caBundle, onlyCA, serverName and clientSVID have no meaning with scheme http"
type Destination struct {
	// Host is an exact name, "*.example.com" (one label) or
	// "**.example.com" (one or more labels).
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host"`
	// Port defaults to 443, or 80 where Scheme is http.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int `json:"port,omitempty"`
	// Scheme is https (default) or http.
	// +kubebuilder:validation:Enum=https;http
	Scheme string `json:"scheme,omitempty"`
	// Addresses pins the name to these IP addresses, with an optional port
	// ("127.0.0.1" or "127.0.0.1:8443"). Only a pinned name may point at
	// loopback or private space.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	Addresses []string `json:"addresses,omitempty"`
	// CIDRs are the only networks in which the name's addresses may be, such as
	// those of a cluster's Services. They may be private, never loopback,
	// link-local or metadata. In a cluster scheme http needs them.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="must be a network such as 10.0.0.0/8"
	CIDRs []string `json:"cidrs,omitempty"`
	// CAFile and CABundle add roots (PEM) for this destination alone; with
	// OnlyCA the system's roots do not count.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CAFile string `json:"caFile,omitempty"`
	// +kubebuilder:validation:MaxLength=262144
	CABundle string `json:"caBundle,omitempty"`
	OnlyCA   bool   `json:"onlyCA,omitempty"`
	// ServerName is verified in the certificate instead of Host.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServerName string `json:"serverName,omitempty"`
	// ClientSVID presents the workload's X.509-SVID to the upstream.
	ClientSVID bool `json:"clientSVID,omitempty"`
}
