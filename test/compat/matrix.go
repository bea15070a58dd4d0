package main

import (
	"fmt"
	"slices"
	"strings"
)

// Front doors, named as records name them.
const (
	connect  = "connect"
	absolute = "absolute"
	baseURL  = "base-url"
)

// client is one unchanged program, run once for each door.
type client struct {
	name    string
	version string // shell command that prints it
	short   bool   // part of the short form
	oldNode bool   // runs with the system's node instead of node 22
	note    string // what it needs besides attache run; for the docs
	doors   []door
}

// door is how a client comes to Attaché, and what it does there. The commands
// are shell; $B is the base URL of the API, $S the folder of scripts.
type door struct {
	kind   string
	label  string // printed instead of kind
	works  string
	wants  []string // regular expressions that the output of works matches
	denied string
	sees   string // regular expression that the output of denied matches
	note   string
}

const (
	api   = "https://api.compat.example"
	plain = "http://plain.compat.example"

	verified  = `"verified":\s?"spiffe://attache.local/agent/compat"`
	masked    = `"?Authorization"?.{1,10}Bearer \*{20,}` // the echo of our credential
	lastEvent = `data: event 5 of 5`
	why       = reason
)

func (d door) String() string {
	if d.label != "" {
		return d.label
	}
	return d.kind
}

// bases are what stands for the API behind each door; the fourth is a
// base-URL listener that speaks TLS.
var bases = []struct{ kind, label, url string }{
	{connect, "", api}, {absolute, "", plain}, {baseURL, "", "$API_BASE_URL"}, {baseURL, secureBase, "$API_SECURE_BASE_URL"},
}

const secureBase = "base-url, https"

// httpClient is a client of the echo API; command holds URL where its argument
// goes.
func httpClient(name, version, command, sees string, short bool, doors ...string) client {
	c := client{name: name, version: version, short: short}
	for _, b := range bases {
		if !slices.Contains(doors, b.kind) && !slices.Contains(doors, b.label) || b.label != "" && !slices.Contains(doors, b.label) {
			continue
		}
		base := b.url
		c.doors = append(c.doors, door{
			kind: b.kind, label: b.label, wants: []string{verified, masked}, sees: sees,
			works: strings.ReplaceAll(command, "URL", base+"/v1/echo"), denied: strings.ReplaceAll(command, "URL", base+"/denied/secrets"),
		})
	}
	return c
}

// withEvents says that the client also reads the event stream.
func (c client) withEvents() client {
	for i := range c.doors {
		c.doors[i].wants = append(c.doors[i].wants, lastEvent)
	}
	return c
}

func (c client) withNote(s string) client { c.note = s; return c }

func (c client) onOldNode() client { c.oldNode = true; return c }

func clients(short bool) []client {
	all := [][]client{httpClients(), nodeClients(), javaClients(), toolClients(), streamClients()}
	var out []client
	for _, group := range all {
		for _, c := range group {
			if c.short || !short {
				out = append(out, c)
			}
		}
	}
	return out
}

func httpClients() []client {
	curl := client{name: "curl", version: "curl --version | head -1 | cut -d' ' -f1-2", short: true}
	for _, b := range bases {
		base := b.url
		curl.doors = append(curl.doors, door{
			kind: b.kind, label: b.label, wants: []string{verified, masked, lastEvent, `"body":"posted"`}, sees: why,
			works:  fmt.Sprintf(`curl -sS --fail-with-body -i %[1]s/v1/echo; curl -sS --http1.1 --fail-with-body -i -d posted %[1]s/v1/echo; curl -sSN %[1]s/v1/sse; curl -sS --compressed %[1]s/v1/echo`, base),
			denied: fmt.Sprintf(`curl -sS --fail-with-body %s/denied/secrets`, base),
		})
	}
	py := "/usr/bin/python3"
	return []client{
		curl,
		httpClient("wget", "wget --version | head -1 | cut -d' ' -f1-3", "wget -nv --content-on-error -S -O - URL", why, false, connect, absolute, baseURL).
			withNote("shows bodies of errors with `--content-on-error` only"),
		httpClient("python3 requests", py+` -c 'import requests;print(requests.__version__)'`, py+" $S/use_requests.py URL", why, true, connect, absolute, baseURL, secureBase).withEvents(),
		httpClient("python3 urllib", py+" --version", py+" $S/use_urllib.py URL", why, false, connect, absolute, baseURL, secureBase),
		httpClient("python3 httpx", py+` -c 'import httpx;print(httpx.__version__)'`, py+" $S/use_httpx.py URL", why, false, connect, absolute, baseURL, secureBase).withEvents(),
		httpClient("Go net/http", "go version | cut -d' ' -f3", "$CACHE/bin/compat-gohttp URL $(echo URL | sed s/echo/sse/)", why, true, connect, absolute, baseURL, secureBase).withEvents(),
	}
}

