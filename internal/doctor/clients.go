package doctor

import (
	_ "embed"
	"regexp"
)

// client is a runtime and the smallest program that makes it fetch a URL.
type client struct {
	name string
	bin  string   // looked for on PATH
	cmd  []string // {bin}, {url}, {script} and {dir} are replaced
	env  []string // added to the child's environment
	// file and script, if any, are written first.
	file, script string
	// answered matches the output of a client that treats our answer as a
	// failure of its own although it arrived.
	answered             *regexp.Regexp
	proxyHint, trustHint string
	compiles             bool
	// aws marks SDKs that insist on keys: they fetch placeholders where a door
	// is open, and get worthless ones in their environment otherwise.
	aws bool
}

//go:embed probes/probe.py
var pythonProbe string

//go:embed probes/probe.mjs
var nodeProbe string

//go:embed probes/agent.cjs
var agentProbe string

//go:embed probes/Probe.java
var javaProbe string

//go:embed probes/probe.go.txt
var goProbe string

//go:embed probes/aws.mjs
var awsNodeProbe string

//go:embed probes/awsgo.go.txt
var awsGoProbe string

//go:embed probes/probe.rb
var rubyProbe string

const (
	nodeHint = "node before 22.21 ignores proxy variables: use a provider's base URL, or node 22.21 or newer"
	javaHint = "start it so that JAVA_TOOL_OPTIONS reaches the JVM, or use a base URL"
)

// httpError matches clients that print the status of an answer they dislike.
var httpError = regexp.MustCompile(`(?i)\b(HTTP|E|status|code|error|returned|responded)[^\n]{0,40}\b?(40[0-68-9]|42\d)\b|\b404 (Client Error|Not Found)\b|repository '?[^\n]*not found|not valid: is this a git repository`)

func clients() []client {
	cs := []client{
		{name: "curl", bin: "curl", cmd: []string{"{bin}", "-sS", "-o", "/dev/null", "{url}"}, trustHint: "a ~/.curlrc may set cacert; CURL_CA_BUNDLE is ours"},
		{name: "wget", bin: "wget", cmd: []string{"{bin}", "-nv", "-t", "1", "-O", "/dev/null", "{url}"}, answered: httpError, trustHint: "wget reads the bundle through WGETRC; pass --ca-certificate"},
		{name: "git", bin: "git", cmd: []string{"{bin}", "ls-remote", "{url}"}, env: []string{"GIT_TERMINAL_PROMPT=0"}, answered: httpError, proxyHint: "git config http.proxy overrides HTTPS_PROXY", trustHint: "git config http.sslCAInfo overrides GIT_SSL_CAINFO"},
	}
	cs = append(cs, pythons()...)
	cs = append(cs, awsClients()...)
	cs = append(cs,
		client{name: "node fetch", bin: "node", file: "probe.mjs", script: nodeProbe, cmd: []string{"{bin}", "{script}", "{url}"}, proxyHint: nodeHint},
		client{name: "node https.Agent (AWS SDK)", bin: "node", file: "agent.cjs", script: agentProbe, cmd: []string{"{bin}", "{script}", "{url}"}, proxyHint: nodeHint},
		client{name: "go", bin: "go", file: "attache_probe.go", script: goProbe, cmd: []string{"{bin}", "run", "{script}", "{url}"}, env: []string{"GOFLAGS=-mod=mod", "GO111MODULE=off", "GOWORK=off"}, compiles: true},
		client{name: "java HttpURLConnection", bin: "java", file: "Probe.java", script: javaProbe, cmd: []string{"{bin}", "{script}", "url", "{url}"}, proxyHint: javaHint, trustHint: javaHint, compiles: true},
		client{name: "java HttpClient", bin: "java", file: "Probe.java", script: javaProbe, cmd: []string{"{bin}", "{script}", "client", "{url}"}, proxyHint: javaHint, trustHint: javaHint, compiles: true},
		client{name: "ruby", bin: "ruby", file: "probe.rb", script: rubyProbe, cmd: []string{"{bin}", "{script}", "{url}"}},
		client{name: "deno", bin: "deno", file: "probe.mjs", script: nodeProbe, cmd: []string{"{bin}", "run", "--allow-net", "--allow-env", "{script}", "{url}"}},
		client{name: "cargo", bin: "cargo", cmd: []string{"{bin}", "search", "--index", "sparse+{url}/", "--limit", "1", "attache"}, env: []string{"CARGO_NET_RETRY=0"}, answered: cargoAnswered, compiles: true},
		client{name: "npm", bin: "npm", cmd: []string{"{bin}", "view", "attache-probe", "--registry={url}", "--fetch-retries=0", "--cache={dir}/npm"}, env: []string{"NPM_CONFIG_UPDATE_NOTIFIER=false"}, answered: npmAnswered, compiles: true},
		client{name: "pip", bin: "pip", cmd: []string{"{bin}", "download", "--no-deps", "--no-cache-dir", "--retries=0", "--disable-pip-version-check", "-d", "{dir}", "--index-url={url}", "attache-probe"}, answered: pipAnswered, compiles: true},
	)
	return cs
}

// awsClients are the AWS SDKs; boto3 stands with the other libraries of Python.
func awsClients() []client {
	const profile = "a profile in ~/.aws is hidden from it: give it the placeholder keys of a provider (spec.aws.doors)"
	return []client{
		{name: "aws CLI", bin: "aws", aws: true, cmd: []string{"{bin}", "sts", "get-caller-identity", "--region", "us-east-1", "--endpoint-url", "{url}", "--cli-connect-timeout", "10", "--cli-read-timeout", "10"},
			env: []string{"AWS_MAX_ATTEMPTS=1"}, answered: awsAnswered, proxyHint: profile, trustHint: "ca_bundle in ~/.aws/config overrides AWS_CA_BUNDLE"},
		{name: "aws-sdk-js v3", bin: "node", aws: true, file: "aws.mjs", script: awsNodeProbe, cmd: []string{"{bin}", "{script}", "{url}"}, proxyHint: nodeHint},
		{name: "aws-sdk-go-v2", bin: "go", aws: true, file: "attache_awsgo.go", script: awsGoProbe, cmd: []string{"{bin}", "run", "{script}", "{url}"}, env: []string{"GO111MODULE=off", "GOWORK=off"}, answered: awsAnswered, compiles: true,
			proxyHint: "a client built with an http.Transport of its own ignores the variables"},
	}
}

// awsAnswered matches SDKs that got an answer, but not AWS's.
var awsAnswered = regexp.MustCompile(`(?i)unable to parse response|An error occurred \(|StatusCode: [1-9]`)

// What package clients print when a registry answered, but not as one.
var (
	cargoAnswered = regexp.MustCompile(`(?i)status code|got 4\d\d|not found in registry|failed to parse|expected value|does not (have|contain)|config\.json|api endpoint|invalid index`)
	npmAnswered   = regexp.MustCompile(`\bE40[0-68-9]\b|EJSONPARSE|invalid json|Unexpected token|No match found`)
	pipAnswered   = regexp.MustCompile(`(?i)no matching distribution|404 Client Error`)
)

func pythons() []client {
	var cs []client
	for _, lib := range []string{"urllib", "requests", "httpx", "aiohttp", "boto3", "grpcio"} {
		cs = append(cs, client{
			name: "python " + lib, bin: "python3", aws: lib == "boto3", file: "probe.py", script: pythonProbe,
			cmd:       []string{"{bin}", "{script}", lib, "{url}"},
			proxyHint: "a client built with trust_env=False or proxies={} ignores the variables",
			trustHint: "a client built with verify=… ignores the variables",
		})
	}
	return cs
}
