package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// target is one thing that is measured, with the load generator that calls it.
type target struct {
	name  string
	note  string // what it does, for the table
	h2    bool   // speaks HTTP/2 to clients
	order order  // Mode, Addr, Host, CA, Header filled in
	cmd   *exec.Cmd
	gen   *generator
}

// bench is everything that one run shares.
type bench struct {
	dir      string // scratch
	attache  string
	self     string
	origin   string     // host:port, HTTP/1.1 only
	originH2 string     // the same with HTTP/2
	counter  *generator // the origin's own count of connections
	ca       *authority
	closers  []func()
}

// generator is a running `bench generate`.
type generator struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

// run executes one order; phase is called as each phase begins.
func (g *generator) run(o order, phase func(string) error) (reading, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return reading{}, err
	}
	if _, err := g.in.Write(append(b, '\n')); err != nil {
		return reading{}, err
	}
	var failed error
	for g.out.Scan() {
		var r reading
		if err := json.Unmarshal(g.out.Bytes(), &r); err != nil {
			return r, fmt.Errorf("%w: %s", err, g.out.Text())
		}
		switch {
		case r.Phase != "":
			failed = errors.Join(failed, phase(r.Phase))
		case r.Error != "":
			return r, errors.New(r.Error)
		default:
			return r, failed
		}
	}
	return reading{}, errors.New("load generator died")
}

// accepted is how many connections the origin has accepted so far.
func (b *bench) accepted() (int64, error) {
	if _, err := io.WriteString(b.counter.in, "\n"); err != nil {
		return 0, err
	}
	if !b.counter.out.Scan() {
		return 0, errors.New("the origin died")
	}
	return strconv.ParseInt(b.counter.out.Text(), 10, 64)
}

// start runs cmd with pipes and ends it when the benchmark ends.
func (b *bench) start(cmd *exec.Cmd) (io.WriteCloser, *bufio.Scanner, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	logFile, err := os.Create(filepath.Join(b.dir, filepath.Base(cmd.Path)+strconv.Itoa(len(b.closers))+".log"))
	if err != nil {
		return nil, nil, err
	}
	cmd.Stderr = logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	b.closers = append(b.closers, func() {
		_ = in.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
		}
	})
	s := bufio.NewScanner(out)
	s.Buffer(make([]byte, 64<<10), 1<<20)
	return in, s, nil
}

func (b *bench) plainGenerator() (*generator, error) {
	in, out, err := b.start(exec.Command(b.self, "generate"))
	return &generator{in, out}, err
}

func (b *bench) write(name, text string) (string, error) {
	p := filepath.Join(b.dir, name)
	return p, os.WriteFile(p, []byte(text), 0o644)
}

