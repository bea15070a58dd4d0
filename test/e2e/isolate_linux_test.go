package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/attache-dev/attache/test/leak"
)

// nobody is a user without any privilege.
const nobody = 65534

// asNobody makes attache, and all of the world, nobody's. It comes after the
// last file.
func (w *world) asNobody() {
	w.t.Helper()
	w.cred = &syscall.Credential{Uid: nobody, Gid: nobody}
	err := filepath.WalkDir(w.dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, nobody, nobody))
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// users runs a test as the user who runs it and, if that is root, as nobody.
func users(t *testing.T, f func(t *testing.T, become func(*world))) {
	t.Run("as we are", func(t *testing.T) { t.Parallel(); f(t, func(*world) {}) })
	if os.Geteuid() == 0 {
		t.Run("as nobody", func(t *testing.T) { t.Parallel(); f(t, (*world).asNobody) })
	}
}

// isolated skips a test where this machine's settings forbid what it needs, and
// where that does not work for another reason unless it must.
func isolated(t *testing.T, r result) result {
	t.Helper()
	set := strings.Contains(r.stderr, "sysctl -w ") || strings.Contains(r.stderr, "seccomp filter")
	if r.code == 1 && strings.Contains(r.stderr, "network isolation is impossible here") && (set || os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1") {
		t.Skipf("SKIPPED, NOTHING OF THE ISOLATION IS TESTED: %s", r.stderr)
	}
	return r
}

// bare is the agent's command without a variable that names the proxy.
func bare(args ...string) []string {
	out := []string{"--isolate", "--", "env"}
	for _, v := range []string{"https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "NODE_USE_ENV_PROXY", "NODE_OPTIONS"} {
		out = append(out, "-u", v)
	}
	return append(out, args...)
}

// program skips a test of one that is not installed, and finds the one that
// nobody may run where there are several.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin"} {
		if p := filepath.Join(dir, name); exec.Command(p, "--version").Run() == nil {
			return p
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" && name != "wget" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return p
}

// Programs that ignore the proxy's settings, or know none, get the credential
// and a record all the same.
func TestIsolatedPrograms(t *testing.T) {
	t.Parallel()
	const url = "https://" + apiHost + "/v1/me"
	// A socket, TLS and nothing else, by the name that our resolver knows.
	const rawSocket = `
import socket, ssl, sys
c = ssl.create_default_context().wrap_socket(socket.create_connection(("` + apiHost + `", 443), 15), server_hostname="` + apiHost + `")
c.sendall(b"GET /v1/me HTTP/1.1\r\nHost: ` + apiHost + `\r\nConnection: close\r\n\r\n")
data = b""
while True:
    more = c.recv(4096)
    if not more: break
    data += more
print(data.decode())`
	// As asyncio clients do (aiohttp without trust_env).
	const asyncio = `
import asyncio, ssl
async def main():
    r, w = await asyncio.open_connection("` + apiHost + `", 443, ssl=ssl.create_default_context())
    w.write(b"GET /v1/me HTTP/1.1\r\nHost: ` + apiHost + `\r\nConnection: close\r\n\r\n")
    print((await r.read()).decode())
asyncio.run(main())`
	for name, args := range map[string][]string{
		"curl":         {"curl", "-sS", "--noproxy", "*", url},
		"curl-http1":   {"curl", "-sS", "--noproxy", "*", "--http1.1", url},
		"curl-ipv4":    {"curl", "-sS", "--noproxy", "*", "-4", url},
		"curl-ipv6":    {"curl", "-sS", "--noproxy", "*", "-6", url},
		"curl-address": {"curl", "-sS", "--noproxy", "*", "--resolve", apiHost + ":443:203.0.113.9", url},
		"wget":         {"wget", "-q", "-O", "-", "--no-proxy", url},
		"urllib":       {"python3", "-c", `import urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open("` + url + `").read())`},
		"socket":       {"python3", "-c", rawSocket},
		"asyncio":      {"python3", "-c", asyncio},
		"node-fetch":   {"node", "-e", `fetch("` + url + `").then(r => r.text()).then(console.log)`},
		"node-https":   {"node", "-e", `require("https").get("` + url + `", r => r.pipe(process.stdout))`},
		"go":           {"agent.test", "agent", "direct", url},
	} {
		t.Run(name, func(t *testing.T) {
			users(t, func(t *testing.T, become func(*world)) {
				w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
				w.write("provider.yaml", i.provider(o, ""))
				w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
				args := slices.Clone(args)
				if args[0] == "agent.test" { // where nobody may read it
					args[0] = filepath.Join(w.dir, "agent.test")
					self, err := os.ReadFile("/proc/self/exe")
					if err == nil {
						err = os.WriteFile(args[0], self, 0o755)
					}
					if err != nil {
						t.Fatal(err)
					}
				} else {
					args[0] = program(t, args[0])
				}
				become(w)
				r := isolated(t, w.run(bare(args...)...)).must(t)
				if !strings.Contains(r.stdout, `{"path":"/v1/me"}`) {
					t.Errorf("answer %s\n%s", r.stdout, r.stderr)
				}
				_, issued, _ := i.state()
				got := o.requests()
				if len(issued) != 1 || len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+issued[0] {
					t.Fatalf("issued %q, the origin got %v", issued, got)
				}
				rec := w.one("host:" + apiHost)
				if rec.Request.Door != "transparent" || rec.Process == nil || rec.Process.PID == 0 || rec.Process.Exe == "" || rec.Result.Outcome != "ok" {
					t.Errorf("record %+v %+v %+v", rec.Request, rec.Process, rec.Result)
				}
				if strings.Contains(r.all(), issued[0]) {
					t.Error("the token stands in the output")
				}
			})
		})
	}
}

