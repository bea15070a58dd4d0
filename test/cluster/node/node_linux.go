package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/attache-dev/attache/test/cluster"
)

const (
	// Name of the node.
	Name = "node"
	// Address of the node, on a bridge that nothing else is attached to.
	Address = "10.99.0.1"
	// DNS is the address of the cluster's DNS service.
	DNS = "10.222.0.10"
	// PodCIDR and ServiceCIDR are the ranges of pods and Services.
	PodCIDR     = "10.98.0.0/24"
	ServiceCIDR = "10.222.0.0/24"

	apiPort = 6443
	// socket of containerd is below /run, which is the sandbox's own: the
	// path of a socket has 107 bytes at most, and a checkout may lie deep.
	socket = "/run/attache-node/containerd.sock"

	readyTimeout = 3 * time.Minute
)

// Node is a cluster of one node that runs.
type Node struct {
	*cluster.Env
	containerd, kubelet *cluster.Process
	kubeletArgs         []string
	say                 func(format string, args ...any)
	digests             map[string]string // by image name
}

// Options of a node.
type Options struct {
	// Dir holds everything the node writes. Required.
	Dir string
	// Bin is the folder of the programs of build.sh. Required.
	Bin string
	// Images are archives of package oci that containerd imports: "pause" and
	// "coredns" must be among them, see [Images].
	Images []string
	// Hosts are names, outside of the cluster, that its DNS answers with the
	// node's address.
	Hosts []string
	// Say prints progress. Required.
	Say func(format string, args ...any)
}

// Start runs the node and returns when it is Ready and resolves names. The
// program must be [Sandboxed]; then nobody needs to Close what this starts.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := &Node{say: o.Say, digests: map[string]string{}}
	if err := network(ctx); err != nil {
		return nil, fmt.Errorf("network of the node: %w", err)
	}
	address, err := netip.ParseAddr(Address)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	n.Env, err = cluster.StartAPI(ctx, cluster.Options{Dir: o.Dir, Bin: o.Bin, Address: address, Port: apiPort, ServiceCIDR: ServiceCIDR})
	if err != nil {
		return nil, err
	}
	n.say("API server ready after %.1f s", time.Since(start).Seconds())
	for _, step := range []func(context.Context) error{n.startContainerd, n.controllers, n.startKubelet, n.startProxy} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for _, image := range o.Images {
		if err := n.Import(ctx, image); err != nil {
			return nil, err
		}
	}
	if err := n.coreDNS(ctx, o.Hosts); err != nil {
		return nil, err
	}
	if _, err := n.Kubectl(ctx, "", "wait", "--for=condition=Ready", "node/"+Name, "--timeout="+readyTimeout.String()); err != nil {
		return nil, errors.Join(err, errors.New(n.kubelet.Tail(15)))
	}
	if _, err := n.Kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout="+readyTimeout.String()); err != nil {
		return nil, err
	}
	n.say("node and DNS ready after %.1f s", time.Since(start).Seconds())
	return n, nil
}

// network makes the node's interface: a bridge with one pair of virtual
// Ethernet interfaces (not every kernel has dummy ones). The default route
// leads nowhere; programs want one to learn their own address.
func network(ctx context.Context) error {
	for _, args := range []string{
		"link set lo up",
		"link add node0 type bridge",
		"addr add " + Address + "/24 dev node0",
		"link set node0 up",
		"link add veth0 type veth peer name veth1",
		"link set veth1 master node0",
		"link set veth0 up",
		"link set veth1 up",
		"route add default via 10.99.0.254 dev node0",
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func (n *Node) controllers(context.Context) error {
	in := func(name string) string { return filepath.Join(n.Dir, name) }
	_, err := n.Env.Start("kube-controller-manager", n.Program("kube-controller-manager"), nil,
		"--kubeconfig="+n.Kubeconfig, "--service-account-private-key-file="+in("sa.key"), "--root-ca-file="+in("ca.crt"),
		"--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0",
		"--cluster-cidr="+PodCIDR, "--service-cluster-ip-range="+ServiceCIDR, "--v=1")
	if err != nil {
		return err
	}
	_, err = n.Env.Start("kube-scheduler", n.Program("kube-scheduler"), nil,
		"--kubeconfig="+n.Kubeconfig, "--leader-elect=false", "--secure-port=0", "--v=1")
	return err
}

func (n *Node) startContainerd(ctx context.Context) error {
	if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o700), os.MkdirAll(filepath.Join(n.Dir, "cni"), 0o755)); err != nil {
		return err
	}
	if err := n.render(map[string]string{"containerd.toml": containerdConfig, "cni/10-pods.conflist": cniConfig}); err != nil {
		return err
	}
	return n.runContainerd(ctx)
}

