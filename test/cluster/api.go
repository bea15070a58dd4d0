package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// startTimeout is generous: on a busy machine the API server takes much
	// longer than its usual four seconds.
	startTimeout = 3 * time.Minute
	// portTries is how often another port is tried when somebody was faster.
	portTries = 4
)

// ErrNotBuilt is matched when the programs of the cluster are missing.
var ErrNotBuilt = errors.New("the cluster's programs are not built: run `test/cluster/build.sh api`")

// errPortTaken is matched when a program found its port in use.
var errPortTaken = errors.New("the port is in use")

// Options say how the API server runs. The zero value serves Go tests.
type Options struct {
	// Dir holds keys, data and logs; it must exist. Required.
	Dir string
	// Bin is the folder of the programs; default .cache/bin.
	Bin string
	// Address that it listens on and advertises; default 127.0.0.1, with no
	// endpoints of the service "kubernetes".
	Address netip.Addr
	// Port; 0 takes a free one.
	Port int
	// ServiceCIDR is the range of Services' addresses; default 10.222.0.0/24.
	ServiceCIDR string
	// Issuer of service account tokens; default https://kubernetes.default.svc.cluster.local.
	Issuer string
	// NoControllerManager says that none will run: then the "default" service
	// account of each new namespace is made here.
	NoControllerManager bool
	// Args are appended to the API server's.
	Args []string
}

// Env is an API server that runs, and how to reach it.
type Env struct {
	Dir string
	// Config is that of an administrator (group system:masters).
	Config *rest.Config
	// Kubeconfig is a file of the same administrator.
	Kubeconfig string

	bin       string
	ca        *authority
	url       string
	mu        sync.Mutex // guards processes
	processes []*Process
	cancel    context.CancelFunc
	accounts  chan struct{} // closed when the maker of service accounts ended
	users     atomic.Int64
	alive     io.Closer // held: see removeAtEnd
}

// StartAPI starts etcd and an API server, and returns when it is ready.
// The caller must Close.
func StartAPI(ctx context.Context, o Options) (*Env, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	ca, err := o.keys()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	e := &Env{Dir: o.Dir, bin: o.Bin, ca: ca, cancel: cancel}
	if err := e.start(ctx, o); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Bin == "" {
		root, err := moduleRoot()
		if err != nil {
			return o, err
		}
		o.Bin = filepath.Join(root, ".cache", "bin")
	}
	if !o.Address.IsValid() {
		o.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if o.ServiceCIDR == "" {
		o.ServiceCIDR = "10.222.0.0/24"
	}
	if o.Issuer == "" {
		o.Issuer = "https://kubernetes.default.svc.cluster.local"
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(o.Bin, name)); err != nil {
			return o, fmt.Errorf("%w (%w)", ErrNotBuilt, err)
		}
	}
	var err error
	o.Dir, err = filepath.Abs(o.Dir)
	return o, err
}

// keys writes the certificates and keys that the programs read.
func (o Options) keys() (*authority, error) {
	ca, err := newAuthority("test cluster")
	if err != nil {
		return nil, err
	}
	services, err := netip.ParsePrefix(o.ServiceCIDR)
	if err != nil {
		return nil, fmt.Errorf("range of services: %w", err)
	}
	serving, err := ca.server([]string{"kubernetes.default.svc", "kubernetes.default", "kubernetes", "kubernetes.default.svc.cluster.local", "localhost"},
		net.IPv4(127, 0, 0, 1), o.Address.AsSlice(), services.Masked().Addr().Next().AsSlice())
	if err != nil {
		return nil, err
	}
	kubelet, err := ca.client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(o.Dir, name) }
	return ca, errors.Join(
		os.WriteFile(in("ca.crt"), ca.PEM(), 0o644),
		serving.write(in("apiserver.crt"), in("apiserver.key")),
		kubelet.write(in("kubelet-client.crt"), in("kubelet-client.key")),
		signingKey(in("sa.key"), in("sa.pub")),
	)
}

func (e *Env) start(ctx context.Context, o Options) error {
	etcd, err := onFreePort(o.Address, func(port int) (*Process, error) { return e.startEtcd(ctx, port) }, 0)
	if err != nil {
		return err
	}
	e.keep(etcd.process)
	api, err := onFreePort(o.Address, func(port int) (*Process, error) { return e.startServer(ctx, o, port, etcd.port) }, o.Port)
	if err != nil {
		return err
	}
	e.keep(api.process)
	if e.Kubeconfig, err = e.writeKubeconfig("admin.kubeconfig", e.Config); err != nil {
		return err
	}
	if o.NoControllerManager {
		return e.serveAccounts(ctx)
	}
	return nil
}

