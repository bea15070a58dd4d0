// Package cluster starts a real Kubernetes for tests: the programs that
// test/cluster/build.sh builds from Kubernetes' own modules, as processes.
//
// [API] gives a Go test an API server and etcd, which is enough for custom
// resources, webhooks, admission policies and controllers: nothing schedules
// or runs a pod there, and the few things that the controller manager does
// and a test cannot do without (the "default" service account of a
// namespace) this package does.
//
// The programs of the node (test/cluster/node) add the rest; only test/k8s
// uses them, because they need root.
//
// NetworkPolicies are accepted and never enforced: there is no policy engine.
package cluster
