package v1alpha1

// ClusterCredentialProvider is a CredentialProvider that the operator of a
// cluster shares with some of its namespaces. Secrets that it names are in
// the namespace of the control plane.
type ClusterCredentialProvider struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta                    `json:"metadata"`
	Spec     ClusterCredentialProviderSpec `json:"spec"`
}

// ClusterCredentialProviderSpec is the body of a ClusterCredentialProvider.
type ClusterCredentialProviderSpec struct {
	CredentialProviderSpec `json:",inline"`
	// AllowedNamespaces may use the provider, whatever a policy says. Default:
	// none.
	AllowedNamespaces *NamespaceGrant `json:"allowedNamespaces,omitempty"`
}

// NamespaceGrant names namespaces. One that is named or selected is granted.
// +kubebuilder:validation:XValidation:rule="has(self.names) || has(self.selector)",message="grants nothing; give names or selector, or leave the field out"
type NamespaceGrant struct {
	// Names of namespaces; "*" is every one. Under attache run the workload's
	// namespace is local.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Names []string `json:"names,omitempty"`
	// Selector chooses by the labels of the namespace. Without a cluster the
	// only label is kubernetes.io/metadata.name.
	Selector *LabelSelector `json:"selector,omitempty"`
}

// LabelSelector matches where every requirement holds. It must have one.
// +kubebuilder:validation:XValidation:rule="has(self.matchLabels) || has(self.matchExpressions)",message="selects nothing in particular; give matchLabels or matchExpressions"
type LabelSelector struct {
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	MatchLabels map[string]string `json:"matchLabels,omitempty"` // each must be there
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	MatchExpressions []LabelRequirement `json:"matchExpressions,omitempty"`
}

// LabelRequirement is one condition on a label.
// +kubebuilder:validation:XValidation:rule="has(self.values) == (self.operator in ['In', 'NotIn'])",message="values belong to In and NotIn, which need them"
type LabelRequirement struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	Key string `json:"key"`
	// Operator is In, NotIn, Exists or DoesNotExist.
	// +kubebuilder:validation:Enum=In;NotIn;Exists;DoesNotExist
	Operator string `json:"operator"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	Values []string `json:"values,omitempty"` // of In and NotIn
}

// SecretRef names a key of a Secret: in the provider's own namespace, or in
// the control plane's for a ClusterCredentialProvider. Only the broker reads
// it. It is for objects in a cluster, not for files.
type SecretRef struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`
	// Key of the Secret's data.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
	Key string `json:"key"`
}

// TLSSecretRef names a Secret of type kubernetes.io/tls, with keys tls.crt and
// tls.key. What holds for SecretRef holds for it too.
type TLSSecretRef struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`
}

// ClusterAccessPolicy holds guard rails of the operator of a cluster. Its deny
// rules win over every other rule; its allow rules decide where no rule of an
// AccessPolicy matches. It names ClusterCredentialProviders only.
type ClusterAccessPolicy struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta       `json:"metadata"`
	Spec     AccessPolicySpec `json:"spec"`
}

// TargetRef attaches a policy, as LocalPolicyTargetReference of the Gateway API.
// +kubebuilder:validation:XValidation:rule="!has(self.group) || size(self.group) == 0",message="Namespace and ServiceAccount are of the core group; leave group out"
type TargetRef struct {
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"` // "" (core)
	// Kind is Namespace (of an AccessPolicy: its own) or ServiceAccount (of the
	// policy's namespace; not in a ClusterAccessPolicy).
	// +kubebuilder:validation:Enum=Namespace;ServiceAccount
	Kind string `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"` // of the namespace or service account
}

// ClusterConfig is what only a cluster has. Files may hold it; attache run does
// not use it.
type ClusterConfig struct {
	Injection InjectionConfig `json:"injection,omitempty"`
	// Nameservers are the resolvers of the cluster, by address. Sidecars resolve
	// names by them and by nothing of the pod's own; pods reach them directly.
	// Default: the resolvers of the control plane's pods.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MaxLength=45
	Nameservers []string `json:"nameservers,omitempty"`
	// APIServers are the address:port of the kube-apiserver, which pods reach
	// directly, since RBAC guards it. Default: those of Service default/kubernetes.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=64
	APIServers []string `json:"apiServers,omitempty"`
	// NoProxy are hosts, domains (".example.com") and networks that pods in
	// explicit mode are told to reach directly.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	NoProxy []string `json:"noProxy,omitempty"`
	// Owners are the accountable people or teams of a namespace, by namespace;
	// "*" is for those that are not named. The first is the owner of pods that
	// choose none by annotation attache.dev/owner. Default: annotation
	// attache.dev/owners of the namespace.
	// +kubebuilder:validation:MaxProperties=4096
	Owners map[string]OwnerList `json:"owners,omitempty"`
	// AcceptedTemplates are the shapes of sidecars that may be attested beside
	// the control plane's own, until the operator retires them.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=hash
	// +listMapKey=digest
	AcceptedTemplates []AcceptedTemplate `json:"acceptedTemplates,omitempty"`
	Issuer            IssuerConfig       `json:"issuer,omitempty"`
}

// OwnerList is at least one person or team.
// +kubebuilder:validation:MinItems=1
// +kubebuilder:validation:MaxItems=32
// +kubebuilder:validation:items:MinLength=1
// +kubebuilder:validation:items:MaxLength=128
type OwnerList []string

// AcceptedTemplate is a shape of the sidecar and the image in it.
type AcceptedTemplate struct {
	// Hash is that of annotation attache.dev/status.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{32}$`
	Hash string `json:"hash"`
	// Digest of the sidecar's image.
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Digest string `json:"digest"`
}

