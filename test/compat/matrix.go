package main

import (
	"fmt"
	"slices"
	"strings"
)

// Front doors, named as records name them up to the comma.
const (
	connect    = "connect"
	absolute   = "absolute"
	baseURL    = "base-url"
	secureBase = "base-url, https"
	tunnel     = "connect, http" // plain http in a tunnel, by clients that know no absolute form
)

// allDoors is what each client goes through, or says why it cannot.
var allDoors = [...]string{connect, absolute, baseURL, secureBase}

// client is one unchanged program, run once for each door.
type client struct {
	name    string
	version string   // shell command that prints it
	short   []string // doors of the short form
	oldNode bool     // runs with the system's node instead of node 22
	note    string   // what it needs besides attache run; for the docs
	doors   []door
	reasons map[string]string // why it cannot take the other doors
}

// door is how a client comes to Attaché, and what it does there. The commands
// are shell; $S is the folder of scripts.
type door struct {
	name   string // of allDoors, or tunnel in the place of absolute
	works  string
	wants  []string // regular expressions that the output of works matches
	denied string
	sees   string // regular expression that the output of denied matches
	note   string
}

// kind is the door's name in records.
func (d door) kind() string {
	kind, _, _ := strings.Cut(d.name, ",")
	return kind
}

const (
	verified  = `"verified":\s?"spiffe://attache.local/agent/compat"`
	masked    = `"?Authorization"?.{1,10}Bearer \*{20,}` // the echo of our credential
	lastEvent = `data: event 5 of 5`
	why       = reason
)

// upstreamURL is what stands for an upstream behind each door. Its name in the
// matrix's domain is host, its base URLs are in the variables of env.
func upstreamURL(door, host, env string) string {
	switch door {
	case absolute:
		return "http://plain-" + host + ".compat.example"
	case baseURL:
		return "$" + env + "_BASE_URL"
	case secureBase:
		return "$" + env + "_SECURE_BASE_URL"
	}
	return "https://" + host + ".compat.example"
}

// anyDoor is a client of the upstream called host: commands hold BASE where
// its URL goes, and DOOR for a word that differs from door to door.
func anyDoor(name, version, host, env string, d door) client {
	c := client{name: name, version: version, reasons: map[string]string{}}
	for _, n := range allDoors {
		words := strings.NewReplacer("BASE", upstreamURL(n, host, env), "DOOR", strings.NewReplacer(", ", "-").Replace(n))
		c.doors = append(c.doors, door{
			name: n, works: words.Replace(d.works), denied: words.Replace(d.denied), wants: slices.Clone(d.wants), sees: d.sees,
		})
	}
	return c
}

// httpClient is a client of the echo API; command holds URL where its argument
// goes.
func httpClient(name, version, command, sees string) client {
	return anyDoor(name, version, "api", "API", door{
		works: strings.ReplaceAll(command, "URL", "BASE/v1/echo"), denied: strings.ReplaceAll(command, "URL", "BASE/denied/secrets"),
		wants: []string{verified, masked}, sees: sees,
	})
}

// withEvents says that the client also reads the event stream.
func (c client) withEvents() client {
	for i := range c.doors {
		c.doors[i].wants = append(c.doors[i].wants, lastEvent)
	}
	return c
}

// without says which door the client cannot take, and why.
func (c client) without(door, reason string) client {
	c.doors = slices.DeleteFunc(slices.Clone(c.doors), isDoor(door))
	c.reasons[door] = reason
	return c
}

// tunnelsHTTP says that the client asks a proxy for a tunnel for http as well.
func (c client) tunnelsHTTP() client {
	c.doors[slices.IndexFunc(c.doors, isDoor(absolute))].name = tunnel
	c.reasons[absolute] = "asks a proxy for a tunnel for plain http too: its row `" + tunnel + "`"
	return c
}

// withNote says what the client needs besides attache run, at one door or at
// each.
func (c client) withNote(s string, doors ...string) client {
	if len(doors) == 0 {
		c.note = s
	}
	for _, n := range doors {
		c.doors[slices.IndexFunc(c.doors, isDoor(n))].note = s
	}
	return c
}

func isDoor(name string) func(door) bool { return func(d door) bool { return d.name == name } }

