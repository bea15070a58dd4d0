package sidecar

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attache-dev/attache/test/leak"
)

// Unchanged clients call with a credential that they never see, whatever the
// pod's own files say of names.
func TestCalls(t *testing.T) {
	for _, mode := range []string{"transparent", "explicit"} {
		t.Run(mode, func(t *testing.T) { testCalls(t, mode) })
	}
}

func testCalls(t *testing.T, mode string) {
	if !inWorld(t) {
		return
	}
	p := startPod(t, newWorld(t), mode)
	py := `import urllib.request; print(urllib.request.urlopen(%q, data=b"hi").read().decode())`
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"curl over HTTP/1.1", []string{"curl", "-sS", "--http1.1", "https://" + apiName + "/one"}, "GET " + apiName + "/one"},
		{"curl over HTTP/2", []string{"curl", "-sS", "--http2", "https://" + apiName + "/two"}, "GET " + apiName + "/two"},
		{"python", []string{"/usr/bin/python3", "-c", fmt.Sprintf(py, "https://"+apiName+"/py")}, "POST " + apiName + "/py"},
		{"node", []string{"/usr/bin/node", "-e", nodeFetch(mode, "https://"+apiName+"/node")}, "GET " + apiName + "/node"},
		{"git", []string{"git", "ls-remote", "https://" + gitName + "/repo"}, ""},
		{"plain HTTP to the provider's network", []string{"curl", "-sS", "http://" + plainName + "/plain"}, "GET " + plainName + "/plain"},
	} {
		before := len(p.authorizations())
		out, err := p.run(t, c.args...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s\n%s", c.name, err, out, p.tail())
		}
		if strings.Contains(out, p.key) {
			t.Errorf("%s was shown the key:\n%s", c.name, out)
		}
		if got := p.authorizations(); len(got) == before || got[len(got)-1] != "Bearer "+p.key {
			t.Errorf("%s: the origin saw %q", c.name, got[before:])
		}
	}
	for _, c := range []struct{ name, url, want string }{
		{"another host", "https://other.attache.example/", "no rule"},
		{"a plain host without a rule", "http://other.attache.example/", "no rule"},
		{"the metadata service", "http://169.254.169.254/latest/meta-data/", "no rule"},
	} {
		before := len(p.authorizations())
		out, _ := p.run(t, "curl", "-sS", "--resolve", "other.attache.example:443:"+stranger4, "--resolve", "other.attache.example:80:"+stranger4, c.url)
		if !strings.Contains(out, c.want) || len(p.authorizations()) != before {
			t.Errorf("%s: got %s", c.name, out)
		}
	}
	if mode == "transparent" {
		p.testNetwork(t)
	}
	p.testHalfClosed(t)
	p.testLeaks(t)
	if err := p.kill(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, p.tail())
	}
	p.testRecords(t)
}

// nodeFetch needs to be told of a proxy in code where its version does not
// read variables.
func nodeFetch(mode, url string) string {
	if mode == "explicit" {
		return fmt.Sprintf(`const {execFileSync}=require("child_process"); console.log(execFileSync("curl",["-sS",%q]).toString())`, url)
	}
	return fmt.Sprintf(`fetch(%q).then(r=>r.text()).then(console.log)`, url)
}

func (p *pod) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-3000):])
}