// freePort asks the kernel for a port; the small race is accepted here, since
// the peers cannot report the port that they got.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// await waits until addr accepts connections.
func await(addr string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

func (b *bench) direct() (*target, error) {
	gen, err := b.plainGenerator()
	return &target{name: "direct", note: "no proxy", h2: true, gen: gen,
		order: order{Mode: "direct", Addr: b.origin, Host: b.origin, CA: b.ca.certFile, Header: true}}, err
}

// daemon starts a peer that listens on addr.
func (b *bench) daemon(t *target, addr string, args ...string) (*target, error) {
	bin, err := exec.LookPath(args[0])
	if err != nil {
		return nil, err
	}
	t.cmd = exec.Command(bin, args[1:]...)
	if _, _, err := b.start(t.cmd); err != nil {
		return nil, err
	}
	if err := await(addr, 30*time.Second); err != nil {
		return nil, fmt.Errorf("%s does not listen: %w (logs in %s)", t.name, err, b.dir)
	}
	t.gen, err = b.plainGenerator()
	return t, err
}

func (b *bench) nginx() (*target, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	conf, err := b.write("nginx.conf", `daemon off; worker_processes 1; pid `+b.dir+`/nginx.pid; error_log `+b.dir+`/nginx.err;
events { worker_connections 4096; }
http { access_log off; client_body_temp_path `+b.dir+`/nb; proxy_temp_path `+b.dir+`/np; fastcgi_temp_path `+b.dir+`/nf; uwsgi_temp_path `+b.dir+`/nu; scgi_temp_path `+b.dir+`/ns;
 upstream o { server `+b.origin+`; keepalive 256; keepalive_requests 1000000000; }
 server { listen `+addr+` ssl http2; keepalive_requests 1000000000; ssl_certificate `+b.ca.leafFile+`; ssl_certificate_key `+b.ca.leafKeyFile+`;
  location / { proxy_pass https://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host localhost; proxy_buffering off;
   proxy_set_header Authorization "Bearer `+benchToken+`"; proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_trusted_certificate `+b.ca.certFile+`; proxy_ssl_session_reuse on; } } }
`)
	if err != nil {
		return nil, err
	}
	t := &target{name: "nginx", note: "TLS to TLS, one static header", h2: true, order: order{Mode: "direct", Addr: addr, Host: "localhost:443", CA: b.ca.certFile}}
	return b.daemon(t, addr, "nginx", "-c", conf, "-p", b.dir)
}

func (b *bench) haproxy() (*target, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	conf, err := b.write("haproxy.cfg", `global
 nbthread 1
 maxconn 4096
defaults
 mode http
 timeout client 60s
 timeout server 60s
 timeout connect 5s
 option http-keep-alive
 http-reuse always
frontend f
 bind `+addr+` ssl crt `+b.ca.leafPairFile+` alpn h2,http/1.1
 http-request set-header Authorization "Bearer `+benchToken+`"
 default_backend o
backend o
 server s `+b.origin+` ssl verify required ca-file `+b.ca.certFile+` sni str(localhost) verifyhost localhost alpn http/1.1 pool-max-conn 512
`)
	if err != nil {
		return nil, err
	}
	t := &target{name: "haproxy", note: "TLS to TLS, one static header", h2: true, order: order{Mode: "direct", Addr: addr, Host: "localhost:443", CA: b.ca.certFile}}
	return b.daemon(t, addr, "haproxy", "-f", conf, "-db")
}

func (b *bench) mitmproxy() (*target, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(b.dir, "mitm")
	if err := os.MkdirAll(conf, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(conf, "mitmproxy-ca.pem"), b.ca.pairPEM, 0o600); err != nil {
		return nil, err
	}
	t := &target{name: "mitmproxy", note: "intercepting, one static header", h2: true, order: order{Mode: "connect", Addr: addr, Host: b.origin, CA: b.ca.certFile}}
	return b.daemon(t, addr, "mitmdump", "-q", "--listen-host", "127.0.0.1", "-p", port, "--set", "confdir="+conf,
		"--set", "ssl_verify_upstream_trusted_ca="+b.ca.certFile, "--set", "modify_headers=/~q/Authorization/Bearer "+benchToken, "--set", "stream_large_bodies=1m")
}

func (b *bench) squid() (*target, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "squid")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	pair := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(pair, b.ca.pairPEM, 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.Command("/usr/lib/squid/security_file_certgen", "-c", "-s", filepath.Join(dir, "db"), "-M", "4MB").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("squid's certificate store: %w: %s", err, out)
	}
	_ = exec.Command("chown", "-R", "proxy:proxy", dir).Run()
	_ = os.Chmod(b.dir, 0o755)
	conf, err := b.write("squid.conf", `http_port `+addr+` ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB tls-cert=`+pair+`
sslcrtd_program /usr/lib/squid/security_file_certgen -s `+dir+`/db -M 4MB
tls_outgoing_options cafile=`+b.ca.certFile+`
acl s1 at_step SslBump1
ssl_bump bump all
http_access allow all
cache deny all
access_log none
cache_log `+dir+`/cache.log
pid_filename `+dir+`/pid
coredump_dir `+dir+`
request_header_access Authorization deny all
request_header_add Authorization "Bearer `+benchToken+`" all
request_header_access Via deny all
forwarded_for delete
server_persistent_connections on
client_persistent_connections on
shutdown_lifetime 1 seconds
workers 1
max_filedescriptors 8192
`)
	if err != nil {
		return nil, err
	}
	t := &target{name: "squid", note: "ssl-bump, one static header", order: order{Mode: "connect", Addr: addr, Host: b.origin, CA: b.ca.certFile}}
	return b.daemon(t, addr, "squid", "-N", "-f", conf)
}