func (c client) inShort(doors ...string) client { c.short = doors; return c }

func (c client) onOldNode() client { c.oldNode = true; return c }

// clients is the whole matrix, or its short form.
func clients(short bool) []client {
	var out []client
	for _, c := range slices.Concat(httpClients(), nodeClients(), sdkClients(), javaClients(), toolClients(), streamClients(short)) {
		if short {
			c.doors = slices.DeleteFunc(c.doors, func(d door) bool { return !slices.Contains(c.short, d.name) })
		}
		if len(c.doors) > 0 {
			out = append(out, c)
		}
	}
	return out
}

func httpClients() []client {
	const py = "/usr/bin/python3"
	printed := func(lib string) string { return py + ` -c 'import ` + lib + `;print(` + lib + `.__version__)'` }
	return []client{
		anyDoor("curl", "curl --version | head -1 | cut -d' ' -f1-2", "api", "API", door{
			works:  `curl -sS --fail-with-body -i BASE/v1/echo; curl -sS --http1.1 --fail-with-body -i -d posted BASE/v1/echo; curl -sSN BASE/v1/sse; curl -sS --compressed BASE/v1/echo`,
			denied: `curl -sS --fail-with-body BASE/denied/secrets`, wants: []string{verified, masked, lastEvent, `"body":"posted"`}, sees: why,
		}).inShort(allDoors[:]...),
		httpClient("wget", "wget --version | head -1 | cut -d' ' -f1-3", "wget -nv --content-on-error -S -O - URL", why).
			withNote("shows bodies of errors with `--content-on-error` only"),
		httpClient("python3 requests", printed("requests"), py+" $S/use_requests.py URL", why).withEvents().inShort(allDoors[:]...),
		httpClient("python3 urllib", py+" --version", py+" $S/use_urllib.py URL", why),
		httpClient("python3 httpx", printed("httpx"), py+" $S/use_httpx.py URL", why).withEvents(),
		httpClient("python3 aiohttp", printed("aiohttp"), py+" $S/use_aiohttp.py URL", why).withEvents().
			withNote("by proxy: `ClientSession(trust_env=True)`, the package's own switch"),
		httpClient("Go net/http", "go version | cut -d' ' -f3", "$CACHE/bin/compat-gohttp URL $(echo URL | sed s/echo/sse/)", why).withEvents().inShort(allDoors[:]...),
		httpClient("ruby net/http", "ruby --version | cut -d' ' -f1-2", "ruby $S/use_net_http.rb URL", why).withEvents(),
	}
}

func nodeClients() []client {
	const tooOld = "node before 22.21 ignores proxy variables"
	return []client{
		httpClient("node 22 fetch", "node --version", "node $S/fetch.mjs URL $(echo URL | sed s/echo/sse/)", why).withEvents().tunnelsHTTP().inShort(connect, baseURL, secureBase),
		httpClient("node 22 http, https", "node --version", "node $S/https.mjs URL", why),
		httpClient("undici", npmVersion("undici"), "node $S/undici.mjs URL", why).
			withNote("by proxy: `setGlobalDispatcher(new EnvHttpProxyAgent())`, the package's own switch").
			withNote("`new EnvHttpProxyAgent({ proxyTunnel: false })`; otherwise it asks for a tunnel for plain http too", absolute),
		httpClient("axios", npmVersion("axios"), "node $S/axios.mjs URL", why),
		httpClient("deno fetch", "deno --version | head -1 | cut -d' ' -f1-2", "DENO_NO_UPDATE_CHECK=1 deno run --quiet --allow-net $S/fetch_deno.mjs URL $(echo URL | sed s/echo/sse/)", why).withEvents().
			withNote("asks its makers for updates unless `DENO_NO_UPDATE_CHECK` is set: denied by default, and recorded"),
		httpClient("node (system) fetch", "node --version", "node $S/fetch.mjs URL", why).onOldNode().without(connect, tooOld).without(absolute, tooOld),
		httpClient("node (system) http", "node --version", "node $S/https.mjs URL", why).onOldNode().without(connect, tooOld).without(absolute, tooOld),
	}
}

func npmVersion(name string) string {
	return `node -p "require('$S/node_modules/` + name + `/package.json').version"`
}