func nodeClients() []client {
	pkg := func(name string) string {
		return `node -p "require('$S/node_modules/` + name + `/package.json').version"`
	}
	return []client{
		httpClient("node 22 fetch", "node --version", "node $S/fetch.mjs URL $(echo URL | sed s/echo/sse/)", why, true, connect, baseURL, secureBase).withEvents(),
		httpClient("node 22 http, https", "node --version", "node $S/https.mjs URL", why, false, connect, absolute, baseURL),
		httpClient("undici", pkg("undici"), "node $S/undici.mjs URL", why, false, connect, baseURL).
			withNote("by proxy: `setGlobalDispatcher(new EnvHttpProxyAgent())`, the package's own switch"),
		httpClient("axios", pkg("axios"), "node $S/axios.mjs URL", why, false, connect, absolute, baseURL),
		httpClient("node (system) fetch", "node --version", "node $S/fetch.mjs URL", why, false, baseURL).onOldNode().
			withNote("ignores proxy variables before 22.21: base URL only"),
		httpClient("node (system) http", "node --version", "node $S/https.mjs URL", why, false, baseURL).onOldNode().
			withNote("ignores proxy variables before 22.21: base URL only"),
		llm("openai", pkg("openai"), "openai.mjs", "OPENAI_BASE_URL", true),
		llm("@anthropic-ai/sdk", pkg("@anthropic-ai/sdk"), "anthropic.mjs", "ANTHROPIC_BASE_URL", false),
		{
			name: "@modelcontextprotocol/sdk", version: pkg("@modelcontextprotocol/sdk"),
			doors: []door{
				{kind: connect, works: "node $S/mcp.mjs https://mcp.compat.example/", denied: "node $S/mcp.mjs https://mcp.compat.example/denied/", wants: []string{`whoami`, `who am I.* for spiffe://attache.local/agent/compat`}, sees: why},
				{kind: baseURL, works: "node $S/mcp.mjs $MCP_BASE_URL/", denied: "node $S/mcp.mjs $MCP_BASE_URL/denied/", wants: []string{`whoami`, `who am I.* for spiffe://attache.local/agent/compat`}, sees: why},
			},
		},
	}
}

// llm is a vendor's SDK: a whole answer and a streamed one, with a token that
// the vendor's workload identity federation gave for the placeholder key.
func llm(name, version, script, env string, short bool) client {
	wants := []string{"whole: federated hello", "streamed: federated stream"}
	return client{name: name, version: version, short: short, note: "base URL by default, since the preset sets `" + env + "`", doors: []door{
		{kind: connect, works: "env -u " + env + " node $S/" + script, denied: "env -u " + env + " node $S/" + script + " denied", wants: wants, sees: why, note: "`" + env + "` unset"},
		{kind: baseURL, works: "node $S/" + script, denied: "node $S/" + script + " denied", wants: wants, sees: why},
	}}
}

func javaClients() []client {
	version := "java -version 2>&1 | grep -m1 version"
	return []client{
		httpClient("Java HttpURLConnection", version, "java $S/Http.java connection URL", `response code: 403`, false, connect, absolute, baseURL).
			withNote("`JAVA_TOOL_OPTIONS` is set by attache run; every JVM prints it on stderr"),
		httpClient("Java HttpClient", version, "java $S/Http.java client URL", why, false, connect, absolute, baseURL).
			withNote("`JAVA_TOOL_OPTIONS` is set by attache run; every JVM prints it on stderr"),
	}
}