// git comes to the origin, whose answer is none of git's.
func TestIsolatedGit(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	isolated(t, w.run(bare(program(t, "git"), "-c", "http.proxy=", "ls-remote", "https://"+apiHost+"/team/repo.git")...))
	if got := o.requests(); len(got) == 0 || got[0].URL.Path != "/team/repo.git/info/refs" {
		t.Errorf("the origin got %v", got)
	}
}

// The proxy, base URLs and placeholders are there as in every run.
func TestIsolatedDoors(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		w, o := newWorld(t), newOrigin(t)
		w.file("vendor.key", "file-key-0123456789\n")
		w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [`+o.destination()+`]
  placeholders: [{env: VENDOR_KEY}]
  baseURLs: [{env: VENDOR_URL, host: `+apiHost+`}, {env: OTHER_URL, host: `+apiHost+`, listen: '127.0.0.1:18099'}]
  apiKey: {file: `+filepath.Join(w.dir, "vendor.key")+`}
`)
		w.write("policy.yaml", o.allow(", credential: {provider: vendor}"))
		become(w)
		r := isolated(t, w.run("--isolate", "--listen", "127.0.0.1:18098", "--", "sh", "-c",
			`echo $https_proxy $OTHER_URL; for u in $VENDOR_URL $OTHER_URL; do curl -sS --noproxy '*' -H "Authorization: Bearer $VENDOR_KEY" $u/base; done; curl -sS -H "Authorization: Bearer $VENDOR_KEY" https://`+apiHost+`/proxy`)).must(t)
		if !strings.Contains(r.stdout, "http://127.0.0.1:18098 http://127.0.0.1:18099\n") {
			t.Errorf("ports: %s", r.stdout)
		}
		got := o.requests()
		if len(got) != 3 {
			t.Fatalf("the origin got %v\n%s", got, r.all())
		}
		for _, q := range got {
			if q.Header.Get("Authorization") != "Bearer file-key-0123456789" {
				t.Errorf("%s had %v", q.URL, q.Header["Authorization"])
			}
		}
		if n, m := len(w.requests("door:base-url")), len(w.requests("door:connect")); n != 2 || m != 1 {
			t.Errorf("%d records of base URLs, %d of the proxy", n, m)
		}
	})
}

