package api

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// checker checks one document.
type checker struct {
	*loader
	ref Ref
	dir string
}

// bad reports a mistake in a field.
func (c *checker) bad(field, format string, args ...any) {
	r := c.ref
	r.Field = field
	c.problems = append(c.problems, problemAt(locate(c.positions, r), c.ref, field, format, args...))
}

// has reports whether the document writes the field, well or not.
func (c *checker) has(field string) bool {
	r := c.ref
	r.Field = field
	_, ok := c.positions[r]
	return ok
}

// sound reports whether nothing was wrong so far at or below the field: a
// second message about a broken value only hides the first.
func (c *checker) sound(field string) bool {
	for _, p := range c.problems {
		if p.Ref.Kind != c.ref.Kind || p.Ref.Namespace != c.ref.Namespace || p.Ref.Name != c.ref.Name {
			continue
		}
		if rest, ok := strings.CutPrefix(p.Ref.Field, field); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return false
		}
	}
	return true
}

// check finds every mistake that decoding could not, after it has filled in
// presets and defaults. Policies come last: they refer to the others.
func (l *loader) check() {
	l.checkAlone()
	l.checkEnvironment()
}

// checkAlone is check without what matters only to documents in one workload.
func (l *loader) checkAlone() {
	config := defaultConfig(l.place)
	providers := map[string]document{}
	var first *Ref
	for _, d := range l.docs {
		c := d.checker(l)
		c.metadata()
		switch {
		case d.provider != nil:
			c.provider(&d.provider.Spec)
			if d.grant != nil {
				c.namespaceGrant(d.grant)
			}
			providers[d.ref.Name] = d
		case d.config != nil:
			fillConfig(&d.config.Spec, l.place)
			c.config(&d.config.Spec)
			if first != nil {
				c.bad("", "is a second AttacheConfig, the first is at %s; keep one", l.seen[*first])
				continue
			}
			first, config = &d.ref, *d.config
		}
	}
	for _, d := range l.docs {
		if d.policy != nil {
			defaultPolicy(&d.policy.Spec, config.Spec)
			d.checker(l).policy(&d.policy.Spec, providers)
		}
	}
	l.checkShared()
}

func (d document) checker(l *loader) *checker { return &checker{loader: l, ref: d.ref, dir: d.dir} }

// checkShared finds documents that describe one destination or name one
// provider differently.
func (l *loader) checkShared() {
	type place struct {
		at string
		d  v1alpha1.Destination
	}
	byDest, byName := map[string]place{}, map[string]string{}
	for _, d := range l.docs {
		c := d.checker(l)
		var ds []v1alpha1.Destination
		switch {
		case d.provider != nil:
			if first, seen := byName[d.ref.Name]; seen {
				c.conflict("metadata.name", "is %s, which %s has already; rules name providers without namespace, rename one", quote(d.ref.Name), first)
			}
			byName[d.ref.Name] = c.where("metadata.name")
			ds = d.provider.Spec.Destinations
		case d.policy != nil:
			ds = d.policy.Spec.Destinations
		}
		for i, d := range ds {
			field := fmt.Sprintf("spec.destinations[%d]", i)
			key := net.JoinHostPort(d.Host, strconv.Itoa(d.Port))
			first, seen := byDest[key]
			if d.Host == "" {
				continue
			}
			if !seen {
				byDest[key] = place{c.where(field), d}
			} else if diff := differs(first.d, d); diff != "" {
				c.conflict(field, "describes %s otherwise than %s does: %s differs; make them equal or remove one", key, first.at, diff)
			}
		}
	}
}

