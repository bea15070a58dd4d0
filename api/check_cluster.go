package api

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/podspool"
)

// localNamespace is that of the workload of attache run.
const localNamespace = "local"

// nameLabel is on every namespace of a cluster.
const nameLabel = "kubernetes.io/metadata.name"

var (
	secretName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	secretKey  = regexp.MustCompile(`^[-._a-zA-Z0-9]{1,253}$`)
	labelKey   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	quantity   = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`)
	shapeHash  = regexp.MustCompile(`^[0-9a-f]{32}$`)
	imageHash  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// String names the object or field that r stands for.
func (r Ref) String() string {
	s := r.Kind + " " + r.Name
	if r.Namespace != "" {
		s = r.Kind + " " + r.Namespace + "/" + r.Name
	}
	if r.Field != "" {
		s += " " + r.Field
	}
	return s
}

// Object is r without its field.
func (r Ref) Object() Ref { r.Field = ""; return r }

// clusterWide reports whether the document belongs to no namespace.
func (c *checker) clusterWide() bool {
	return c.ref.Kind == v1alpha1.KindClusterCredentialProvider || c.ref.Kind == v1alpha1.KindClusterAccessPolicy
}

// foreign reports whether somebody else than the operator may have written the
// document.
func (c *checker) foreign() bool {
	return c.place == PlacePod && !c.clusterWide() && c.ref.Kind != v1alpha1.KindAttacheConfig
}

// conflict reports a document that contradicts an earlier one.
func (c *checker) conflict(field, format string, args ...any) {
	c.bad(field, format, args...)
	c.problems[len(c.problems)-1].Reason = ReasonConflicted
}

// dangling reports a reference of a rule that cannot be resolved. It spoils
// the rule alone in a pod, and the documents everywhere else.
func (c *checker) dangling(reason Reason, field, format string, args ...any) {
	c.bad(field, format, args...)
	last := len(c.problems) - 1
	c.problems[last].Reason = reason
	if c.place == PlacePod {
		c.loader.unresolved = append(c.loader.unresolved, c.problems[last])
		c.problems = c.problems[:last]
	}
}

// mayUse checks that a policy may refer to a provider: by grant only where
// they are not of one namespace.
func (c *checker) mayUse(field string, d document) bool {
	name := quote(d.ref.Name)
	if c.ref.Kind == v1alpha1.KindClusterAccessPolicy {
		if d.ref.Kind != v1alpha1.KindClusterCredentialProvider {
			c.dangling(ReasonProviderNotFound, field, "is %s, a CredentialProvider; a ClusterAccessPolicy names a ClusterCredentialProvider", name)
			return false
		}
		return true // each namespace's grant is looked at when a call is decided
	}
	if d.ref.Kind != v1alpha1.KindClusterCredentialProvider {
		return true
	}
	ns := c.ref.Namespace
	if ns == "" && c.place == PlaceRun {
		ns = localNamespace
	}
	switch {
	case ns == "" || Granted(d.grant, ns, map[string]string{nameLabel: ns}):
		return true
	case c.place == PlaceReview && d.grant != nil && d.grant.Selector != nil:
		return true // nobody knows the namespace's labels here
	}
	c.dangling(ReasonRefNotPermitted, field, "is ClusterCredentialProvider %s, which namespace %s may not use; ask its owner for an entry in spec.allowedNamespaces", name, quote(ns))
	return false
}

// Granted reports whether a namespace with these labels is granted; nil grants
// none.
func Granted(g *v1alpha1.NamespaceGrant, namespace string, labels map[string]string) bool {
	if g == nil || namespace == "" {
		return false
	}
	if slices.Contains(g.Names, namespace) || slices.Contains(g.Names, "*") {
		return true
	}
	return g.Selector != nil && selects(g.Selector, labels)
}

func selects(s *v1alpha1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		got, ok := labels[e.Key]
		var holds bool
		switch e.Operator {
		case "In":
			holds = ok && slices.Contains(e.Values, got)
		case "NotIn":
			holds = !ok || !slices.Contains(e.Values, got)
		case "Exists":
			holds = ok
		case "DoesNotExist":
			holds = !ok
		}
		if !holds {
			return false
		}
	}
	return len(s.MatchLabels)+len(s.MatchExpressions) > 0
}

func (c *checker) namespaceGrant(g *v1alpha1.NamespaceGrant) {
	const f = "spec.allowedNamespaces"
	if !c.has(f+".names") && !c.has(f+".selector") {
		c.bad(f, "grants nothing; give names or selector, or leave it out")
	}
	for i, n := range g.Names {
		if at := fmt.Sprintf("%s.names[%d]", f, i); n != "*" && n != "" && !spaceRule.MatchString(n) {
			c.bad(at, `is %s; must be the name of a namespace, or "*" for every one`, quote(n))
		}
	}
	if g.Selector == nil {
		return
	}
	if s := g.Selector; len(s.MatchLabels)+len(s.MatchExpressions) == 0 && c.sound(f+".selector") {
		c.bad(f+".selector", `selects nothing in particular; give matchLabels or matchExpressions, or names: ["*"] for every namespace`)
	}
	for k := range g.Selector.MatchLabels {
		if !labelKey.MatchString(k) {
			c.bad(f+".selector.matchLabels["+k+"]", "is no key of a label")
		}
	}
	for i, e := range g.Selector.MatchExpressions {
		at := fmt.Sprintf("%s.selector.matchExpressions[%d]", f, i)
		oneOf(c, at+".operator", e.Operator, "In", "NotIn", "Exists", "DoesNotExist")
		if e.Key != "" && !labelKey.MatchString(e.Key) {
			c.bad(at+".key", "is %s; must be the key of a label", quote(e.Key))
		}
		if in := e.Operator == "In" || e.Operator == "NotIn"; in != c.has(at+".values") && c.sound(at) {
			c.bad(at, "has operator %s; values belong to In and NotIn, which need them", e.Operator)
		}
	}
}

// secretRef checks the name of a Secret, which only the broker of a cluster
// reads.
func (c *checker) secretRef(field, name, key string) {
	if c.place == PlaceRun {
		c.bad(field, "is a Secret, which only the broker of a cluster reads; attache run takes keys from file, env or vault")
	}
	if name != "" && !secretName.MatchString(name) {
		c.bad(field+".name", "is %s; must be the name of a Secret", quote(name))
	}
	if key != "" && !secretKey.MatchString(key) {
		c.bad(field+".key", "is %s; must be a key of a Secret's data", quote(key))
	}
}

func (c *checker) clientSecret(o *v1alpha1.OAuth2) {
	const f = "spec.oauth2"
	secret := o.ClientAuth == ClientAuthSecretBasic || o.ClientAuth == ClientAuthSecretPost
	if r := o.ClientSecretRef; r != nil {
		c.secretRef(f+".clientSecretRef", r.Name, r.Key)
		if !secret {
			c.bad(f+".clientSecretRef", "is for clientAuth clientSecretBasic and clientSecretPost; remove it or set one")
		}
	} else if secret {
		c.bad(f+".clientAuth", "is %s, which needs clientSecretRef", o.ClientAuth)
	}
	if r := o.ClientCertificateRef; r != nil {
		c.secretRef(f+".clientCertificateRef", r.Name, "")
		if o.ClientAuth != ClientAuthTLS {
			c.bad(f+".clientCertificateRef", "is for clientAuth tlsClientAuth; remove it or set that")
		}
	} else if o.ClientAuth == ClientAuthTLS {
		c.bad(f+".clientAuth", "is tlsClientAuth, which needs clientCertificateRef")
	}
	if (secret || o.ClientAuth == ClientAuthTLS) && o.ClientID == "" && !c.has(f+".clientID") {
		c.bad(f+".clientID", "is missing; clientAuth %s requires it", o.ClientAuth) // the SPIFFE ID has no secret
	}
}

// NeedsBroker reports whether a credential of the provider comes from a Secret,
// which only the broker of a cluster reads.
func NeedsBroker(s *v1alpha1.CredentialProviderSpec) bool {
	return s.APIKey != nil && s.APIKey.SecretRef != nil ||
		s.OAuth2 != nil && (s.OAuth2.ClientSecretRef != nil || s.OAuth2.ClientCertificateRef != nil)
}

// ClusterOnly lists what of a bundle attache run refuses.
func ClusterOnly(b *Bundle) Problems {
	var list Problems
	for i := range b.Providers {
		s, r := &b.Providers[i].Spec, Ref{Kind: b.Providers[i].Kind, Namespace: b.Providers[i].Metadata.Namespace, Name: b.Providers[i].Metadata.Name}
		if !NeedsBroker(s) {
			continue
		}
		r.Field = "spec.oauth2.clientSecretRef"
		switch {
		case s.APIKey != nil:
			r.Field = "spec.apiKey.secretRef"
		case s.OAuth2.ClientCertificateRef != nil:
			r.Field = "spec.oauth2.clientCertificateRef"
		}
		list = append(list, problemAt(b.Locate(r), r, r.Field, "is a Secret of a cluster; attache run refuses it"))
	}
	return list
}

// networks checks the networks in which a name's addresses must be.
func (c *checker) networks(field string, d *v1alpha1.Destination) {
	if len(d.CIDRs) > 0 && c.has(field+".addresses") {
		c.bad(field+".cidrs", "stands beside addresses, which are fixed already; remove one of them")
	}
	for i, s := range d.CIDRs {
		at := fmt.Sprintf("%s.cidrs[%d]", field, i)
		if !c.sound(at) {
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil || p != p.Masked() || p.Addr().Is4In6():
			c.bad(at, "is %s; must be a network such as 10.0.0.0/8", quote(s))
		case p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 32:
			c.bad(at, "is %s, most of the internet; name a network of at least /8 (IPv6: /32)", quote(s))
		case p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast():
			c.bad(at, "is %s; only addresses can pin a name to loopback or link-local", quote(s))
		}
	}
}

// ownPorts keeps the listeners of documents away from the sidecar's own.
func (c *checker) ownPorts(field, listen string) {
	_, port, err := net.SplitHostPort(listen)
	if n, perr := strconv.Atoi(port); c.place == PlacePod && err == nil && perr == nil && n >= 15000 && n < 15100 {
		c.bad(field, "is %s; ports 15000 to 15099 are the sidecar's own", quote(listen))
	}
}

func (c *checker) targetRefs(refs []v1alpha1.TargetRef) {
	for i, t := range refs {
		at := fmt.Sprintf("spec.targetRefs[%d]", i)
		if t.Group != "" {
			c.bad(at+".group", "is %s; Namespace and ServiceAccount are of the core group, leave it out", quote(t.Group))
		}
		oneOf(c, at+".kind", t.Kind, TargetNamespace, TargetServiceAccount)
		switch {
		case t.Kind == TargetServiceAccount && c.ref.Kind == v1alpha1.KindClusterAccessPolicy:
			c.bad(at+".kind", "is ServiceAccount, of which every namespace may have one; select by spec.workloads")
		case t.Kind == TargetNamespace && t.Name != "" && !spaceRule.MatchString(t.Name):
			c.bad(at+".name", "is %s; must be the name of a namespace", quote(t.Name))
		case t.Kind == TargetNamespace && !c.clusterWide() && c.ref.Namespace != "" && t.Name != c.ref.Namespace && c.sound(at):
			c.bad(at+".name", "is %s; an AccessPolicy attaches in its own namespace only", quote(t.Name))
		}
	}
}

func (c *checker) cluster(s *v1alpha1.ClusterConfig) {
	const f = "spec.cluster"
	for i, a := range s.Nameservers {
		if _, err := netip.ParseAddr(a); err != nil && a != "" {
			c.bad(fmt.Sprintf("%s.nameservers[%d]", f, i), "is %s; must be an IP address", quote(a))
		}
	}
	for i, a := range s.APIServers {
		if ap, err := netip.ParseAddrPort(a); a != "" && (err != nil || ap.Port() == 0) {
			c.bad(fmt.Sprintf("%s.apiServers[%d]", f, i), "is %s; must be address:port such as 10.96.0.1:443", quote(a))
		}
	}
	for i, h := range s.NoProxy {
		if strings.ContainsAny(h, " ,\t\n") {
			c.bad(fmt.Sprintf("%s.noProxy[%d]", f, i), "is %s; must be one host, domain or network", quote(h))
		}
	}
	for ns, owners := range s.Owners {
		at := fmt.Sprintf("%s.owners[%s]", f, ns)
		if ns != "*" && !spaceRule.MatchString(ns) {
			c.bad(at, `is no namespace; must be the name of one, or "*" for the others`)
		}
		for i, o := range owners {
			if !ownerRule.MatchString(o) {
				c.bad(fmt.Sprintf("%s[%d]", at, i), "is %s; must be at most 128 visible characters without comma", quote(o))
			}
		}
	}
	for i, t := range s.AcceptedTemplates {
		at := fmt.Sprintf("%s.acceptedTemplates[%d]", f, i)
		if t.Hash != "" && !shapeHash.MatchString(t.Hash) {
			c.bad(at+".hash", "is %s; must be the 32 hexadecimal digits that attache status shows", quote(t.Hash))
		}
		if t.Digest != "" && !imageHash.MatchString(t.Digest) {
			c.bad(at+".digest", "is %s; must be sha256: and 64 hexadecimal digits", quote(t.Digest))
		}
	}
	c.httpsURL(f+".issuer.url", s.Issuer.URL, nil, nil)
	c.sidecars(&s.Injection)
}

func (c *checker) sidecars(s *v1alpha1.InjectionConfig) {
	const f = "spec.cluster.injection"
	oneOf(c, f+".mode", s.Mode, InjectExplicit, InjectTransparent)
	for i, m := range s.Modes {
		oneOf(c, fmt.Sprintf("%s.modes[%d]", f, i), m, InjectExplicit, InjectTransparent)
	}
	oneOf(c, f+".redirectAs", s.RedirectAs, RedirectRoot, RedirectSidecar)
	oneOf(c, f+".identity", s.Identity, IdentityToken, IdentityPodCertificate)
	mode := s.Mode
	fill(&mode, InjectExplicit)
	if len(s.Modes) > 0 && !slices.Contains(s.Modes, mode) && c.sound(f) {
		c.bad(f+".modes", "lack %s, the default", mode)
	}
	for _, q := range []struct{ field, value string }{
		{"resources.cpuRequest", s.Resources.CPURequest}, {"resources.cpuLimit", s.Resources.CPULimit},
		{"resources.memoryRequest", s.Resources.MemoryRequest}, {"resources.memoryLimit", s.Resources.MemoryLimit},
		{"resources.guaranteedCPU", s.Resources.GuaranteedCPU}, {"bounds.maxCPU", s.Bounds.MaxCPU}, {"bounds.maxMemory", s.Bounds.MaxMemory},
		{"bounds.maxSpool", s.Bounds.MaxSpool},
	} {
		if q.value != "" && !quantity.MatchString(q.value) {
			c.bad(f+"."+q.field, "is %s; must be a quantity such as 100m or 64Mi", quote(q.value))
		}
	}
	var wrong *podspool.FieldError
	r := &s.Resources
	if _, err := podspool.Parse(r.Spool, r.SpoolVolume, r.EphemeralStorage); errors.As(err, &wrong) {
		c.bad(f+".resources."+wrong.Field, "is %s; %s", quote(wrong.Value), wrong.Text)
	}
	for i, s := range s.Bounds.ExcludeCIDRs {
		if _, err := netip.ParsePrefix(s); err != nil && s != "" {
			c.bad(fmt.Sprintf("%s.bounds.excludeCIDRs[%d]", f, i), "is %s; must be a network such as 10.0.0.0/8", quote(s))
		}
	}
	for i, p := range s.Bounds.ExcludePorts {
		c.port(fmt.Sprintf("%s.bounds.excludePorts[%d]", f, i), p)
	}
}