// The agent finds no secret in its network either, nor does a search of all
// that is left, which finds what was planted.
func TestIsolatedLeaks(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		const secret, canary = "file-key-0123456789abcdef", "planted-0123456789abcdef"
		w, o := newWorld(t), newOrigin(t)
		key := w.file("vendor.key", secret+"\n")
		w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [`+o.destination()+`]
  apiKey: {file: `+key+`}
`)
		w.write("policy.yaml", o.allow(", credential: {provider: vendor}"))
		become(w)
		r := isolated(t, w.run(bare("sh", "-c", `printf `+canary+` | base64
curl -sv https://`+apiHost+`/v1/me 2>&1
env; cat `+key+`; cat /etc/resolv.conf /proc/net/tcp /proc/net/unix; ls -la /proc/self/fd
cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\0' '\n'
for p in 15001 15002 53; do curl -sS -m 5 http://127.0.0.1:$p/; done; true`)...)).must(t)
		if got := o.requests(); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+secret {
			t.Fatalf("the origin got %v\n%s", got, r.all())
		}
		places := []leak.Place{{Name: "output", Data: []byte(r.stdout)}, {Name: "messages", Data: []byte(r.stderr)}}
		for _, d := range []string{"state", "work", "home"} {
			files, err := leak.Files(w.dir, filepath.Join(w.dir, d), 0)
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, files...)
		}
		if len(leak.Search(places, map[string]string{"planted": canary})) == 0 {
			t.Error("the search does not find what was planted")
		}
		for _, f := range leak.Search(places, map[string]string{"vendor key": secret}) {
			t.Errorf("%s stands in %s (%s)", f.Secret, f.Place, f.Form)
		}
	})
}

// AWS SDKs that ask the instance metadata service at its own address find
// placeholder keys, if that door is open.
func TestIsolatedMetadata(t *testing.T) {
	t.Parallel()
	const script = `m=http://169.254.169.254/latest
t=$(curl -sS -m 15 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $m/api/token)
role=$(curl -sS -m 15 -H "X-aws-ec2-metadata-token: $t" $m/meta-data/iam/security-credentials/)
echo "role $role"
curl -g -sS -m 15 -H "X-aws-ec2-metadata-token: $t" "$m/meta-data/iam/security-credentials/$role"; true`
	w := awsWorld(t, "imds")
	r := isolated(t, w.run(bare("sh", "-c", script)...)).must(t)
	if !strings.Contains(r.stdout, "role reader") || !strings.Contains(r.stdout, `"AccessKeyId"`) || !strings.Contains(r.stdout, "AKIA") {
		t.Errorf("with the door: %s", r.all())
	}
	w.noneOfOurs(r)
	w = awsWorld(t, "env")
	if r := w.run(bare("sh", "-c", script)...).must(t); strings.Contains(r.stdout, "AccessKeyId") || !strings.Contains(r.stdout, "denied") {
		t.Errorf("without: %s", r.all())
	}
}