func (n *Node) runContainerd(ctx context.Context) error {
	var err error
	n.containerd, err = n.Env.Start("containerd", "containerd", nil, "-c", filepath.Join(n.Dir, "containerd.toml"))
	if err != nil {
		return err
	}
	return n.containerd.Await(ctx, func(ctx context.Context) error {
		_, err := n.ctr(ctx, "version")
		return err
	})
}

// RestartContainerd stops containerd as a reboot of its service does, and
// starts it again: containers keep running under their shims meanwhile.
func (n *Node) RestartContainerd(ctx context.Context) error {
	n.containerd.Stop()
	return n.runContainerd(ctx)
}

func (n *Node) startKubelet(ctx context.Context) error {
	cgroup := os.Getenv(cgroupVariable)
	if err := makeCgroups(cgroup); err != nil {
		return err
	}
	if err := n.render(map[string]string{"kubelet.yaml": strings.ReplaceAll(kubeletConfig, "@CGROUP@", "/"+cgroup)}); err != nil {
		return err
	}
	user, err := n.User("system:node:"+Name, "system:nodes")
	if err != nil {
		return err
	}
	kubeconfig, err := n.WriteKubeconfig("kubelet.kubeconfig", user)
	if err != nil {
		return err
	}
	n.kubeletArgs = []string{
		"--config=" + filepath.Join(n.Dir, "kubelet.yaml"), "--kubeconfig=" + kubeconfig,
		"--root-dir=" + filepath.Join(n.Dir, "kubelet"), "--cert-dir=" + filepath.Join(n.Dir, "kubelet-certs"),
		"--hostname-override=" + Name, "--node-ip=" + Address, "--v=2",
	}
	return n.runKubelet()
}

func (n *Node) runKubelet() error {
	var err error
	n.kubelet, err = n.Env.Start("kubelet", n.Program("kubelet"), nil, n.kubeletArgs...)
	return err
}

// RestartKubelet ends the kubelet and starts it again, with nothing in memory
// of the pods that run meanwhile.
func (n *Node) RestartKubelet() error {
	n.kubelet.Stop()
	return n.runKubelet()
}

func (n *Node) startProxy(context.Context) error {
	if err := n.render(map[string]string{"kube-proxy.yaml": proxyConfig}); err != nil {
		return err
	}
	_, err := n.Env.Start("kube-proxy", n.Program("kube-proxy"), nil, "--config="+filepath.Join(n.Dir, "kube-proxy.yaml"), "--hostname-override="+Name)
	return err
}

// render writes configuration files below the node's folder, with the marks
// @DIR@, @SOCKET@ and the node's addresses replaced.
func (n *Node) render(files map[string]string) error {
	marks := strings.NewReplacer("@DIR@", n.Dir, "@SOCKET@", socket, "@KUBECONFIG@", n.Kubeconfig,
		"@DNS@", DNS, "@PODS@", PodCIDR, "@NODE@", Address)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(marks.Replace(text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) ctr(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "ctr", append([]string{"-a", socket, "-n", "k8s.io"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Import makes an image of package oci known to the node, under its name and
// under name@digest.
func (n *Node) Import(ctx context.Context, archive string) error {
	out, err := n.ctr(ctx, "images", "import", archive)
	if err != nil {
		return err
	}
	// "unpacking NAME (DIGEST)...done"
	fields := strings.Fields(out)
	if len(fields) < 3 || fields[0] != "unpacking" {
		return fmt.Errorf("import %s: cannot read the answer %q", archive, out)
	}
	name, digest := fields[1], strings.Trim(strings.SplitN(fields[2], ")", 2)[0], "()")
	n.digests[name] = digest
	repository := name[:strings.LastIndexByte(name, ':')]
	_, err = n.ctr(ctx, "images", "tag", "--force", name, repository+"@"+digest)
	return err
}

// KillContainer sends SIGKILL to the first process of a container, as the
// kernel's out-of-memory killer does. id is that of the pod's status.
func (n *Node) KillContainer(ctx context.Context, id string) error {
	_, err := n.ctr(ctx, "tasks", "kill", "--signal", "SIGKILL", strings.TrimPrefix(id, "containerd://"))
	return err
}

// Digest of an imported image, "sha256:…", or "".
func (n *Node) Digest(image string) string { return n.digests[image] }
