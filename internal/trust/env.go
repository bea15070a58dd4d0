package trust

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Options describe the child's environment.
type Options struct {
	// Parent is the environment that the child would have had (os.Environ()).
	Parent []string
	// Proxy is the listener's URL, http://[user:password@]host:port. Required.
	Proxy string
	// Bundle as [WriteBundle] returned it. Required.
	Bundle Bundle
	// BaseURLs and Placeholders are NAME=value. Both override Parent; a
	// variable of Attaché's trust or proxy settings cannot be among them.
	BaseURLs     []string
	Placeholders []string
	// NoProxy lists further hosts that are reached directly. Metadata
	// addresses and "*" are dropped: they are for the proxy to refuse.
	NoProxy []string
	// Keep names variables that are passed on although they look like
	// credentials.
	Keep []string
	// Strip names further variables to take away: those that Attaché reads
	// keys from.
	Strip []string
	// AWSMetadata says that a stand-in for the EC2 metadata service is among
	// BaseURLs: AWS SDKs may ask it. Otherwise they are told not to.
	AWSMetadata bool
	// Node is the version of the agent's node; the zero value means that no
	// preload is set.
	Node NodeVersion
}

// Removed is a variable that the child does not get. The value is nowhere.
type Removed struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	// Replaced says that the child has the variable with a worthless value.
	Replaced bool `json:"replaced,omitempty"`
}

// Report says what [Env] did.
type Report struct {
	Removed []Removed `json:"removed"`
	// Kept are the names that Keep saved.
	Kept []string `json:"kept,omitempty"`
	// Set are the names that Attaché set.
	Set []string `json:"set"`
	// Notes are for people: limits of this environment.
	Notes []string `json:"notes,omitempty"`
}

// Env makes the child's environment: the parent's without credentials, then
// proxy and trust settings for every runtime, base URLs and placeholders.
func Env(o Options) ([]string, Report, error) {
	proxy, err := url.Parse(o.Proxy)
	if err != nil || proxy.Scheme != "http" || proxy.Hostname() == "" || proxy.Port() == "" {
		return nil, Report{}, errors.New("proxy address is not http://host:port") // it may hold a password: not shown
	}
	if o.Bundle.PEM == "" {
		return nil, Report{}, errors.New("trust bundle is missing; write it first")
	}
	var rep Report
	e := newEnviron()
	for _, kv := range o.Parent {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue
		}
		switch why := suspicious(name, value, o.Strip); {
		case superseded(name):
		case why == "":
			e.set(name, value)
		case slices.Contains(o.Keep, name) && !slices.Contains(o.Strip, name):
			e.set(name, value)
			rep.Kept = append(rep.Kept, name)
		default:
			e.unset(name)
			rep.Removed = append(rep.Removed, Removed{Name: name, Why: why})
		}
	}
	n := newEnviron()
	settings(n, o, proxy, e)
	ours := slices.Clone(n.names)
	for _, kv := range slices.Concat(o.BaseURLs, o.Placeholders) {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, Report{}, fmt.Errorf("%q is not NAME=value", name)
		}
		if slices.Contains(ours, name) {
			return nil, Report{}, fmt.Errorf("%s is set by Attaché itself; choose another variable", name)
		}
		n.set(name, value)
	}
	for _, name := range n.names {
		e.set(name, n.values[name])
	}
	rep.Set = n.names
	for i := range rep.Removed {
		_, rep.Removed[i].Replaced = n.values[rep.Removed[i].Name]
	}
	rep.Removed = unique(rep.Removed)
	rep.Notes = notes(o, proxy)
	return e.list(), rep, nil
}

func unique(rs []Removed) []Removed {
	slices.SortFunc(rs, func(a, b Removed) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(rs, func(a, b Removed) bool { return a.Name == b.Name })
}

func notes(o Options, proxy *url.URL) []string {
	var notes []string
	if o.Node != (NodeVersion{}) && !o.Node.UsesEnvProxy() {
		notes = append(notes, fmt.Sprintf("node %s ignores proxy variables: use a provider's base URL, or node 22.21 or newer", o.Node))
	}
	if proxy.User != nil {
		notes = append(notes, "java sends no proxy password: use a base URL for it")
	}
	return notes
}

// settings are the variables by which each runtime finds the proxy and trusts
// the CA. The parent's own options are kept where a variable holds several.
func settings(n *environ, o Options, proxy *url.URL, parent *environ) {
	direct := noProxy(o.NoProxy)
	proxySettings(n, o.Proxy, direct)
	trustSettings(n, o.Bundle)
	n.set("AWS_EC2_METADATA_DISABLED", strconv.FormatBool(!o.AWSMetadata))
	n.set(javaVariable, appendOption(parent.values[javaVariable], javaOptions(o.Bundle, proxy, direct)))
	if o.Node.UsesEnvProxy() {
		n.set(nodeVariable, appendOption(parent.values[nodeVariable], "--require="+quoteNode(o.Bundle.Preload)))
	}
}

// Variables that hold several options, so that ours are added to theirs.
const (
	javaVariable = "JAVA_TOOL_OPTIONS"
	nodeVariable = "NODE_OPTIONS"
)

// proxySettings name the proxy to those that read variables.
func proxySettings(n *environ, proxy string, direct []string) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		n.set(name, proxy)
		n.set(strings.ToLower(name), proxy) // grpcio reads this case only, curl for http too
	}
	n.set("NO_PROXY", strings.Join(direct, ","))
	n.set("no_proxy", strings.Join(direct, ","))
	n.set("NODE_USE_ENV_PROXY", "1")
	n.set("GIT_HTTP_PROXY_AUTHMETHOD", "basic") // git waits for a 407 otherwise
	n.set("npm_config_https_proxy", proxy)      // wins over a proxy in .npmrc
	n.set("npm_config_proxy", proxy)
}