// What no rule allows is refused, in the protocol's form where there is one,
// and recorded; nothing of the machine's own is there at all.
func TestIsolatedDenials(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		w, o := newWorld(t), newOrigin(t)
		w.write("policy.yaml", o.allow(""))
		become(w)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		reached := make(chan struct{}, 1)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				reached <- struct{}{}
				_ = c.Close()
			}
		}()
		python, ssh := program(t, "python3"), program(t, "ssh")
		script := fmt.Sprintf(`
curl -sS -w ' %%{http_code}\n' https://other.e2e.test/
curl -sS -m 15 -w ' %%{http_code}\n' http://169.254.169.254/latest/meta-data/
curl -sS -m 15 -w ' %%{http_code}\n' -k https://203.0.113.9/
curl -sS -m 15 -w ' %%{http_code}\n' -k --resolve %[1]s:443:203.0.113.9 -H 'Host: other.e2e.test' https://%[1]s/
curl -sS -m 15 http://%[2]s/ && echo "the machine's own server answered"
curl -sS -m 15 -x $proxy -k https://%[2]s/
other=$(%[3]s -c 'import socket; print(socket.gethostbyname("elsewhere.e2e.test"))')
curl -sS -m 15 -w ' %%{http_code} contradicts\n' -k --resolve %[1]s:443:$other https://%[1]s/
curl -sS -m 15 -w ' %%{http_code} contradicts\n' --resolve %[1]s:80:$other http://%[1]s/
%[4]s -o BatchMode=yes -o StrictHostKeyChecking=no git@code.e2e.test && echo "ssh went out"
%[3]s -c 'import socket
for to in ("203.0.113.10", 9999), ("198.19.255.1", 9999), ("db.e2e.test", 5433):
    s = socket.create_connection(to, 15); s.sendall(b"\0\1hello")
    try: print("answer", s.recv(100))
    except ConnectionResetError: print("answer none")
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try: u.sendto(b"hello", ("203.0.113.9", 443)); print("QUIC was sent")
except OSError as e: print("no QUIC", e)'
true`, apiHost, ln.Addr(), python, ssh)
		args := bare("sh", "-c", "proxy=http://127.0.0.1:15002\n"+script)
		r := isolated(t, w.run(args...)).must(t)
		for _, s := range []string{"the machine's own server answered", "ssh went out", "QUIC was sent", "answer b'hello"} {
			if strings.Contains(r.stdout, s) {
				t.Errorf("%s:\n%s", s, r.all())
			}
		}
		if !strings.Contains(r.stdout, "no QUIC") {
			t.Errorf("UDP:\n%s", r.all())
		}
		if strings.Count(r.stdout, " 403 contradicts")+strings.Count(r.stdout, " 421 contradicts") != 2 {
			t.Errorf("names that contradict each other:\n%s", r.all())
		}
		if n := strings.Count(r.stdout, `"code":"denied"`); n < 4 {
			t.Errorf("%d calls are told why; want 4\n%s", n, r.all())
		}
		for _, q := range []string{"host:other.e2e.test", "host:169.254.169.254", "host:203.0.113.9", "host:203.0.113.10", "host:198.19.255.1", "host:db.e2e.test", "host:code.e2e.test"} {
			if recs := w.requests(q); len(recs) != 1 || recs[0].Result.Outcome != "denied" || recs[0].Process == nil || recs[0].Process.Exe == "" {
				t.Errorf("records of %s: %+v", q, recs)
			}
		}
		if len(o.requests()) != 0 {
			t.Errorf("the origin got %v", o.requests())
		}
		select {
		case <-reached:
			t.Error("the machine's own server was reached")
		default:
		}
	})
}

// Statuses, signals and streams are those of every run.
func TestIsolatedExitStatus(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		w := newWorld(t)
		w.write("policy.yaml", newOrigin(t).allow(""))
		become(w)
		for _, tt := range []struct {
			script string
			want   int
		}{
			{"exit 0", 0}, {"exit 3", 3}, {"kill -TERM $$", 128 + 15}, {"kill -KILL $$", 128 + 9}, {"exec /no-such-program", 127},
		} {
			if r := isolated(t, w.run("--isolate", "--", "sh", "-c", tt.script)); r.code != tt.want {
				t.Errorf("%s: exit code %d, want %d\n%s", tt.script, r.code, tt.want, r.stderr)
			}
		}
		p := w.start([]byte("typed"), "run", "--config", w.config, "--isolate", "--", "sh", "-c", `trap 'echo ended; exit 7' TERM; cat; echo; echo ready; while :; do sleep 0.05; done`)
		p.says("ready")
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		if r := p.wait(); r.code != 7 || !strings.Contains(r.stdout, "typed") || !strings.Contains(r.stdout, "ended") {
			t.Errorf("after SIGTERM: %d %s", r.code, r.all())
		}
	})
}

