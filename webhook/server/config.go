package server

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// Fixed are the settings of injection that are flags of the control plane, and
// what it found out about its cluster. AttacheConfig wins where both say
// something.
type Fixed struct {
	Image, ImagePullPolicy string
	Control                string // host:port of the sidecars' gRPC
	Audit                  string // host:port of the collector of records; "": none
	TrustDomain            string
	APIServers             []netip.AddrPort
	Nameservers            []netip.Addr
	// PodCertificates says that the API server has pod certificates; the
	// AttacheConfig decides whether they are used.
	PodCertificates bool
}

// config makes the settings that all namespaces share.
func (f Fixed) config(c *v1alpha1.ClusterConfig, controlCA string) (inject.Config, error) {
	i := &c.Injection
	out := inject.Config{
		Image: f.Image, ImagePullPolicy: f.ImagePullPolicy, Control: f.Control, ControlCA: controlCA, Audit: f.Audit,
		APIServers: f.APIServers, Nameservers: f.Nameservers,
		Mode: inject.Mode(i.Mode), NoProxy: c.NoProxy, RedirectAs: inject.User(i.RedirectAs),
		Resources: inject.Resources{
			CPURequest: i.Resources.CPURequest, CPULimit: i.Resources.CPULimit,
			MemoryRequest: i.Resources.MemoryRequest, MemoryLimit: i.Resources.MemoryLimit,
			GuaranteedCPU: i.Resources.GuaranteedCPU,
			Spool:         i.Resources.Spool, SpoolVolume: i.Resources.SpoolVolume, EphemeralStorage: i.Resources.EphemeralStorage,
		},
		Bounds: inject.Bounds{MaxCPU: i.Bounds.MaxCPU, MaxMemory: i.Bounds.MaxMemory, MaxSpool: i.Bounds.MaxSpool, ExcludePorts: i.Bounds.ExcludePorts},
	}
	if f.PodCertificates {
		out.Identity = inject.Identity(i.Identity)
	}
	for _, m := range i.Modes {
		out.Modes = append(out.Modes, inject.Mode(m))
	}
	if out.Mode == "" && len(out.Modes) > 0 && !slices.Contains(out.Modes, inject.Explicit) {
		out.Mode = out.Modes[0] // of the operator's choice, the only one
	}
	var err error
	if len(c.APIServers) > 0 {
		if out.APIServers, err = parseAll("apiServers", c.APIServers, netip.ParseAddrPort); err != nil {
			return out, err
		}
	}
	if len(c.Nameservers) > 0 {
		if out.Nameservers, err = parseAll("nameservers", c.Nameservers, netip.ParseAddr); err != nil {
			return out, err
		}
	}
	if out.Bounds.ExcludeCIDRs, err = parseAll("injection.bounds.excludeCIDRs", i.Bounds.ExcludeCIDRs, netip.ParsePrefix); err != nil {
		return out, err
	}
	return out, out.Check()
}

func parseAll[T any](field string, texts []string, parse func(string) (T, error)) ([]T, error) {
	var list []T
	for i, s := range texts {
		v, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("%w: spec.cluster.%s[%d]: %w", inject.ErrConfig, field, i, err)
		}
		list = append(list, v)
	}
	return list, nil
}

// limitRange joins what LimitRanges say of containers: the narrowest of each.
func limitRange(list []corev1.LimitRange) inject.LimitRange {
	var out inject.LimitRange
	for _, l := range list {
		for _, item := range l.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			for name, r := range map[corev1.ResourceName]*inject.Range{corev1.ResourceCPU: &out.CPU, corev1.ResourceMemory: &out.Memory, corev1.ResourceEphemeralStorage: &out.Storage} {
				narrow(&r.Min, item.Min, name, 1)
				narrow(&r.Max, item.Max, name, -1)
				narrow(&r.Ratio, item.MaxLimitRequestRatio, name, -1)
			}
		}
	}
	return out
}

// narrow keeps the larger of two quantities if sign is 1, the smaller if -1.
func narrow(to *string, from corev1.ResourceList, name corev1.ResourceName, sign int) {
	q, ok := from[name]
	if !ok {
		return
	}
	if old, err := resource.ParseQuantity(*to); err != nil || q.Cmp(old) == sign {
		*to = q.String()
	}
}

// addProviders gives a pod the placeholders and base URLs of its providers. A
// variable belongs to the first that names it: the loader reports the others.
func addProviders(c *inject.Config, providers []v1alpha1.CredentialProvider) {
	taken := map[string]bool{}
	free := func(env string) bool {
		was := taken[env]
		taken[env] = true
		return !was
	}
	c.Placeholders, c.BaseURLs = nil, nil
	for i := range providers {
		p := &providers[i]
		name := p.Metadata.Name
		for _, h := range p.Spec.Placeholders {
			if free(h.Env) {
				c.Placeholders = append(c.Placeholders, inject.Placeholder{Env: h.Env, Prefix: h.Prefix, Provider: name})
			}
		}
		for _, u := range p.Spec.BaseURLs {
			if free(u.Env) {
				c.BaseURLs = append(c.BaseURLs, inject.BaseURL{
					Env: u.Env, Provider: name, Host: u.Host, Port: u.Port, Path: u.Path, Scheme: u.Scheme, Listen: u.Listen,
				})
			}
		}
	}
}
