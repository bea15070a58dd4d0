package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/internal/podspool"
	"github.com/attache-dev/attache/internal/trust"
)

// Mode is how a pod's calls reach the sidecar.
type Mode string

const (
	// Explicit names the proxy in variables. No container needs a capability.
	Explicit Mode = "explicit"
	// Transparent redirects all TCP connections by nftables rules, which an
	// init container with NET_ADMIN installs.
	Transparent Mode = "transparent"
)

// User is who a container runs as.
type User string

// Users of the redirect. Both have the capability NET_ADMIN and no other.
const (
	Root User = "root"
	// Sidecar is the sidecar's user; the file capability of its program makes the
	// container's capability one of a process that is not root.
	Sidecar User = "sidecar"
)

// Identity is how a pod proves to the control plane who it is.
type Identity string

// Identities of pods.
const (
	// Token is a projected service-account token with our audience.
	Token Identity = "token"
	// PodCertificate is a certificate of PodSigner that the kubelet asks for
	// (KEP-4317, Kubernetes 1.37).
	PodCertificate Identity = "podCertificate"
)

const defaultAudience = "attache.dev"

// PodSigner is the signer of those certificates.
const PodSigner = "attache.dev/pod-svid"

// Config is what the operator decides. Empty fields have the defaults named.
// Without a Nonce, which differs between admissions, it identifies a template.
type Config struct {
	Image           string `json:"image"`           // of the sidecar; required
	ImagePullPolicy string `json:"imagePullPolicy"` // IfNotPresent

	Mode  Mode   `json:"mode"`  // where namespace and pod choose none; Explicit
	Modes []Mode `json:"modes"` // that they may choose; Mode alone

	RedirectAs User `json:"redirectAs,omitempty"` // who installs the rules; Root

	Identity Identity `json:"identity,omitempty"` // Token

	UID      int64         `json:"uid"`      // the sidecar's, nobody else's; 64200
	Audience string        `json:"audience"` // of the pod's token; attache.dev
	TokenTTL time.Duration `json:"tokenTTL"` // at least 10 minutes, the API's minimum; 1 hour

	ProxyPort    int `json:"proxyPort"`    // loopback, explicit; 15002
	RedirectPort int `json:"redirectPort"` // loopback, transparent; 15001
	HealthPort   int `json:"healthPort"`   // answers probes only; 15020

	Control   string `json:"control"`   // address of the control plane
	ControlCA string `json:"controlCA"` // its roots in PEM; public
	// Audit is the collector of records, by the same roots; "": records stay in
	// the pod.
	Audit string `json:"audit,omitempty"`

	// For the redirect: the kube-apiserver, which RBAC guards, and the cluster's
	// resolvers are reached directly.
	APIServers  []netip.AddrPort `json:"apiServers"`
	Nameservers []netip.Addr     `json:"nameservers"`

	NoProxy      []string      `json:"noProxy"`            // further hosts and CIDRs: the cluster's own
	Placeholders []Placeholder `json:"placeholders"`       // of the providers that the pod may use
	BaseURLs     []BaseURL     `json:"baseURLs,omitempty"` // of the same providers
	Variables    []Variable    `json:"variables"`          // further ones
	Owners       []string      `json:"owners"`             // among which a pod may choose

	Resources  Resources  `json:"resources"`
	LimitRange LimitRange `json:"limitRange"` // the namespace's, for containers
	Bounds     Bounds     `json:"bounds"`

	// Nonce makes the placeholders of an admission: at least 128 random bits
	// in text, drawn anew for each by the caller. A pod that comes again keeps
	// its own.
	Nonce string `json:"-"`
}

// Placeholder is a variable that holds a worthless value where an SDK insists
// on a credential.
type Placeholder struct {
	Env      string `json:"env"`
	Prefix   string `json:"prefix,omitempty"`
	Provider string `json:"provider"`
}