// Attaché killed leaves an agent without any way out.
func TestIsolatedKilled(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		w, o := newWorld(t), newOrigin(t)
		w.write("policy.yaml", o.allow(""))
		become(w)
		out := filepath.Join(w.dir, "work", "after")
		p := w.startRun("--isolate", "--", "sh", "-c", `curl -sS https://`+apiHost+`/before && echo up
while kill -0 $PPID 2>/dev/null; do sleep 0.05; done
curl -sS -m 15 https://`+apiHost+`/after >`+out+` 2>&1; curl -sS -m 15 --noproxy '*' https://`+apiHost+`/after >>`+out+` 2>&1; echo done >>`+out)
		eventually(t, "the agent's first call", func() bool {
			select {
			case <-p.done:
				isolated(t, p.wait())
			default:
			}
			return strings.Contains(p.out.String(), "up")
		})
		_ = p.cmd.Process.Kill()
		<-p.done
		eventually(t, "the agent's calls after the kill", func() bool {
			b, _ := os.ReadFile(out)
			return bytes.HasSuffix(b, []byte("done\n"))
		})
		if b, _ := os.ReadFile(out); len(o.requests()) != 1 || bytes.Contains(b, []byte("path")) {
			t.Errorf("after the kill: %s", b)
		}
	})
}

// Where it is impossible, --isolate starts nothing and names the setting, and
// --isolate=auto says that it goes on without.
func TestIsolatedForbidden(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	// In a user namespace of the test's own that may have no more networks.
	inside := func(flag string) result {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := w.command(ctx)
		script := `echo 0 >/proc/sys/user/max_net_namespaces || exit 99; exec "$@"`
		c.Path, c.Args = "/bin/sh", []string{"sh", "-c", script, "sh", attacheBinary, "run", "--config", w.config, flag, "--", "sh", "-c", "echo the agent ran; curl -sS https://" + apiHost + "/x"}
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		}
		var out, errs buffer
		c.Stdout, c.Stderr = &out, &errs
		err := c.Run()
		if c.Process == nil || c.ProcessState.ExitCode() == 99 {
			t.Skipf("no user namespace to forbid networks in: %v %s", err, errs.String())
		}
		return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	if r := inside("--isolate"); r.code != 1 || strings.Contains(r.stdout, "the agent ran") || !strings.Contains(r.stderr, "sysctl -w user.max_net_namespaces") || !strings.Contains(r.stderr, "--isolate=auto") {
		t.Errorf("--isolate: %d %s", r.code, r.all())
	}
	if r := inside("--isolate=auto"); r.code != 0 || !strings.Contains(r.stdout, `the agent ran`) || !strings.Contains(r.stdout, `{"path":"/x"}`) || !strings.Contains(r.stderr, "not enforced here: programs that ignore") {
		t.Errorf("--isolate=auto: %d %s", r.code, r.all())
	}
	if r := w.run("--isolate=perhaps", "--", "true"); r.code != 2 || !strings.Contains(r.stderr, "must be always or auto") {
		t.Errorf("--isolate=perhaps: %d %s", r.code, r.all())
	}
}

// Which network the agent has is in every record's posture, and nothing of it
// is left behind.
func TestIsolatedLeavesNothing(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, become func(*world)) {
		w := newWorld(t)
		w.write("policy.yaml", newOrigin(t).allow(""))
		become(w)
		r := isolated(t, w.run("--isolate", "--", "sh", "-c", "readlink /proc/self/ns/net; (sleep 1000 &); cat /etc/resolv.conf")).must(t)
		ns, _, _ := strings.Cut(r.stdout, "\n")
		if !strings.HasPrefix(ns, "net:[") || !strings.Contains(r.stderr, ",netns)") {
			t.Fatalf("network %s\n%s", ns, r.stderr)
		}
		links, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil || len(links) == 0 {
			t.Fatal("no processes found", err)
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && to == ns {
				t.Errorf("%s is still in the agent's network", l)
			}
		}
	})
}

// What isolation costs, or saves, beside the proxy in the same run: printed, not
// judged. docs/isolation.md has figures.
func TestIsolatedCost(t *testing.T) {
	if os.Getenv("ATTACHE_BENCH") == "" {
		t.Skip("set ATTACHE_BENCH=1 to measure")
	}
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(isolated(t, w.run("--isolate", "--", self, "agent", "load", "https://"+apiHost+"/v1/me")).must(t).stdout)
}