// checkEnvironment finds providers that set one variable of one agent.
func (l *loader) checkEnvironment() {
	byEnv := map[string]string{}
	opener := "" // of doors for AWS SDKs
	env := func(c *checker, field, name string) {
		if first, seen := byEnv[name]; seen {
			if strings.Contains(field, ".doors[") {
				c.conflict(field, "sets %s for the agent, which %s sets already; give this door to one provider", name, first)
				return
			}
			c.conflict(field, "is %s, which %s sets already; choose another variable", quote(name), first)
		} else if name != "" {
			byEnv[name] = c.where(field)
		}
	}
	for _, d := range l.docs {
		if d.provider == nil {
			continue
		}
		c := d.checker(l)
		for j, p := range d.provider.Spec.Placeholders {
			env(c, fmt.Sprintf("spec.placeholders[%d].env", j), p.Env)
		}
		if a := d.provider.Spec.AWS; a != nil {
			for j, door := range a.Doors {
				env(c, fmt.Sprintf("spec.aws.doors[%d]", j), doorEnv[door])
			}
			opener = c.oneOpener(a, opener)
		}
		for j, b := range d.provider.Spec.BaseURLs {
			env(c, fmt.Sprintf("spec.baseURLs[%d].env", j), b.Env)
		}
	}
}

func (c *checker) where(field string) string {
	r := c.ref
	r.Field = field
	if c.place == PlacePod { // the objects are not in files
		return r.String()
	}
	return locate(c.positions, r).String()
}

// differs names the first field in which two destinations differ.
func differs(a, b v1alpha1.Destination) string {
	switch {
	case a.Scheme != b.Scheme:
		return "scheme"
	case !slices.Equal(a.Addresses, b.Addresses):
		return "addresses"
	case !slices.Equal(a.CIDRs, b.CIDRs):
		return "cidrs"
	case a.CAFile != b.CAFile:
		return "caFile"
	case a.CABundle != b.CABundle:
		return "caBundle"
	case a.OnlyCA != b.OnlyCA:
		return "onlyCA"
	case a.ServerName != b.ServerName:
		return "serverName"
	case a.ClientSVID != b.ClientSVID:
		return "clientSVID"
	}
	return ""
}