func sdkClients() []client {
	return []client{
		llm("openai", "openai.mjs", "OPENAI").inShort(connect, baseURL),
		llm("@anthropic-ai/sdk", "anthropic.mjs", "ANTHROPIC"),
		anyDoor("@modelcontextprotocol/sdk", npmVersion("@modelcontextprotocol/sdk"), "mcp", "MCP", door{
			works: "node $S/mcp.mjs BASE/", denied: "node $S/mcp.mjs BASE/denied/", wants: []string{`whoami`, `who am I.* for spiffe://attache.local/agent/compat`}, sees: why,
		}).tunnelsHTTP(),
	}
}

// llm is a vendor's SDK: a whole answer and a streamed one, with a token that
// the vendor's workload identity federation gave for the placeholder key. It
// takes its base URL from a variable.
func llm(name, script, env string) client {
	variable, wants := env+"_BASE_URL", []string{"whole: federated hello", "streamed: federated stream"}
	c := client{name: name, version: npmVersion(name), reasons: map[string]string{}, note: "base URL by default, since the preset sets `" + variable + "`"}
	for _, d := range []struct{ name, setting, note string }{
		{connect, "env -u " + variable + " ", "`" + variable + "` unset"},
		{baseURL, "", ""},
		{secureBase, variable + "=$" + env + "_SECURE_BASE_URL ", ""},
	} {
		run := d.setting + "node $S/" + script
		c.doors = append(c.doors, door{name: d.name, works: run, denied: run + " denied", wants: wants, sees: why, note: d.note})
	}
	return c.without(absolute, "the vendor serves https only")
}

func javaClients() []client {
	version := "java -version 2>&1 | grep -m1 version"
	const note = "`JAVA_TOOL_OPTIONS` is set by attache run; every JVM prints it on stderr"
	return []client{
		httpClient("Java HttpURLConnection", version, "java $S/Http.java connection URL", `response code: 403`).withNote(note),
		httpClient("Java HttpClient", version, "java $S/Http.java client URL", why).withNote(note),
	}
}

func toolClients() []client {
	const push = `; cd clone && git -c user.name=c -c user.email=c@example commit -q --allow-empty -m "from DOOR" && head -c 3000000 /dev/urandom >big && git add big && git -c user.name=c -c user.email=c@example commit -q -m big && git push -q origin HEAD:refs/heads/DOOR && git ls-remote origin`
	pip := func(pkg string) string {
		return "/usr/bin/python3 -m pip install --no-cache-dir --disable-pip-version-check --no-deps --target site --trusted-host plain-pypi.compat.example --index-url BASE/simple/ " + pkg
	}
	npm := func(pkg string) string {
		return "npm install --registry BASE/ --prefix project --cache npm-cache --no-audit --no-fund --loglevel=http " + pkg
	}
	return []client{
		anyDoor("git", "git --version", "git", "REPOSITORY", door{
			works: "git clone -q BASE/project.git clone" + push, wants: []string{`refs/heads/(connect|absolute|base-url)`}, denied: "git clone BASE/denied.git refused", sees: `remote: .*` + why,
		}).inShort(connect, baseURL),
		anyDoor("pip", "/usr/bin/python3 -m pip --version | cut -d' ' -f1-2", "pypi", "INDEX", door{
			works: pip("compat-pkg") + " && PYTHONPATH=site /usr/bin/python3 -c 'import compat_pkg; print(\"from\", compat_pkg.FROM)'", wants: []string{"from the index"},
			denied: pip("denied-pkg") + " -vv", sees: `403 Client Error`,
		}).withNote("hides bodies: shows the status with `-vv`, otherwise that no version was found").withNote("`--trusted-host`, as for any index without TLS", absolute),
		anyDoor("npm", "npm --version", "npm", "REGISTRY", door{
			works: npm("compat-pkg") + ` && node -p "require('./project/node_modules/compat-pkg')"`, wants: []string{"from the index"}, denied: npm("denied-pkg"), sees: `403 Forbidden.*` + why,
		}).withNote("the registry names tarballs by its public name: those come through the proxy", baseURL, secureBase),
		anyDoor("cargo", "cargo --version", "crates", "CRATES", door{
			works: "INDEX=BASE sh $S/crate.sh compat-pkg && find $HOME -name 'compat-pkg*.crate'", wants: []string{`compat-pkg-1\.0\.0\.crate`}, denied: "INDEX=BASE sh $S/crate.sh denied-pkg", sees: why,
		}).withNote("sparse registry, cargo 1.68 or newer").withNote("the registry names crates by its public name: those come through the proxy", baseURL, secureBase),
	}
}