// BaseURL is a variable with the URL of a local listener of the sidecar's, which
// stands for one of the provider's destinations.
type BaseURL struct {
	Env      string `json:"env"`
	Provider string `json:"provider"`
	Host     string `json:"host"` // the destination
	Port     int    `json:"port"`
	Path     string `json:"path,omitempty"`   // is appended to the local URL
	Scheme   string `json:"scheme,omitempty"` // of the listener: http (the default) or https
	// Listen is the listener's loopback address and port; where it is empty
	// or its port is 0, one is chosen from 15100 on, by the place in the list.
	Listen string `json:"listen,omitempty"`
}

// Variable is set in every container where the author set none.
type Variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Resources are the sidecar's, as quantities. A Guaranteed pod gets
// GuaranteedCPU and MemoryLimit as request and limit.
type Resources struct {
	CPURequest    string `json:"cpuRequest"`    // 50m
	CPULimit      string `json:"cpuLimit"`      // 1
	MemoryRequest string `json:"memoryRequest"` // 64Mi
	MemoryLimit   string `json:"memoryLimit"`   // 256Mi
	GuaranteedCPU string `json:"guaranteedCPU"` // 200m

	// Of the spool: podspool.Parse has rule and defaults.
	Spool            string `json:"spool,omitempty"`            // 192Mi
	SpoolVolume      string `json:"spoolVolume,omitempty"`      // 256Mi
	EphemeralStorage string `json:"ephemeralStorage,omitempty"` // 320Mi; 0: none
}

// LimitRange are the limits of type Container of the namespace's LimitRange
// objects. The zero value limits nothing.
type LimitRange struct {
	CPU     Range `json:"cpu"`
	Memory  Range `json:"memory"`
	Storage Range `json:"ephemeralStorage,omitzero"`
}

// Range bounds one resource. An empty field bounds nothing.
type Range struct {
	Min string `json:"min,omitempty"`
	Max string `json:"max,omitempty"`
	// Ratio is maxLimitRequestRatio: limit over request, at most.
	Ratio string `json:"ratio,omitempty"`
}

// Bounds limit what annotations of a pod can ask for. Exclusions are a list of
// bypasses that an author writes: none is allowed by default.
type Bounds struct {
	MaxCPU       string         `json:"maxCPU"`    // 2
	MaxMemory    string         `json:"maxMemory"` // 1Gi
	MaxSpool     string         `json:"maxSpool"`  // 1Gi, or the spool where that is larger
	ExcludeCIDRs []netip.Prefix `json:"excludeCIDRs"`
	ExcludePorts []int          `json:"excludePorts"`
}

// template is a checked Config.
type template struct {
	Config
	hash                 string
	cpu, memory, disk    bounds
	spool                podspool.Sizes
	guaranteedCPU        quantity
	basePorts            []int
	explicit, redirected []trust.Variable
}

// bounds are those of one resource of the sidecar.
type bounds struct {
	unit           quantity // that amounts are whole multiples of
	request, limit quantity // defaults
	ceiling        quantity // of annotations
	min, max       quantity // the LimitRange's; 0 is none
	ratio          quantity // in thousandths; 0 is none
}

// Check says whether pods can be injected by c, which needs no Nonce. The error
// matches [ErrConfig].
func (c Config) Check() error {
	if c.Nonce == "" {
		c.Nonce = noNonce
	}
	if _, err := newTemplate(c); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// DefaultMode is the mode of pods that choose none.
func (c Config) DefaultMode() Mode {
	c.setDefaults()
	return c.Mode
}

// AllowedModes are those that namespaces and pods may choose.
func (c Config) AllowedModes() []Mode {
	c.setDefaults()
	return c.Modes
}

func newTemplate(c Config) (*template, error) {
	c.setDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	t := &template{Config: c}
	if err := t.quantities(); err != nil {
		return nil, err
	}
	files := trust.Files(trustDir)
	proxy := "http://127.0.0.1:" + strconv.Itoa(c.ProxyPort)
	direct := append([]string{"$(KUBERNETES_SERVICE_HOST)", "kubernetes.default.svc", ".svc", ".cluster.local"}, c.NoProxy...)
	var err error
	if t.explicit, err = trust.Variables(files, proxy, direct); err != nil {
		return nil, err
	}
	if t.redirected, err = trust.Variables(files, "", nil); err != nil {
		return nil, err
	}
	if err := t.checkVariables(); err != nil {
		return nil, err
	}
	if err := t.placeBaseURLs(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte(shape), b...))
	t.hash = hex.EncodeToString(sum[:16])
	return t, nil
}