var (
	nameRule  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	spaceRule = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	envRule   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func (c *checker) metadata() {
	if c.clusterWide() && c.ref.Namespace != "" {
		c.bad("metadata.namespace", "has no place in a %s, which belongs to the cluster; remove it", c.ref.Kind)
	}
	if c.ref.Name != "" && !nameRule.MatchString(c.ref.Name) {
		c.bad("metadata.name", "is %s; must be lower-case letters, digits, - and ., at most 253 of them", quote(c.ref.Name))
	}
	if c.ref.Namespace != "" && !spaceRule.MatchString(c.ref.Namespace) {
		c.bad("metadata.namespace", "is %s; must be lower-case letters, digits and -, at most 63 of them", quote(c.ref.Namespace))
	}
}

// oneOf checks an enumeration; the empty value is for the default.
func oneOf[T ~string](c *checker, field string, value T, allowed ...T) {
	if value == "" || slices.Contains(allowed, value) {
		return
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	c.bad(field, "is %s; must be one of %s", quote(string(value)), strings.Join(names, ", "))
}

func (c *checker) destinations(ds []v1alpha1.Destination) {
	for i := range ds {
		d := &ds[i]
		field := fmt.Sprintf("spec.destinations[%d]", i)
		if d.Host == "*" {
			c.bad(field+".host", `is "*"; a destination is a name, "*.example.com" or "**.example.com"`)
		} else {
			c.hostPattern(field+".host", d.Host)
		}
		c.port(field+".port", d.Port)
		oneOf(c, field+".scheme", d.Scheme, SchemeHTTPS, SchemeHTTP)
		c.addresses(field+".addresses", d.Addresses)
		c.networks(field, d)
		c.ca(field, &d.CAFile, d.CABundle)
		if d.OnlyCA && !c.has(field+".caFile") && !c.has(field+".caBundle") {
			c.bad(field+".onlyCA", "is true without a certificate authority; give caFile or caBundle")
		}
		if d.ServerName != "" {
			if why := checkHost(d.ServerName); why != "" {
				c.bad(field+".serverName", "is %s; %s", quote(d.ServerName), why)
			}
		}
		if d.Scheme == SchemeHTTP {
			for _, f := range []string{"caFile", "caBundle", "onlyCA", "serverName", "clientSVID"} {
				if c.has(field + "." + f) {
					c.bad(field+"."+f, "has no meaning with scheme http; remove it or use https")
				}
			}
		}
	}
}

func (c *checker) hostPattern(field, host string) {
	if host == "" || host == "*" {
		return
	}
	if why := checkPattern(host); why != "" {
		c.bad(field, "is %s; %s", quote(host), why)
	}
}

func (c *checker) port(field string, port int) {
	if (port != 0 || c.has(field)) && c.sound(field) && (port < 1 || port > 65535) {
		c.bad(field, "is %d; must be between 1 and 65535", port)
	}
}

func (c *checker) addresses(field string, addresses []string) {
	for i, s := range addresses {
		at := fmt.Sprintf("%s[%d]", field, i)
		if !c.sound(at) {
			continue
		}
		if a, err := parseAddress(s); err != nil {
			c.bad(at, "is %s; must be an IP address with an optional port, such as 192.0.2.1 or 127.0.0.1:8443 or [::1]:8443", quote(s))
		} else if a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
			c.bad(at, "is %s; must be the plain address of one host", quote(s))
		} else if c.foreign() && (a.IsLoopback() || a.IsLinkLocalUnicast()) {
			c.bad(at, "is %s, an address of the pod itself or of its node; only the cluster's operator may pin a name there", quote(s))
		}
	}
}

// certFile is a CA file as it was when the documents were loaded.
type certFile struct {
	data []byte
	err  error
}

// ca checks roots given as file or text, and makes the file's path absolute.
func (c *checker) ca(field string, file *string, bundle string) {
	if *file != "" && c.place == PlacePod {
		c.bad(field+".caFile", "names a file of the sidecar, which no object in a cluster can; give caBundle")
	} else if *file != "" {
		written := *file
		*file = c.resolve(written)
		c.files[*file] = true
		f, known := c.certs[*file]
		if !known {
			f.data, f.err = readBounded(*file)
			c.certs[*file] = f
		}
		if f.err != nil {
			c.bad(field+".caFile", "%s %s; must be a file of PEM certificates", quote(written), f.err)
		} else if why := checkPEM(f.data); why != "" {
			c.bad(field+".caFile", "%s %s; must be a file of PEM certificates", quote(written), why)
		}
	}
	if bundle != "" {
		if why := checkPEM([]byte(bundle)); why != "" {
			c.bad(field+".caBundle", "%s; must be PEM certificates", why)
		}
	}
}

// resolve makes a path absolute, relative to the document's folder.
func (c *checker) resolve(path string) string {
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// checkPEM wants one or more certificates and no private key, which does not
// belong in a file that others may read.
func checkPEM(data []byte) string {
	n := 0
	for len(data) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return "holds a " + quoteBare(block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "holds a certificate that cannot be parsed"
		}
		n++
	}
	if n == 0 {
		return "holds no certificate"
	}
	return ""
}

// httpsURL checks a URL that credentials are sent to or keys fetched from.
// Cleartext is for loopback only, and only where the document says so; a nil
// cleartext is for documents that have no such field.
func (c *checker) httpsURL(field, raw string, cleartext *bool, addresses []string) {
	if raw == "" {
		return
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		c.bad(field, "is no absolute URL; must be such as https://auth.example.com/token")
		return
	case u.User != nil:
		c.bad(field, "holds a user or password; remove it")
		return
	case u.Fragment != "" || strings.HasSuffix(raw, "#"):
		c.bad(field, "is %s; must have no #fragment", quote(raw))
		return
	}
	if why := checkHost(strings.Trim(u.Hostname(), "[]")); why != "" {
		c.bad(field, "is %s; host: %s", quote(raw), why)
	}
	switch {
	case u.Scheme == SchemeHTTPS:
	case u.Scheme != SchemeHTTP || cleartext == nil:
		c.bad(field, "is %s; must be an https URL", quote(raw))
	case !loopbackHost(u.Hostname()) && !pinnedToLoopback(addresses):
		c.bad(field, "is %s; must be https (http is for loopback: addresses must pin the host there, with unsafeCleartext: true)", quote(raw))
	case !*cleartext:
		c.bad(field, "is %s; must be https, or set unsafeCleartext: true for this loopback server", quote(raw))
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			c.bad(field, "is %s; the port must be between 1 and 65535", quote(raw))
		}
	}
}