func streamClients(short bool) []client {
	socket := func(name, version, script string, wants []string, sees string) client {
		return anyDoor(name, version, "api", "API", door{
			works: "node $S/" + script + " $(echo BASE | sed s/^http/ws/)/v1/ws", denied: "node $S/" + script + " $(echo BASE | sed s/^http/ws/)/denied/ws", wants: wants, sees: sees,
		})
	}
	cases := interopCases
	if short {
		cases = cases[:2]
	}
	return []client{
		interop(cases).inShort(connect),
		grpcio(),
		socket("ws (WebSocket)", npmVersion("ws"), "ws.mjs", []string{"echo: hello", "bytes 70006", "closed 1000"}, why).inShort(connect, baseURL).
			withNote("by proxy: pass an `http.Agent` or `https.Agent`; without one it opens its own socket"),
		socket("node 22 WebSocket", "node --version", "websocket.mjs", []string{"echo: hello", "closed 1000"}, `error`).tunnelsHTTP().
			withNote("hides status and body of a refused handshake: the record has the reason"),
	}
}

const noAbsoluteForm = "gRPC is HTTP/2, which asks a proxy for a tunnel (CONNECT) only"

// grpcio is Python's gRPC.
func grpcio() client {
	c := client{name: "python3 grpcio", version: `/usr/bin/python3 -c 'import grpc;print(grpc.__version__)'`, reasons: map[string]string{}}
	for _, d := range []struct{ name, allowed, refused string }{
		{connect, "tls grpc.compat.example:443", "tls grpc-denied.compat.example:443"},
		{baseURL, "plain ${GRPC_BASE_URL#*://}", "plain ${GRPC_DENIED_BASE_URL#*://}"},
		{secureBase, "tls ${GRPC_SECURE_BASE_URL#*://}", "tls ${GRPC_SECURE_DENIED_BASE_URL#*://}"},
	} {
		const program = "/usr/bin/python3 $S/use_grpcio.py "
		c.doors = append(c.doors, door{name: d.name, works: program + d.allowed, denied: program + d.refused,
			wants: []string{`unary StatusCode.OK 0`, `(?s)part \d+.*part \d+`, `duplex 4`}, sees: `PERMISSION_DENIED.*` + why})
	}
	return c.without(absolute, noAbsoluteForm)
}

// interopCases are those of the gRPC project's interoperability tests that
// need no credentials of a cloud's.
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
	"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service",
}

// interop runs cases of the gRPC project's own client.
func interop(cases []string) client {
	c := client{name: fmt.Sprintf("grpc-go interop (%d cases)", len(cases)), version: "echo grpc-go 1.85.0", reasons: map[string]string{}}
	local := `%s -server_host 127.0.0.1 -server_port $(echo $GRPC%s_BASE_URL | sed s/.*://)`
	for _, d := range []struct{ name, allowed, refused string }{
		{connect, "-use_tls -server_host grpc.compat.example -server_port 443", "-use_tls -server_host grpc-denied.compat.example -server_port 443"},
		{baseURL, fmt.Sprintf(local, "", ""), fmt.Sprintf(local, "", "_DENIED")},
		{secureBase, fmt.Sprintf(local, "-use_tls", "_SECURE"), fmt.Sprintf(local, "-use_tls", "_SECURE_DENIED")},
	} {
		const program = "$CACHE/bin/grpc-interop-client "
		to := door{name: d.name, denied: program + d.refused + " -test_case empty_unary", sees: `PermissionDenied.*` + why}
		for _, test := range cases {
			to.works += program + d.allowed + " -test_case " + test + " && echo passed " + test + ";\n"
			to.wants = append(to.wants, "(?m)^passed "+test+"$")
		}
		c.doors = append(c.doors, to)
	}
	return c.without(absolute, noAbsoluteForm)
}