func toolClients() []client {
	const push = `; cd clone && git -c user.name=c -c user.email=c@example commit -q --allow-empty -m "from %[1]s" && head -c 3000000 /dev/urandom >big && git add big && git -c user.name=c -c user.email=c@example commit -q -m big && git push -q origin HEAD:refs/heads/%[1]s && git ls-remote origin`
	pip := "/usr/bin/python3 -m pip install --no-cache-dir --disable-pip-version-check --no-deps --target site --index-url %s/simple/ %s"
	npm := "npm install --registry %s/ --prefix project --cache npm-cache --no-audit --no-fund --loglevel=http %s"
	return []client{
		{name: "git", version: "git --version", short: true, doors: []door{
			{kind: connect, works: "git clone -q https://git.compat.example/project.git clone" + fmt.Sprintf(push, "proxy"), wants: []string{"refs/heads/proxy"}, denied: "git clone https://git.compat.example/denied.git refused", sees: `remote: .*` + why},
			{kind: baseURL, works: "git clone -q $REPOSITORY_BASE_URL/project.git clone" + fmt.Sprintf(push, "base"), wants: []string{"refs/heads/base"}, denied: "git clone $REPOSITORY_BASE_URL/denied.git refused", sees: `remote: .*` + why},
		}},
		{name: "pip", version: "/usr/bin/python3 -m pip --version | cut -d' ' -f1-2", note: "hides bodies: shows the status with `-vv`, otherwise that no version was found", doors: []door{
			{kind: connect, works: fmt.Sprintf(pip, "https://pypi.compat.example", "compat-pkg") + " && PYTHONPATH=site /usr/bin/python3 -c 'import compat_pkg; print(\"from\", compat_pkg.FROM)'", wants: []string{"from the index"}, denied: fmt.Sprintf(pip, "https://pypi.compat.example", "denied-pkg") + " -vv", sees: `403 Client Error`},
			{kind: baseURL, works: fmt.Sprintf(pip, "$INDEX_BASE_URL", "compat-pkg") + " && PYTHONPATH=site /usr/bin/python3 -c 'import compat_pkg; print(\"from\", compat_pkg.FROM)'", wants: []string{"from the index"}, denied: fmt.Sprintf(pip, "$INDEX_BASE_URL", "denied-pkg") + " -vv", sees: `403 Client Error`},
		}},
		{name: "npm", version: "npm --version", doors: []door{
			{kind: connect, works: fmt.Sprintf(npm, "https://npm.compat.example", "compat-pkg") + ` && node -p "require('./project/node_modules/compat-pkg')"`, wants: []string{"from the index"}, denied: fmt.Sprintf(npm, "https://npm.compat.example", "denied-pkg"), sees: `403 Forbidden.*` + why},
			{kind: baseURL, works: fmt.Sprintf(npm, "$REGISTRY_BASE_URL", "compat-pkg") + ` && node -p "require('./project/node_modules/compat-pkg')"`, wants: []string{"from the index"}, denied: fmt.Sprintf(npm, "$REGISTRY_BASE_URL", "denied-pkg"), sees: `403 Forbidden.*` + why, note: "the registry names tarballs by its public name: those come through the proxy"},
		}},
		{name: "cargo", version: "cargo --version", note: "sparse registry, cargo 1.68 or newer", doors: []door{
			{kind: connect, works: "sh $S/crate.sh compat-pkg && find $HOME -name 'compat-pkg*.crate'", wants: []string{`compat-pkg-1\.0\.0\.crate`}, denied: "sh $S/crate.sh denied-pkg", sees: why},
			{kind: baseURL, works: "INDEX=$CRATES_BASE_URL sh $S/crate.sh compat-pkg && find $HOME -name 'compat-pkg*.crate'", wants: []string{`compat-pkg-1\.0\.0\.crate`}, denied: "INDEX=$CRATES_BASE_URL sh $S/crate.sh denied-pkg", sees: why, note: "the registry names crates by its public name: those come through the proxy"},
		}},
	}
}