// headers checks fixed headers; forbidden ones carry credentials or belong to
// the connection. Values are not shown: a secret may have been put there.
func (c *checker) headers(field string, headers map[string]string) {
	for name, value := range headers {
		at := fmt.Sprintf("%s[%s]", field, name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			c.bad(at, "is no header name")
		case credentialHeaders[strings.ToLower(name)]:
			c.bad(at, "carries credentials; Attaché sets it, remove it here")
		case connectionHeaders[strings.ToLower(name)]:
			c.bad(at, "belongs to the connection and cannot be set")
		case !httpguts.ValidHeaderFieldValue(value):
			c.bad(at, "has control characters in its value")
		}
	}
}

var credentialHeaders = map[string]bool{
	"authorization": true, "proxy-authorization": true, "cookie": true, "set-cookie": true,
	"x-api-key": true, "api-key": true, "x-goog-api-key": true, "dpop": true,
}

// connectionHeaders are RFC 9110 section 7.6.1 and the fields that frame or
// route a message.
var connectionHeaders = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-connection": true, "te": true, "trailer": true,
	"transfer-encoding": true, "upgrade": true, "host": true, "content-length": true, "expect": true,
	"content-type": true, "forwarded": true, "x-forwarded-for": true, "x-forwarded-host": true,
	"x-forwarded-proto": true, "x-http-method-override": true, "x-original-url": true,
}

// env checks the name of an environment variable that the agent gets.
func (c *checker) env(field, name string) {
	upper := strings.ToUpper(name)
	switch {
	case name == "":
	case !envRule.MatchString(name):
		c.bad(field, "is %s; must be a variable name such as OPENAI_API_KEY", quote(name))
	case reservedEnv[upper] || strings.HasPrefix(upper, "LD_") || strings.HasPrefix(upper, "DYLD_") || strings.HasPrefix(upper, "ATTACHE_"):
		c.bad(field, "is %s, which changes how programs run; choose the SDK's own variable", quote(name))
	}
}

var reservedEnv = map[string]bool{
	"PATH": true, "HOME": true, "SHELL": true, "IFS": true, "ENV": true, "BASH_ENV": true, "TMPDIR": true,
	"HTTP_PROXY": true, "HTTPS_PROXY": true, "ALL_PROXY": true, "NO_PROXY": true,
	"NODE_OPTIONS": true, "PYTHONPATH": true, "PYTHONSTARTUP": true, "JAVA_TOOL_OPTIONS": true,
	"SSL_CERT_FILE": true, "SSL_CERT_DIR": true, "NODE_EXTRA_CA_CERTS": true,
}

// listen checks host:port of a listener; a local one must be on loopback,
// where only this machine's processes reach it.
func (c *checker) listen(field, s string, local bool) {
	if s == "" || !c.sound(field) {
		return
	}
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.Atoi(port)
	if err != nil || perr != nil || n < 0 || n > 65535 {
		c.bad(field, "is %s; must be host:port such as 127.0.0.1:0", quote(s))
		return
	}
	if local && !loopbackHost(host) {
		c.bad(field, "is %s; must be a loopback address such as 127.0.0.1:0", quote(s))
	} else if _, err := netip.ParseAddr(host); host != "" && err != nil && checkHost(host) != "" {
		c.bad(field, "is %s; must be host:port such as 127.0.0.1:0", quote(s))
	}
}

// scopes checks RFC 6749 section 3.3 scope tokens.
func (c *checker) scopes(field string, scopes []string) {
	for i, s := range scopes {
		bad := strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' })
		if at := fmt.Sprintf("%s[%d]", field, i); bad && c.sound(at) {
			c.bad(at, "is %s; a scope is one word of visible ASCII without quotes (list several as items)", quote(s))
		}
	}
}

// resources checks RFC 8707 section 2: absolute, without fragment.
func (c *checker) resources(field string, resources []string) {
	for i, s := range resources {
		at := fmt.Sprintf("%s[%d]", field, i)
		if u, err := url.Parse(s); s != "" && (err != nil || !u.IsAbs() || strings.Contains(s, "#")) {
			c.bad(at, "is %s; must be an absolute URI without #fragment", quote(s))
		}
	}
}