// testNetwork looks at what only redirected connections have.
func (p *pod) testNetwork(t *testing.T) {
	t.Helper()
	// IPv6, with the same name.
	out, err := p.run(t, "curl", "-sS", "--resolve", apiName+":443:[2001:db8:1::9]", "https://"+apiName+"/six")
	if err != nil || !strings.Contains(out, "/six") {
		t.Errorf("IPv6: %v\n%s", err, out)
	}
	// A protocol in which the server speaks first goes by its address, and does
	// not hang.
	start := time.Now()
	if out, err := p.run(t, p.self(), "agent", "greeting", world4+":3306"); err != nil || !strings.Contains(out, "greeting of the server") {
		t.Errorf("server-first protocol that a rule passes: %v %s\n%s", err, out, p.tail())
	}
	// One that no rule passes is answered in its own form, with the record's id.
	for port, want := range map[string]string{"22": "SSH-2.0-Attache", "25": "554 5.7.1 attache: denied: no rule", "21": "421 attache: denied"} {
		out, _ := p.run(t, p.self(), "agent", "greeting", world4+":"+port)
		_, id, _ := strings.Cut(out, "[")
		id, _, _ = strings.Cut(id, "]")
		if !strings.Contains(out, want) || !strings.HasPrefix(id, "rec_") || !strings.Contains(p.records(t), id) {
			t.Errorf("port %s, which no rule passes: %s", port, out)
		}
	}
	if d := time.Since(start); d > 15*time.Second { // each would wait 5 s for the client
		t.Errorf("server-first protocols took %v", d)
	}
	if out, _ := p.run(t, "psql", "-w", "host="+world4+" user=agent dbname=x connect_timeout=10"); !strings.Contains(out, "attache: denied: no rule") {
		t.Errorf("psql, which no rule passes: %s", out)
	}
	// HTTP/3 is refused at once.
	if out, err := p.run(t, p.self(), "agent", "udp", stranger4+":443"); err != nil {
		t.Errorf("UDP to port 443: %v %s", err, out)
	}
	// The exemption is the sidecar's alone: every other user meets it.
	for _, uid := range []int{0, agentUID, sidecarUID + 1} {
		c := p.podCommand(uid, "curl", "-sSk", "https://"+world4+"/")
		if out, _ := c.CombinedOutput(); !strings.Contains(string(out), "no rule allows GET on "+world4) {
			t.Errorf("user %d: %s", uid, out)
		}
	}
	// The listener itself is no way in: neither from the pod nor from outside.
	before := len(p.authorizations())
	if out, err := p.run(t, "curl", "-sS", "-H", "Host: "+plainName, "http://127.0.0.1:15001/"); err == nil || len(p.authorizations()) != before {
		t.Errorf("the redirect's port served %s", out)
	}
	for _, port := range []string{"15001", "15002"} {
		for _, host := range []string{pod4, pod6} {
			if c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), patience); err == nil {
				_ = c.Close()
				t.Errorf("port %s of the pod is open to others at %s", port, host)
			}
		}
	}
}

// halfClosing sends a request over plain TCP, ends its sending side, as
// `printf … | nc -N` does, and waits for the answer or leaves.
const halfClosing = `
import socket, sys, time
host, port, request, stay = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "stay"
c = socket.create_connection((host, port), timeout=30)
c.sendall(request.encode().decode("unicode_escape").encode())
c.shutdown(socket.SHUT_WR)
if stay:
    while b := c.recv(4096): sys.stdout.write(b.decode())
else:
    time.sleep(0.5)
`

// testHalfClosed: a client that half-closes gets its answer, and one that
// leaves after that is noticed, which ends its call upstream.
func (p *pod) testHalfClosed(t *testing.T) {
	t.Helper()
	host, port, form := world4, "80", "GET %s HTTP/1.1\\r\\nHost: "+plainName+"\\r\\nConnection: close\\r\\n\\r\\n"
	if p.mode == "explicit" {
		host, port, form = "127.0.0.1", "15002", strings.Replace(form, "%s", "http://"+plainName+"%s", 1)
	}
	out, err := p.run(t, "/usr/bin/python3", "-c", halfClosing, host, port, fmt.Sprintf(form, "/slow"), "stay")
	if err != nil || !strings.Contains(out, "GET "+plainName+"/slow said") {
		t.Errorf("half-closed: %v %q\n%s", err, out, p.tail())
	}
	if out, err := p.run(t, "/usr/bin/python3", "-c", halfClosing, host, port, fmt.Sprintf(form, "/gone"), "leave"); err != nil {
		t.Errorf("half-closed, then left: %v %s", err, out)
	}
	eventually(t, "the origin is told that the client has left", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.left == 0 {
			return errors.New("the call goes on")
		}
		return nil
	})
}

// self is this test's binary, where another user can run it.
func (p *pod) self() string {
	name := p.path("agent-program")
	if _, err := os.Stat(name); err != nil {
		p.sh("cp /proc/" + fmt.Sprint(os.Getpid()) + "/exe " + name + " && chmod 755 " + name)
	}
	return name
}

