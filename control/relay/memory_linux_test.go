package relay_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/identity/kubernetes"
)

// asSidecar names the file that makes this program a sidecar.
const asSidecar = "ATTACHE_TEST_SIDECAR"

// pods is what a sidecar in a process of its own is told.
type pods struct {
	Documents        []byte
	Workload         *controlpb.Workload
	Relay, Spool     string
	Cert, Key, Roots string
}

// TestSidecarProcess is no test, but the sidecar of TestMemory.
func TestSidecarProcess(t *testing.T) {
	file := os.Getenv(asSidecar)
	if file == "" {
		t.Skip("runs as a sidecar only")
	}
	var p pods
	if err := json.Unmarshal(must(os.ReadFile(file)), &p); err != nil {
		t.Fatal(err)
	}
	cert := must(tls.X509KeyPair([]byte(p.Cert), []byte(p.Key)))
	b := &xds.Bundle{Documents: p.Documents, Workload: p.Workload}
	plane, _ := newPlane(t, b, p.Relay, &tls.Config{RootCAs: xdstest.Pool([]byte(p.Roots)), ServerName: "control.test", Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, p.Spool, slog.New(slog.DiscardHandler))
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	plane.Open(t.Context(), pod{must(kubernetes.FromProto(b.Workload))}, []net.Addr{ln.Addr()})
	plane.ServeProxy(ln)
	_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"proxy": ln.Addr().String(), "ca": string(plane.CA())})
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = plane.Close()
}

// The key never enters the pod: it is nowhere in the memory of a sidecar that
// carried calls with it, not even where the origin repeated it.
func TestMemory(t *testing.T) {
	g := start(t, nil)
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+root {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/echo" {
			_, _ = io.WriteString(w, "you sent "+r.Header.Get("Authorization")+" and "+base64.StdEncoding.EncodeToString([]byte(root)))
		}
	})
	svid := g.svid()
	b := g.bundle.Load()
	p := pods{Documents: b.Documents, Workload: b.Workload, Relay: g.addr, Spool: t.TempDir()}
	p.Cert, p.Key = xdstest.PEM(svid)
	p.Roots = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: svid.Certificate[1]}))
	file := filepath.Join(t.TempDir(), "pod.json")
	if err := os.WriteFile(file, must(json.Marshal(p)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSidecarProcess$")
	cmd.Env = append(os.Environ(), asSidecar+"="+file)
	cmd.Stderr = os.Stderr
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = cmd.Wait() }()
	var at map[string]string
	if err := json.NewDecoder(stdout).Decode(&at); err != nil {
		t.Fatal(err)
	}
	g.agent = agent(&url.URL{Scheme: "http", Host: at["proxy"]}, []byte(at["ca"]), true)
	if a := g.get("https://api.model.test/", "X-Marker", "a-marker-4c1f"+"9e07b2"); a.status != http.StatusOK {
		t.Fatalf("the call: %d %v %s", a.status, a.err, a.body)
	}
	echo := g.get("https://api.model.test/echo")
	if strings.Contains(echo.body, root) {
		t.Errorf("the agent reads %q", echo.body)
	}
	found := scan(t, cmd.Process.Pid, map[string]string{
		"marker": "a-marker-4c1f9e07b2", "key": root, "start of the key": root[:24], "end of the key": root[len(root)-24:],
		"key in base64": base64.StdEncoding.EncodeToString([]byte(root))[:40],
	})
	if !found["marker"] {
		t.Error("not even the agent's own header was found: the search is broken")
	}
	delete(found, "marker")
	if len(found) > 0 {
		t.Errorf("in the sidecar's memory: %v", found)
	}
}

// scan looks for texts in all the memory of a process.
func scan(t *testing.T, pid int, texts map[string]string) map[string]bool {
	t.Helper()
	maps := must(os.Open(fmt.Sprintf("/proc/%d/maps", pid)))
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("another process's memory cannot be read here: %v", err)
	}
	defer mem.Close()
	found := map[string]bool{}
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(lines.Text(), "relay.test") {
			continue // the program's own text holds this test's constants
		}
		const step, overlap = 4 << 20, 128
		for at := from; at < to; at += step {
			buf := make([]byte, min(step+overlap, to-at))
			n, _ := mem.ReadAt(buf, at)
			for name, text := range texts {
				if bytes.Contains(buf[:n], []byte(text)) {
					found[name] = true
				}
			}
		}
	}
	return found
}