func streamClients() []client {
	return []client{
		{name: "grpc-go interop (unary)", version: "echo grpc-go 1.85.0", short: true, doors: []door{interop(connect, "empty_unary", "large_unary")}},
		{name: "grpc-go interop (14 cases)", version: "echo grpc-go 1.85.0", doors: []door{interop(connect, interopCases...), interop(baseURL, interopCases...), interop(secureBase, interopCases...)}},
		{name: "python3 grpcio", version: `/usr/bin/python3 -c 'import grpc;print(grpc.__version__)'`, doors: []door{
			{kind: connect, works: "/usr/bin/python3 $S/use_grpcio.py grpc.compat.example:443", wants: []string{`unary StatusCode.OK 0`, `(?s)part \d+.*part \d+`, `duplex 4`}, denied: "/usr/bin/python3 $S/use_grpcio.py grpc-denied.compat.example:443", sees: `PERMISSION_DENIED.*` + why},
		}},
		{name: "ws (WebSocket)", version: `node -p "require('$S/node_modules/ws/package.json').version"`, short: true, note: "by proxy: pass an `https.Agent`; without one it opens its own socket", doors: []door{
			{kind: connect, works: "node $S/ws.mjs wss://api.compat.example/v1/ws", wants: []string{"echo: hello", "bytes 70006", "closed 1000"}, denied: "node $S/ws.mjs wss://api.compat.example/denied/ws", sees: why},
			{kind: baseURL, works: "node $S/ws.mjs $(echo $API_BASE_URL | sed s/^http/ws/)/v1/ws", wants: []string{"echo: hello", "bytes 70006", "closed 1000"}, denied: "node $S/ws.mjs $(echo $API_BASE_URL | sed s/^http/ws/)/denied/ws", sees: why},
		}},
		{name: "node 22 WebSocket", version: "node --version", note: "hides status and body of a refused handshake: the record has the reason", doors: []door{
			{kind: connect, works: "node $S/websocket.mjs wss://api.compat.example/v1/ws", wants: []string{"echo: hello", "closed 1000"}, denied: "node $S/websocket.mjs wss://api.compat.example/denied/ws", sees: `error`},
			{kind: baseURL, works: "node $S/websocket.mjs $(echo $API_BASE_URL | sed s/^http/ws/)/v1/ws", wants: []string{"echo: hello", "closed 1000"}, denied: "node $S/websocket.mjs $(echo $API_BASE_URL | sed s/^http/ws/)/denied/ws", sees: `error`},
		}},
	}
}

// interopCases are those of the gRPC project's interoperability tests that
// need no credentials of a cloud's.
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
	"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service",
}

// interop runs cases of the gRPC project's own client.
func interop(kind string, cases ...string) door {
	d := door{kind: kind, sees: `PermissionDenied.*` + why}
	local := `%s -server_host 127.0.0.1 -server_port $(echo $GRPC%s_BASE_URL | sed s/.*://)`
	ok, no := "-use_tls -server_host grpc.compat.example -server_port 443", "-use_tls -server_host grpc-denied.compat.example -server_port 443"
	switch kind {
	case baseURL:
		ok, no = fmt.Sprintf(local, "", ""), fmt.Sprintf(local, "", "_DENIED")
	case secureBase:
		d.kind, d.label = baseURL, kind
		ok, no = fmt.Sprintf(local, "-use_tls", "_SECURE"), fmt.Sprintf(local, "-use_tls", "_SECURE_DENIED")
	}
	const program = "$CACHE/bin/grpc-interop-client "
	for _, c := range cases {
		d.works += program + ok + " -test_case " + c + " && echo passed " + c + ";\n"
		d.wants = append(d.wants, "(?m)^passed "+c+"$")
	}
	d.denied = program + no + " -test_case empty_unary"
	return d
}
