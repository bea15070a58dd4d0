package inject

import (
	"slices"

	"github.com/attache-dev/attache/api"
)

// Labels and annotations, on namespaces (ns) and pods.
const (
	prefix = "attache.dev/"

	labelInject = api.InjectLabel // ns: enabled; pod: enabled, false
	labelOptOut = api.OptOutLabel // ns: true lets pods say inject=false
	labelMode   = api.ModeLabel   // ns: explicit, transparent
	enforcePSA  = "pod-security.kubernetes.io/enforce"

	annotationStatus       = api.StatusAnnotation // ours alone
	annotationMode         = prefix + "mode"
	annotationOwner        = api.OwnerAnnotation
	annotationLogLevel     = prefix + "log-level"
	annotationExcludeCIDRs = prefix + "exclude-outbound-cidrs"
	annotationExcludePorts = prefix + "exclude-outbound-ports"
)

// annotationSpool is the size of the spool, an amount as those below.
const annotationSpool = prefix + "spool"

// resourceAnnotations set the sidecar's resources, in this order.
var resourceAnnotations = []string{
	prefix + "cpu-request", prefix + "cpu-limit", prefix + "memory-request", prefix + "memory-limit",
}

// Names of the containers and volumes that injection adds. Authors cannot use
// them.
const (
	SidecarName  = "attache-sidecar"
	RedirectName = "attache-redirect"

	trustVolume = "attache-trust" // CA bundle: the sidecar writes, all others read
	tokenVolume = "attache-token" // the pod's identity; the sidecar's alone
	stateVolume = "attache-state" // keys, in memory; the sidecar's alone
	spoolVolume = "attache-spool" // audit records, on disk; the sidecar's alone
	noneVolume  = "attache-none"  // stands where the API token would be mounted

	// TokenVolume is the volume with the token of our audience.
	TokenVolume = tokenVolume
	// DefaultUID is the sidecar's user, where the Config names none.
	DefaultUID = 64200
)

var (
	ownContainers  = []string{SidecarName, RedirectName}
	ownVolumes     = []string{trustVolume, tokenVolume, stateVolume, spoolVolume, noneVolume}
	privateVolumes = []string{tokenVolume, stateVolume, spoolVolume, noneVolume}
)

// PrivateVolumes are those that only the sidecar may mount.
func PrivateVolumes() []string { return slices.Clone(privateVolumes) }

// Paths in containers.
const (
	trustMount = "/var/run/attache"
	trustDir   = trustMount + "/trust" // of its own: the mount's root is not the sidecar's to chmod
	tokenMount = "/var/run/secrets/attache.dev"
	stateMount = "/var/lib/attache/state"
	spoolMount = "/var/lib/attache/spool"
	apiToken   = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// Variables of the sidecar with what its agent finds in its own.
const (
	envPlaceholders = "ATTACHE_PLACEHOLDERS"
	envBaseURLs     = "ATTACHE_BASE_URLS"
	envSpoolBytes   = "ATTACHE_SPOOL_BYTES" // where it is not the sidecar's default
)

func label(name string) string      { return "metadata.labels[" + name + "]" }
func annotation(name string) string { return "metadata.annotations[" + name + "]" }
