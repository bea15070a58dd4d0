package api

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api/v1alpha1"
)

var workloadName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func (c *checker) config(s *v1alpha1.AttacheConfigSpec) {
	if td, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil || td.Name() != s.TrustDomain {
		c.bad("spec.trustDomain", "is %s; must be a trust domain such as attache.local", quote(s.TrustDomain))
	}
	if s.Workload.Name != "" && !workloadName.MatchString(s.Workload.Name) {
		c.bad("spec.workload.name", "is %s; must be letters, digits, . _ and -, at most 128 of them", quote(s.Workload.Name))
	}
	c.identity(&s.Identity)
	for i := range s.Humans {
		h, field := &s.Humans[i], fmt.Sprintf("spec.humans[%d]", i)
		c.httpsURL(field+".issuer", h.Issuer, nil, nil)
		c.ca(field, &h.CAFile, h.CABundle)
		c.addresses(field+".addresses", h.Addresses)
	}
	c.audit(&s.Audit)
	c.cluster(&s.Cluster)
	c.limits(&s.Limits)
	c.upstream(&s.Upstream)
	c.admin(&s.Admin)
	if e := s.Tracing.OTLPEndpoint; e != "" {
		if u, err := url.Parse(e); err != nil || u.Host == "" || u.Scheme != SchemeHTTP && u.Scheme != SchemeHTTPS || u.User != nil {
			c.bad("spec.tracing.otlpEndpoint", "must be an http or https URL without user, such as http://127.0.0.1:4318")
		}
	}
	if r := s.Tracing.SampleRatio; r != nil && !(*r >= 0 && *r <= 1) { // NaN is refused too
		c.bad("spec.tracing.sampleRatio", "is %v; must be between 0 and 1", *r)
	}
}

func (c *checker) identity(i *v1alpha1.IdentityConfig) {
	oneOf(c, "spec.identity.source", i.Source, SourceEmbedded, SourceSPIFFE)
	c.httpsURL("spec.identity.issuerURL", i.IssuerURL, nil, nil)
	c.listen("spec.identity.listen", i.Listen, false)
	for _, f := range []*string{&i.TLSCertFile, &i.TLSKeyFile, &i.SSHAgent} {
		if *f != "" {
			*f = c.resolve(*f)
		}
	}
	if (i.TLSCertFile == "") != (i.TLSKeyFile == "") {
		c.bad("spec.identity.tlsCertFile", "and tlsKeyFile belong together; give both or none")
	}
	if i.Source == SourceSPIFFE {
		for _, name := range []string{"issuerURL", "listen", "rotateEvery"} {
			if c.has("spec.identity." + name) {
				c.bad("spec.identity."+name, "is for the embedded issuer; remove it or set source: embedded")
			}
		}
	}
	if i.Socket == "" {
		return
	}
	if i.Source != SourceSPIFFE {
		c.bad("spec.identity.socket", "is for source: spiffe; remove it or set the source")
	} else if !strings.HasPrefix(i.Socket, "unix:/") && !strings.HasPrefix(i.Socket, "/") && !strings.HasPrefix(i.Socket, "tcp://") {
		c.bad("spec.identity.socket", "is %s; must be unix:///path or tcp://address:port", quote(i.Socket))
	}
}

func (c *checker) atLeast(field string, n, least int64) {
	if n < least && c.sound(field) {
		c.bad(field, "is %d; must be at least %d", n, least)
	}
}

func (c *checker) atMost(field string, n, most int64) {
	if n > most && c.sound(field) {
		c.bad(field, "is %d; must be at most %d", n, most)
	}
}

func (c *checker) limits(l *v1alpha1.Limits) {
	for _, f := range []struct {
		name     string
		n, least int
	}{
		{"maxHeaderBytes", l.MaxHeaderBytes, 4096},
		{"maxHeaders", l.MaxHeaders, 16},
		{"maxConnections", l.MaxConnections, 1},
		{"maxStreams", l.MaxStreams, 1},
		{"maxIdlePerHost", l.MaxIdlePerHost, 1},
		{"maxAnswerHeaderBytes", l.MaxAnswerHeaderBytes, 4096},
		{"maxReplayBytes", l.MaxReplayBytes, 1},
		{"leafCacheSize", l.LeafCacheSize, 1},
		{"credentialCache", l.CredentialCache, 1},
		{"maxRequestsPerSec", l.MaxRequestsPerSec, 0},
	} {
		c.atLeast("spec.limits."+f.name, int64(f.n), int64(f.least))
	}
	const most = 16 << 20 // each request may hold that much
	c.atMost("spec.limits.maxAnswerHeaderBytes", int64(l.MaxAnswerHeaderBytes), most)
	c.atMost("spec.limits.maxReplayBytes", int64(l.MaxReplayBytes), most)
}

// upstream checks the parent proxy; its URL may hold a credential and is not
// shown.
func (c *checker) upstream(u *v1alpha1.UpstreamConfig) {
	if u.ParentProxy == "" || u.ParentProxy == "none" {
		return
	}
	p, err := url.Parse(u.ParentProxy)
	if err != nil || p.Scheme != SchemeHTTP && p.Scheme != SchemeHTTPS || p.Hostname() == "" || p.Port() == "" || p.Path != "" && p.Path != "/" || p.RawQuery != "" || p.Fragment != "" {
		c.bad("spec.upstream.parentProxy", `must be http://host:port or "none"`)
		return
	}
	if p.User != nil { // a user alone may be a token
		c.bad("spec.upstream.parentProxy", "holds a user or a password, which no document may hold; set HTTPS_PROXY in Attaché's own environment instead")
	}
}

func (c *checker) admin(a *v1alpha1.AdminConfig) {
	if path, ok := strings.CutPrefix(a.Listen, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			c.bad("spec.admin.listen", "is %s; must be unix:/absolute/path or host:port", quote(a.Listen))
		}
		return
	}
	c.listen("spec.admin.listen", a.Listen, false)
}