type bound struct {
	process *Process
	port    int
}

// onFreePort runs start with a port that was free a moment ago, and again
// with another when somebody else was faster. A fixed port is tried once.
func onFreePort(addr netip.Addr, start func(port int) (*Process, error), fixed int) (bound, error) {
	var err error
	for range portTries {
		port := fixed
		if port == 0 {
			if port, err = freePort(addr); err != nil {
				return bound{}, err
			}
		}
		var p *Process
		if p, err = start(port); err == nil {
			return bound{p, port}, nil
		}
		if fixed != 0 || !errors.Is(err, errPortTaken) {
			return bound{}, err
		}
	}
	return bound{}, err
}

func freePort(addr netip.Addr) (int, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startEtcd runs etcd for clients on 127.0.0.1. It has no peers; the socket
// for them would be a second port to race for.
func (e *Env) startEtcd(ctx context.Context, port int) (*Process, error) {
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	peer := "unix://peer.sock:0"
	p, err := start(e.Dir, "etcd", filepath.Join(e.bin, "etcd"), nil,
		"--name=test", "--data-dir="+filepath.Join(e.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+url, "--advertise-client-urls="+url,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer)
	if err != nil {
		return nil, err
	}
	return p, await(ctx, p, func(ctx context.Context) error {
		return get(ctx, http.DefaultClient, url+"/readyz")
	})
}

func (e *Env) startServer(ctx context.Context, o Options, port, etcd int) (*Process, error) {
	in := func(name string) string { return filepath.Join(e.Dir, name) }
	args := []string{
		"--etcd-servers=http://127.0.0.1:" + strconv.Itoa(etcd),
		"--bind-address=" + o.Address.String(), "--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
		"--client-ca-file=" + in("ca.crt"), "--cert-dir=" + in("certs"),
		"--service-account-issuer=" + o.Issuer, "--api-audiences=" + o.Issuer,
		"--service-account-signing-key-file=" + in("sa.key"), "--service-account-key-file=" + in("sa.pub"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction,PodSecurity",
		"--service-cluster-ip-range=" + o.ServiceCIDR, "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate=" + in("kubelet-client.crt"), "--kubelet-client-key=" + in("kubelet-client.key"),
		"--profiling=false", "--v=1",
	}
	if o.Address.IsLoopback() {
		args = append(args, "--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1") // RFC 5737: nobody's; a loopback address is refused
	} else {
		args = append(args, "--advertise-address="+o.Address.String())
	}
	p, err := start(e.Dir, "kube-apiserver", filepath.Join(e.bin, "kube-apiserver"), nil, append(args, o.Args...)...)
	if err != nil {
		return nil, err
	}
	e.url = "https://" + netip.AddrPortFrom(o.Address, uint16(port)).String()
	if e.Config, err = e.User("kubernetes-admin", "system:masters"); err != nil {
		p.Kill()
		return nil, err
	}
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		p.Kill()
		return nil, err
	}
	return p, await(ctx, p, func(ctx context.Context) error {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// await asks until ready answers without an error. It kills the process when
// that never happens.
func await(ctx context.Context, p *Process, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return ready(ctx)
		}()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			if strings.Contains(p.Tail(40), "address already in use") {
				return fmt.Errorf("%w: %w", errPortTaken, p.ended())
			}
			return p.ended()
		case <-ctx.Done():
			p.Kill()
			return fmt.Errorf("%s was not ready after %v (last answer: %w); %s", p.Name, startTimeout, err, p.Tail(10))
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// Close ends the programs, the last started first. Safe to call twice.
func (e *Env) Close() {
	e.cancel()
	if e.accounts != nil {
		<-e.accounts
	}
	all := e.Processes()
	for i := len(all) - 1; i >= 0; i-- {
		all[i].Stop()
	}
}

func (e *Env) keep(p *Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.processes = append(e.processes, p)
}

// Processes of the cluster, in the order in which they were started.
func (e *Env) Processes() []*Process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.processes)
}

// Start runs another program for as long as the cluster runs; its log is
// Dir/NAME.log. Env adds to the environment of this process.
func (e *Env) Start(name, program string, env []string, args ...string) (*Process, error) {
	p, err := start(e.Dir, name, program, env, args...)
	if err != nil {
		return nil, err
	}
	e.keep(p)
	return p, nil
}

// Await asks until ready answers without an error; an error tells that the
// process ended or that it took too long, with the end of its log.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	return await(ctx, p, ready)
}

// moduleRoot is the folder of the project's go.mod, seen from the working
// folder, which for a test is its package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module github.com/attache-dev/attache\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run from inside the project: no go.mod of it above " + dir)
		}
		dir = up
	}
}