func (b *bench) goproxy() (*target, error) {
	build := exec.Command("go", "build", "-o", filepath.Join(b.dir, "goproxy-peer"), ".")
	build.Dir = "test/bench/peer"
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build goproxy peer: %w: %s", err, out)
	}
	cmd := exec.Command(filepath.Join(b.dir, "goproxy-peer"), "-ca", b.ca.pairFile, "-roots", b.ca.certFile, "-authorization", "Bearer "+benchToken)
	_, out, err := b.start(cmd)
	if err != nil {
		return nil, err
	}
	if !out.Scan() {
		return nil, errors.New("goproxy peer said nothing")
	}
	addr := out.Text()
	gen, err := b.plainGenerator()
	return &target{name: "goproxy", note: "intercepting, one static header, 256 idle connections", cmd: cmd, gen: gen,
		order: order{Mode: "connect", Addr: addr, Host: b.origin, CA: b.ca.certFile}}, err
}

// attacheTarget is Attaché with everything on: attested caller, policy, OAuth
// token from the cache, injection, echo guard, durable record.
func (b *bench) attacheTarget() (*target, error) {
	_, port, err := net.SplitHostPort(b.origin)
	if err != nil {
		return nil, err
	}
	_, portH2, err := net.SplitHostPort(b.originH2)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "config")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ca := strings.ReplaceAll(strings.TrimSpace(string(b.ca.certPEM)), "\n", "\n      ")
	doc := `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: bench}
spec:
  destinations:
  - host: localhost
    port: ` + port + `
    addresses: ["127.0.0.1"]
    onlyCA: true
    caBundle: |
      ` + ca + `
  - host: localhost
    port: ` + portH2 + `
    addresses: ["127.0.0.1"]
    onlyCA: true
    caBundle: |
      ` + ca + `
  oauth2:
    tokenEndpoint: https://localhost:` + port + `/token
    addresses: ["127.0.0.1"]
    caBundle: |
      ` + ca + `
    grant: clientCredentials
    clientAuth: privateKeyJWT
    assertionAudience: https://localhost:` + port + `
  ttl: 1h
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: bench}
spec:
  rules:
  - name: read
    hosts: [localhost]
    ports: [` + port + `, ` + portH2 + `]
    methods: [GET]
    paths: ["/{what}"]
    action: allow
    credential: {provider: bench, scope: [read]}
`
	if err := os.WriteFile(filepath.Join(dir, "bench.yaml"), []byte(doc), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.attache, "run", "--config", dir, "--state", b.state(), "--", b.self, "generate")
	in, out, err := b.start(cmd)
	if err != nil {
		return nil, err
	}
	return &target{name: "attache", note: "intercepting with identity, policy, cached token, injection, guard, durable record", h2: true, cmd: cmd,
		gen: &generator{in, out}, order: order{Mode: "connect", Addr: "env", Host: b.origin, CA: "env"}}, nil
}

// usage is what a target has used so far: CPU time of its processes, their
// resident memory now, and connections to the origin.
type usage struct {
	cpu   time.Duration
	rss   int64 // KiB
	dials int64
}

const clockTick = 100 // USER_HZ, fixed by the Linux ABI

// usage sums a target's processes; the load generator under attache is not
// one of them.
func (b *bench) usage(t *target) (usage, error) {
	dials, err := b.accepted()
	u := t.spent()
	u.dials = dials
	return u, err
}

// spent is usage without the connections.
func (t *target) spent() (u usage) {
	if t.cmd == nil {
		return u
	}
	for _, pid := range family(t.cmd.Process.Pid) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		comm, rest, ok := strings.Cut(string(stat), ") ")
		if !ok || strings.HasSuffix(comm, "("+generatorName) {
			continue
		}
		f := strings.Fields(rest)
		ut, _ := strconv.ParseInt(f[11], 10, 64)
		st, _ := strconv.ParseInt(f[12], 10, 64)
		u.cpu += time.Duration(ut+st) * time.Second / clockTick
		u.rss += rssOf(pid)
	}
	return u
}

func rssOf(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n
		}
	}
	return 0
}

// family lists pid and its descendants.
func family(pid int) []int {
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				all = append(all, family(n)...)
			}
		}
	}
	return all
}

// state is the folder of attache's state.
func (b *bench) state() string { return filepath.Join(b.dir, "state") }
