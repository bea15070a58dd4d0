package api

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Types of sinks of records.
const (
	SinkOTLP        = "otlp" // an OpenTelemetry collector
	SinkSyslog      = "syslog"
	SinkFile        = "file"
	SinkObjectStore = "objectstore"
)

// Formats of the sinks that are no collectors; package form has them.
const (
	SinkOCSF  = "ocsf"
	SinkECS   = "ecs"
	SinkLines = "lines"
)

// Protocols of SinkOTLP.
const (
	SinkGRPC = "grpc"
	SinkHTTP = "http"
)

var sinkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

func (c *checker) audit(a *v1alpha1.AuditConfig) {
	oneOf(c, "spec.audit.onFull", a.OnFull, OnFullRefuse, OnFullOverwrite)
	oneOf(c, "spec.audit.durability", a.Durability, v1alpha1.DurabilityProcess, v1alpha1.DurabilityPower, v1alpha1.DurabilityCollector)
	if a.Dir != "" {
		a.Dir = c.resolve(a.Dir)
	}
	const smallest = 64 << 10
	c.atLeast("spec.audit.segmentBytes", a.SegmentBytes, smallest)
	c.atLeast("spec.audit.maxBytes", a.MaxBytes, 2*smallest)
	if c.sound("spec.audit") && a.SegmentBytes > a.MaxBytes/2 {
		c.bad("spec.audit.segmentBytes", "is %d; must be at most half of maxBytes (%d), so that one segment can be closed while the next is written", a.SegmentBytes, a.MaxBytes)
	}
	if c.place == PlacePod && c.has("spec.audit.dir") {
		c.bad("spec.audit.dir", "is a folder of attache run; a sidecar has its own, remove it")
	}
	c.atLeast("spec.audit.keepBytes", a.KeepBytes, 0)
	c.redact(&a.Redact)
	c.sinks(a)
}

func (c *checker) redact(r *v1alpha1.AuditRedact) {
	oneOf(c, "spec.audit.redact.tokens", r.Tokens, v1alpha1.RedactMask, v1alpha1.RedactKeep)
	oneOf(c, "spec.audit.redact.sqlLiterals", r.SQLLiterals, v1alpha1.RedactMask, v1alpha1.RedactKeep)
	const most, longest = 32, 1024
	if len(r.Patterns) > most {
		c.bad("spec.audit.redact.patterns", "are %d; must be at most %d", len(r.Patterns), most)
	}
	for i, p := range r.Patterns {
		field := fmt.Sprintf("spec.audit.redact.patterns[%d]", i)
		re, err := regexp.Compile(p)
		switch {
		case len(p) > longest:
			c.bad(field, "has %d bytes; must have at most %d", len(p), longest)
		case err != nil:
			c.bad(field, "is no regular expression: %v", err)
		case re.MatchString(""):
			c.bad(field, "is %s, which matches the empty text; name what it must find", quote(p))
		}
	}
}

func (c *checker) sinkFormat(field string, s *v1alpha1.AuditSink) {
	oneOf(c, field+".format", s.Format, SinkOCSF, SinkECS, SinkLines)
}

func (c *checker) syslog(field string, s *v1alpha1.AuditSink) {
	c.sinkFormat(field, s)
	if host, port, err := net.SplitHostPort(s.Endpoint); err != nil || host == "" || port == "" || strings.ContainsAny(s.Endpoint, "/ ") {
		c.bad(field+".endpoint", "is %s; must be HOST:PORT, such as siem.example.com:6514", quote(s.Endpoint))
	}
	c.sinkTLS(field+".tls", &s.TLS)
}

func (c *checker) sinkFile(field string, f *v1alpha1.SinkFile) {
	if f.Path == "" {
		c.bad(field+".path", "is missing; it is required")
	} else {
		f.Path = c.resolve(f.Path)
	}
	const smallest = 64 << 10
	c.atLeast(field+".maxBytes", f.MaxBytes, smallest)
	c.atLeast(field+".keep", int64(f.Keep), 0)
}

func (c *checker) objectStore(field string, s *v1alpha1.AuditSink) {
	o, at := &s.ObjectStore, field+".objectStore"
	for _, f := range []struct{ name, value string }{{"bucket", o.Bucket}, {"region", o.Region}, {"accessKeyFile", o.AccessKeyFile}, {"secretKeyFile", o.SecretKeyFile}} {
		if f.value == "" {
			c.bad(at+"."+f.name, "is missing; it is required")
		}
	}
	oneOf(c, at+".lockMode", o.LockMode, "compliance", "governance")
	for _, p := range []*string{&o.AccessKeyFile, &o.SecretKeyFile} {
		if *p != "" {
			*p = c.resolve(*p)
		}
	}
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != SchemeHTTP && u.Scheme != SchemeHTTPS || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			c.bad(field+".endpoint", "is %s; must be an http or https URL without user and query", quote(s.Endpoint))
		}
	}
	c.sinkTLS(field+".tls", &s.TLS)
}