// trustSettings name the roots to those that read variables.
func trustSettings(n *environ, b Bundle) {
	for _, name := range []string{
		"SSL_CERT_FILE",                    // OpenSSL, Go, Python's ssl, httpx, Ruby, Rust, .NET
		"CURL_CA_BUNDLE",                   // curl
		"REQUESTS_CA_BUNDLE",               // requests, az, conda
		"AWS_CA_BUNDLE",                    // AWS CLI and SDKs
		"GIT_SSL_CAINFO",                   // git, also with GnuTLS
		"PIP_CERT",                         // pip
		"npm_config_cafile",                // npm
		"CARGO_HTTP_CAINFO",                // cargo
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", // gRPC core: Python, Ruby, PHP, C++
		"DENO_CERT",                        // Deno
		"BUNDLE_SSL_CA_CERT",               // Bundler
		"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
		"HTTPLIB2_CA_CERTS",
		"NIX_SSL_CERT_FILE",
		"PERL_LWP_SSL_CA_FILE",
		"HEX_CACERTS_PATH", // Elixir
	} {
		n.set(name, b.PEM)
	}
	n.set("NODE_EXTRA_CA_CERTS", b.CA) // the one variable that adds
	n.set("WGETRC", b.Wgetrc)
}

func appendOption(old, more string) string { return strings.TrimSpace(old + " " + more) }

// javaOptions are JVM properties: Java reads no proxy variable.
func javaOptions(b Bundle, proxy *url.URL, direct []string) string {
	hosts := make([]string, len(direct))
	for i, h := range direct {
		hosts[i] = h
		switch {
		case strings.HasPrefix(h, "."):
			hosts[i] = "*" + h
		case strings.Contains(h, ":"):
			hosts[i] = "[" + h + "]"
		}
	}
	return joinJava(append([]string{
		"-Dhttp.proxyHost=" + proxy.Hostname(), "-Dhttp.proxyPort=" + proxy.Port(),
		"-Dhttps.proxyHost=" + proxy.Hostname(), "-Dhttps.proxyPort=" + proxy.Port(),
		"-Dhttp.nonProxyHosts=" + strings.Join(hosts, "|"),
	}, javaTrust(b)...))
}

func javaTrust(b Bundle) []string {
	return []string{
		"-Djavax.net.ssl.trustStore=" + b.TrustStore,
		"-Djavax.net.ssl.trustStoreType=PKCS12",
		"-Djavax.net.ssl.trustStorePassword=" + Password,
	}
}

func joinJava(props []string) string {
	for i, p := range props {
		if strings.ContainsAny(p, " \t") { // JVMTI: options with spaces stand in quotes
			props[i] = `"` + p + `"`
		}
	}
	return strings.Join(props, " ")
}

// quoteNode quotes a path for NODE_OPTIONS, where a backslash escapes within
// double quotes.
func quoteNode(path string) string {
	if !strings.ContainsAny(path, " \\\"") {
		return path
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`
}

// noProxy is loopback, where base URLs listen and local services live, and
// what the caller adds. Metadata services stay with the proxy, which refuses
// them: a direct way to them is a way to the host's credentials.
func noProxy(more []string) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, h := range more {
		h = strings.TrimSpace(h)
		if h != "" && !reservedDirect(h) && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// reservedDirect reports whether a NO_PROXY entry would take everything or a
// metadata service (link-local, fd00:ec2::/32, metadata.google.internal)
// around the proxy.
func reservedDirect(h string) bool {
	if host, _, err := net.SplitHostPort(h); err == nil {
		h = host
	}
	h = strings.Trim(strings.ToLower(h), "[].")
	if strings.Contains(h, "*") && strings.Trim(h, "*.") == "" {
		return true
	}
	name := strings.TrimPrefix(h, "*.")
	if name == "metadata" || name == "metadata.google.internal" || strings.HasSuffix("metadata.google.internal", "."+name) {
		return true
	}
	metadata := []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("fd00:ec2::/32"),
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("168.63.129.16/32"),
	}
	p, err := netip.ParsePrefix(h)
	if err != nil {
		a, err := netip.ParseAddr(h)
		if err != nil {
			return false
		}
		p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
	}
	return slices.ContainsFunc(metadata, p.Overlaps)
}

// environ is an ordered environment without duplicates.
type environ struct {
	names  []string
	values map[string]string
}

func newEnviron() *environ { return &environ{values: map[string]string{}} }

func (e *environ) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environ) unset(name string) {
	if _, ok := e.values[name]; ok {
		delete(e.values, name)
		e.names = slices.DeleteFunc(e.names, func(n string) bool { return n == name })
	}
}

func (e *environ) list() []string {
	out := make([]string, len(e.names))
	for i, n := range e.names {
		out[i] = n + "=" + e.values[n]
	}
	return out
}