// IssuerConfig is the built-in issuer of the cluster.
type IssuerConfig struct {
	// URL is the iss of JWT-SVIDs. Discovery and keys must be served below it
	// (attache-control issuer export writes them); others verify JWT-SVIDs by it.
	// Default: the control plane's own Service.
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:Pattern=`^https://[^\s?#]+$`
	URL string `json:"url,omitempty"`
}

// InjectionConfig says how pods get their sidecar.
// +kubebuilder:validation:XValidation:rule="!has(self.modes) || !has(self.mode) || self.mode in self.modes",message="modes lack mode, the default"
type InjectionConfig struct {
	// Mode is how a pod's calls reach the sidecar where namespace and pod choose
	// none: explicit (default: by proxy variables, no capability) or transparent
	// (redirected by nftables rules).
	// +kubebuilder:validation:Enum=explicit;transparent
	Mode string `json:"mode,omitempty"`
	// Modes are those that namespaces and pods may choose. Default: mode alone.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=explicit;transparent
	Modes []string `json:"modes,omitempty"`
	// RedirectAs is who installs the redirect's rules in transparent mode: root
	// (default), or sidecar, the sidecar's own user, to whom a file capability of
	// its program gives NET_ADMIN; both have no other capability.
	// +kubebuilder:validation:Enum=root;sidecar
	RedirectAs string `json:"redirectAs,omitempty"`
	// Identity is how pods prove to the control plane who they are: token
	// (default), a service-account token with our audience, or podCertificate, a
	// certificate that the kubelet asks the control plane for. The latter needs
	// pod certificates of certificates.k8s.io/v1 (Kubernetes 1.37) in the API
	// server and in every kubelet; without them in the API server it is token.
	// +kubebuilder:validation:Enum=token;podCertificate
	Identity  string           `json:"identity,omitempty"`
	Resources SidecarResources `json:"resources,omitempty"`
	Bounds    InjectionBounds  `json:"bounds,omitempty"`
}

// SidecarResources are the sidecar's, as Kubernetes quantities.
type SidecarResources struct {
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	CPURequest string `json:"cpuRequest,omitempty"` // default 50m
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	CPULimit string `json:"cpuLimit,omitempty"` // default 1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	MemoryRequest string `json:"memoryRequest,omitempty"` // default 64Mi
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	MemoryLimit string `json:"memoryLimit,omitempty"` // default 256Mi
	// GuaranteedCPU is request and limit in a Guaranteed pod. Default 200m.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	GuaranteedCPU string `json:"guaranteedCPU,omitempty"`
	// Spool is what a pod's records may take of its node's disk: how long an
	// outage of the collector it lasts. 16Mi to 16Gi; default 192Mi.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	Spool string `json:"spool,omitempty"`
	// SpoolVolume is the sizeLimit of the volume that the spool is in, above which
	// the kubelet evicts. At least 40Mi above spool, for what sinks set aside;
	// default an eighth of the spool above it, and at least 64Mi.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	SpoolVolume string `json:"spoolVolume,omitempty"`
	// EphemeralStorage is the sidecar's request of ephemeral-storage and, in pods
	// of which another container has such a limit, its limit: above spoolVolume.
	// Default 64Mi above it. 0 sets neither, for nodes that do not account for
	// local storage.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	EphemeralStorage string `json:"ephemeralStorage,omitempty"`
}

// InjectionBounds limit what annotations of a pod can ask for.
type InjectionBounds struct {
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	MaxCPU string `json:"maxCPU,omitempty"` // of the sidecar; default 2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	MaxMemory string `json:"maxMemory,omitempty"` // default 1Gi
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(self)",message="must be a quantity such as 100m or 64Mi"
	MaxSpool string `json:"maxSpool,omitempty"` // default 1Gi, or the spool
	// ExcludeCIDRs and ExcludePorts may be left out of the redirect by a pod's
	// annotations: they are a bypass. Default: none.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="must be a network such as 10.0.0.0/8"
	ExcludeCIDRs []string `json:"excludeCIDRs,omitempty"`
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	ExcludePorts []int `json:"excludePorts,omitempty"`
}

// Revocation ends credentials and identities at once, in every sidecar that it
// concerns. Its spec cannot be changed; delete it once all have acknowledged.
type Revocation struct {
	TypeMeta `json:",inline"`
	Metadata ObjectMeta     `json:"metadata"`
	Spec     RevocationSpec `json:"spec"`
}

// RevocationSpec says what is revoked: what matches every field given.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed; make another Revocation"
// +kubebuilder:validation:XValidation:rule="has(self.provider) || has(self.handle) || has(self.task) || has(self.owner) || has(self.podUID)",message="would revoke everything; give at least one of provider, handle, task, owner, podUID"
type RevocationSpec struct {
	// Provider is NAMESPACE/NAME of a CredentialProvider, or NAME of a
	// ClusterCredentialProvider.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	Provider string `json:"provider,omitempty"`
	// Handle of one credential, as in the audit record.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Handle string `json:"handle,omitempty"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Task string `json:"task,omitempty"` // id of a task
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Owner string `json:"owner,omitempty"` // accountable person or team
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	PodUID string `json:"podUID,omitempty"`
	// NotBefore: credentials minted before this time (RFC 3339) are dead.
	// Default: when the Revocation was created.
	// +kubebuilder:validation:Format=date-time
	NotBefore string `json:"notBefore,omitempty"`
	// +kubebuilder:validation:MaxLength=512
	Reason string `json:"reason,omitempty"` // shown in records
}