// shape changes whenever the same Config gives another pod.
const shape = "attache.dev/inject/2\n"

func (c *Config) setDefaults() {
	fill(&c.ImagePullPolicy, "IfNotPresent")
	fill(&c.Mode, Explicit)
	if c.Identity == Token {
		c.Identity = "" // as for the redirect's user
	}
	if c.RedirectAs == Root {
		c.RedirectAs = "" // the pods of before this choice are not outdated by it
	}
	fill(&c.UID, DefaultUID)
	fill(&c.Audience, defaultAudience)
	fill(&c.TokenTTL, time.Hour)
	fill(&c.ProxyPort, 15002)
	fill(&c.RedirectPort, 15001)
	fill(&c.HealthPort, 15020)
	fill(&c.Resources.CPURequest, "50m")
	fill(&c.Resources.CPULimit, "1")
	fill(&c.Resources.MemoryRequest, "64Mi")
	fill(&c.Resources.MemoryLimit, "256Mi")
	fill(&c.Resources.GuaranteedCPU, "200m")
	fill(&c.Bounds.MaxCPU, "2")
	fill(&c.Bounds.MaxMemory, "1Gi")
	fill(&c.Bounds.MaxSpool, "1Gi")
	if len(c.Modes) == 0 {
		c.Modes = []Mode{c.Mode}
	}
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) check() error {
	ports := []int{c.ProxyPort, c.RedirectPort, c.HealthPort}
	for i, p := range ports {
		if p < 1024 || p > 65535 || slices.Contains(ports[:i], p) {
			return fmt.Errorf("port %d: ports must be three of 1024 to 65535", p)
		}
	}
	for _, m := range append([]Mode{c.Mode}, c.Modes...) {
		if m != Explicit && m != Transparent {
			return fmt.Errorf("mode: is %q; must be explicit or transparent", m)
		}
	}
	switch {
	case !slices.Contains([]User{"", Root, Sidecar}, c.RedirectAs):
		return fmt.Errorf("redirectAs: is %q; must be %s or %s", c.RedirectAs, Root, Sidecar)
	case !slices.Contains([]Identity{"", Token, PodCertificate}, c.Identity):
		return fmt.Errorf("identity: is %q; must be %s or %s", c.Identity, Token, PodCertificate)
	case c.Image == "":
		return errors.New("image: is missing")
	case !slices.Contains([]string{"Always", "IfNotPresent", "Never"}, c.ImagePullPolicy):
		return fmt.Errorf("imagePullPolicy: is %q; must be Always, IfNotPresent or Never", c.ImagePullPolicy)
	case !slices.Contains(c.Modes, c.Mode):
		return fmt.Errorf("modes: lack %s, the default", c.Mode)
	case c.UID < 1 || c.UID > 1<<31-1: // the API's maximum
		return fmt.Errorf("uid: is %d; must be above 0", c.UID)
	case c.TokenTTL < 10*time.Minute || c.TokenTTL > 24*time.Hour:
		return fmt.Errorf("tokenTTL: is %s; must be 10m to 24h", c.TokenTTL)
	case !validNonce(c.Nonce):
		return errors.New("nonce: is not of 16 to 128 characters; draw 128 random bits for each admission")
	}
	return nil
}

const noNonce = "a nonce, of which templates know nothing"

func validNonce(s string) bool { return len(s) >= 16 && len(s) <= 128 }