// testLeaks lets the agent collect all that it can read, and searches it for
// what it must not have. Canaries show that the search would find them.
func (p *pod) testLeaks(t *testing.T) {
	t.Helper()
	root, err := os.ReadFile(p.path("state/interception-root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(string(root), "BEGIN PRIVATE KEY-----\n")
	line, _, _ := strings.Cut(key, "\n") // of the key, in base64
	secrets := map[string]string{"API key": p.key, "interception root's key": line, "canary": "canary-7d1e0f2a"}
	p.write(p.path("canary"), secrets["canary"], 0o644)
	c := p.podCommand(agentUID, p.self(), "agent", "collect", p.dir, "/var/lib/attache", "/var/run/attache", "/dev/shm")
	c.Env = append(c.Env, p.agentEnv()...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	var places []leak.Place
	if err := gob.NewDecoder(&out).Decode(&places); err != nil {
		t.Fatal(err)
	}
	canary := false
	for _, f := range leak.Search(places, secrets) {
		if f.Secret == "canary" {
			canary = true
			continue
		}
		t.Errorf("the agent reads the %s in %s (%s)", f.Secret, f.Place, f.Form)
	}
	if !canary || len(places) < 10 {
		t.Errorf("the search finds nothing: %d places, canary %v", len(places), canary)
	}
}

// testRecords expects that every record has exactly one end, and no secret.
func (p *pod) testRecords(t *testing.T) {
	t.Helper()
	text := p.records(t)
	begun, ended, ok, users := map[string]int{}, map[string]int{}, 0, map[int]bool{}
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		body, _, _ := bytes.Cut(s.Bytes(), []byte("\t")) // its place in the chain follows
		var r struct {
			Type, ID string
			Request  *struct{ Door, Host string }
			Process  *struct{ UID *int }
			Result   *struct{ Outcome string }
		}
		if err := json.Unmarshal(body, &r); err != nil {
			t.Fatalf("%v in %s", err, s.Bytes())
		}
		switch r.Type {
		case "begin":
			begun[r.ID]++
			if r.Process == nil || r.Process.UID == nil {
				t.Errorf("record %s names no user", r.ID)
			} else {
				users[*r.Process.UID] = true
			}
		case "end":
			ended[r.ID]++
			if r.Result != nil && r.Result.Outcome == "ok" {
				ok++
			}
		}
	}
	if len(ended) < 9 || ok < 6 {
		t.Errorf("%d records, %d of calls that went through", len(ended), ok)
	}
	if !users[agentUID] || users[sidecarUID] {
		t.Errorf("users of the records: %v", users)
	}
	for id := range begun {
		if ended[id] != 1 {
			t.Errorf("record %s has %d ends", id, ended[id])
		}
	}
	for _, f := range leak.Search([]leak.Place{{Name: "records", Data: []byte(text)}, {Name: "log", Data: []byte(p.tail())}}, map[string]string{"API key": p.key}) {
		t.Errorf("%s in the %s", f.Secret, f.Place)
	}
}

// caller is an agent's program that lives through the sidecar's death.
type caller struct {
	name string
	in   io.WriteCloser
	out  *bufio.Reader
}

func (c *caller) call(t *testing.T, url string) string {
	t.Helper()
	if _, err := io.WriteString(c.in, url+"\n"); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	return strings.TrimSpace(line)
}

// callers are processes of three runtimes, each of which reads its roots once.
func (p *pod) callers(t *testing.T) []*caller {
	t.Helper()
	clients := map[string][]string{"go": {p.self(), "agent", "loop"}}
	for name, file := range map[string]string{"node": "loop.mjs", "java": "Loop.java"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
				t.Fatal(err)
			}
			t.Logf("SKIPPED: %s is not installed", name)
			continue
		}
		b, err := os.ReadFile("clients/" + file)
		if err != nil {
			t.Fatal(err)
		}
		p.write(p.path(file), string(b), 0o644)
		clients[name] = []string{"/usr/bin/" + name, p.path(file)}
	}
	var out []*caller
	for name, args := range clients {
		c := p.podCommand(agentUID, args...)
		c.Env = append(c.Env, p.agentEnv()...)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
		out = append(out, &caller{name, in, bufio.NewReader(stdout)})
	}
	return out
}

// The sidecar is killed: the agent fails closed, and the same processes call
// again once it is back, since what they trust has not changed.
func TestKilled(t *testing.T) {
	if !inWorld(t) {
		return
	}
	p := startPod(t, newWorld(t), "transparent")
	callers := p.callers(t)
	url := "https://" + apiName + "/loop"
	each := func(when, want string) {
		t.Helper()
		for _, c := range callers {
			if got := c.call(t, url); !strings.HasPrefix(got, want) {
				t.Errorf("%s, %s: got %q, want %q\n%s", when, c.name, got, want, p.tail())
			}
		}
	}
	bundle := func() string { return p.sh("cd " + p.path("trust/bundle") + " && sha256sum * && stat -c '%n %i %Y' *") }
	before := bundle()
	each("at first", "status 200")
	for range 2 {
		_ = p.kill(syscall.SIGKILL)
		n := len(p.authorizations())
		each("without a sidecar", "failed")
		if len(p.authorizations()) != n {
			t.Error("a call went out without the sidecar")
		}
		p.start(t)
		each("with another sidecar", "status 200")
	}
	if after := bundle(); after != before {
		t.Errorf("the trust bundle has changed:\n%s\n%s", before, after)
	}
	// The init container is run again, as after a restart of the node's
	// runtime: nothing changes.
	p.redirect()
	each("after the redirect was installed again", "status 200")
	if err := p.kill(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
