// Package node runs a whole Kubernetes node for end-to-end tests, without
// docker, a registry or an init system: [Sandboxed] puts the program into
// namespaces of its own, [Start] runs etcd, the API server, the controller
// manager, the scheduler, containerd, the kubelet, kube-proxy (nftables) and
// CoreDNS in them. Linux and root only.
//
// Pods have addresses in 10.98.0.0/24, Services in 10.222.0.0/24 behind real
// virtual addresses, and the node is 10.99.0.1, where a test puts the servers
// that pods call. No packet leaves the machine. NetworkPolicies are accepted
// and not enforced.
package node