func (c *checker) sinks(a *v1alpha1.AuditConfig) {
	const most = 8
	if len(a.Sinks) > most {
		c.bad("spec.audit.sinks", "are %d; must be at most %d", len(a.Sinks), most)
	}
	names, collector := map[string]bool{}, false
	for i := range a.Sinks {
		s, field := &a.Sinks[i], fmt.Sprintf("spec.audit.sinks[%d]", i)
		switch {
		case !sinkName.MatchString(s.Name):
			c.bad(field+".name", "is %s; must be letters, digits, - and _, at most 63 of them", quote(s.Name))
		case names[s.Name]:
			c.bad(field+".name", "is %s, as that of another sink; give each a name of its own", quote(s.Name))
		}
		names[s.Name] = true
		switch s.Type {
		case SinkOTLP:
			collector = true
			c.otlp(field, s)
		case SinkSyslog:
			c.syslog(field, s)
		case SinkFile, SinkObjectStore:
			if c.place == PlacePod {
				c.bad(field+".type", "is %s, which is of attache run; let the control plane forward the records of a cluster", s.Type)
				break
			}
			c.sinkFormat(field, s)
			if s.Type == SinkFile {
				c.sinkFile(field+".file", &s.File)
			} else {
				c.objectStore(field, s)
			}
		default:
			oneOf(c, field+".type", s.Type, SinkOTLP, SinkSyslog, SinkFile, SinkObjectStore)
		}
	}
	if a.Durability == v1alpha1.DurabilityCollector && !collector && c.place == PlaceRun {
		c.bad("spec.audit.durability", "is collector, and audit.sinks has none of type otlp that could acknowledge records; add one")
	}
}

func (c *checker) otlp(field string, s *v1alpha1.AuditSink) {
	oneOf(c, field+".protocol", s.Protocol, SinkGRPC, SinkHTTP)
	oneOf(c, field+".compression", s.Compression, "gzip", "none")
	if s.Endpoint == "" {
		c.bad(field+".endpoint", "is missing; it is required")
	} else if s.Protocol == SinkHTTP {
		u, err := url.Parse(s.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != SchemeHTTP && u.Scheme != SchemeHTTPS || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			c.bad(field+".endpoint", "is %s; must be an http or https URL without user and query, such as https://collector.example.com:4318", quote(s.Endpoint))
		}
	} else if host, port, err := net.SplitHostPort(s.Endpoint); err != nil || host == "" || port == "" || strings.ContainsAny(s.Endpoint, "/ ") {
		c.bad(field+".endpoint", "is %s; must be HOST:PORT, such as collector.example.com:4317", quote(s.Endpoint))
	}
	c.sinkTLS(field+".tls", &s.TLS)
	for i := range s.HeadersFrom {
		h, at := &s.HeadersFrom[i], fmt.Sprintf("%s.headersFrom[%d]", field, i)
		if !httpguts.ValidHeaderFieldName(h.Name) || strings.HasPrefix(strings.ToLower(h.Name), "grpc-") || strings.EqualFold(h.Name, "content-type") {
			c.bad(at+".name", "is %s; must be the name of a header that is not the protocol's own", quote(h.Name))
		}
		switch {
		case h.File == "": // told as missing already
		case c.place == PlacePod:
			c.bad(at+".file", "names a file of the sidecar, which no object in a cluster can; let the control plane forward the records, or use tls.svid")
		default:
			h.File = c.resolve(h.File)
		}
	}
}

func (c *checker) sinkTLS(field string, t *v1alpha1.SinkTLS) {
	c.ca(field, &t.CAFile, t.CABundle)
	if (t.CertFile == "") != (t.KeyFile == "") {
		c.bad(field+".certFile", "and keyFile belong together; give both or none")
	}
	if t.CertFile != "" && t.SVID {
		c.bad(field+".svid", "and certFile exclude each other; keep one")
	}
	if t.Disabled && (t.CAFile != "" || t.CABundle != "" || t.CertFile != "" || t.SVID || t.ServerName != "") {
		c.bad(field+".disabled", "excludes everything else of tls; remove it, or the rest")
	}
	for _, f := range []struct {
		name string
		path *string
	}{{"certFile", &t.CertFile}, {"keyFile", &t.KeyFile}} {
		switch {
		case *f.path == "":
		case c.place == PlacePod:
			c.bad(field+"."+f.name, "names a file of the sidecar, which no object in a cluster can; use svid")
		default:
			*f.path = c.resolve(*f.path)
		}
	}
}