// checkVariables refuses names that would compete with ours: the trust and
// proxy settings, and each other.
func (t *template) checkVariables() error {
	var names []string
	for _, v := range t.explicit {
		names = append(names, v.Name)
	}
	use := func(field, name string) error {
		if name == "" || strings.ContainsAny(name, "=\x00") || slices.Contains(names, name) {
			return fmt.Errorf("%s: %q is no name, used twice, or set by Attaché itself", field, name)
		}
		names = append(names, name)
		return nil
	}
	for i, p := range t.Placeholders {
		if err := use(fmt.Sprintf("placeholders[%d].env", i), p.Env); err != nil {
			return err
		}
	}
	for i, u := range t.BaseURLs {
		if err := use(fmt.Sprintf("baseURLs[%d].env", i), u.Env); err != nil {
			return err
		}
	}
	for i, v := range t.Variables {
		if err := use(fmt.Sprintf("variables[%d].name", i), v.Name); err != nil {
			return err
		}
	}
	return nil
}

// quantities parses all amounts of the Config.
func (t *template) quantities() error {
	r, l, b := t.Resources, t.LimitRange, t.Bounds
	t.cpu.unit, t.memory.unit, t.disk.unit = 1, 1000, 1000 // whole bytes
	for _, q := range []struct {
		field, text string
		to          *quantity
	}{
		{"resources.cpuRequest", r.CPURequest, &t.cpu.request},
		{"resources.cpuLimit", r.CPULimit, &t.cpu.limit},
		{"resources.memoryRequest", r.MemoryRequest, &t.memory.request},
		{"resources.memoryLimit", r.MemoryLimit, &t.memory.limit},
		{"resources.guaranteedCPU", r.GuaranteedCPU, &t.guaranteedCPU},
		{"bounds.maxCPU", b.MaxCPU, &t.cpu.ceiling},
		{"bounds.maxMemory", b.MaxMemory, &t.memory.ceiling},
		{"bounds.maxSpool", b.MaxSpool, &t.disk.ceiling},
		{"limitRange.ephemeralStorage.min", l.Storage.Min, &t.disk.min},
		{"limitRange.ephemeralStorage.max", l.Storage.Max, &t.disk.max},
		{"limitRange.ephemeralStorage.ratio", l.Storage.Ratio, &t.disk.ratio},
		{"limitRange.cpu.min", l.CPU.Min, &t.cpu.min},
		{"limitRange.cpu.max", l.CPU.Max, &t.cpu.max},
		{"limitRange.cpu.ratio", l.CPU.Ratio, &t.cpu.ratio},
		{"limitRange.memory.min", l.Memory.Min, &t.memory.min},
		{"limitRange.memory.max", l.Memory.Max, &t.memory.max},
		{"limitRange.memory.ratio", l.Memory.Ratio, &t.memory.ratio},
	} {
		if q.text == "" {
			continue
		}
		v, err := parseQuantity(q.text)
		if err != nil {
			return fmt.Errorf("%s: %q %w", q.field, q.text, err)
		}
		*q.to = v
	}
	var err error
	if t.spool, err = podspool.Parse(r.Spool, r.SpoolVolume, r.EphemeralStorage); err != nil {
		return fmt.Errorf("resources.%w", err)
	}
	t.disk.ceiling = max(t.disk.ceiling, ofBytes(t.spool.Spool))
	t.disk.request, t.disk.limit = 1, 1 // are t.spool's
	for name, b := range map[string]bounds{"cpu": t.cpu, "memory": t.memory, "ephemeralStorage": t.disk} {
		switch {
		case b.request <= 0 || b.limit < b.request:
			return fmt.Errorf("resources: the %s request is 0 or above the limit", name)
		case b.max > 0 && b.min > b.max:
			return fmt.Errorf("limitRange.%s: min is above max", name)
		case b.ratio > 0 && b.ratio < 1000:
			return fmt.Errorf("limitRange.%s.ratio: is below 1", name)
		}
	}
	if t.guaranteedCPU <= 0 {
		return errors.New("resources.guaranteedCPU: is 0")
	}
	return nil
}
