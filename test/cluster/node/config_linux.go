package node

// containerdConfig is for containerd 1.6 and later (version 2 of the format).
// restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing, as in many
// sandboxes, nobody may lower the score that the kubelet asks for.
const containerdConfig = `version = 2
root = "@DIR@/containerd"
state = "/run/attache-node/containerd"
oom_score = 0
[grpc]
  address = "@SOCKET@"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "attache.test/pause:e2e"
  enable_selinux = false
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@DIR@/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "@DIR@/opt"
`

// cniConfig routes each pod by itself (ptp): on a shared bridge the answers
// of one pod to another's call of a Service would not pass the node, and keep
// the address that kube-proxy has to put back.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "ptp",
    "ipMasq": false,
    "ipam": {"type": "host-local", "dataDir": "/run/attache-node/cni", "ranges": [[{"subnet": "@PODS@"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: @CGROUP@
containerRuntimeEndpoint: unix://@SOCKET@
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: "@DIR@/ca.crt"}
authorization: {mode: Webhook}
clusterDNS: ["@DNS@"]
clusterDomain: cluster.local
failSwapOn: false
resolvConf: ""
podLogsDir: /var/log/pods
evictionHard: {}
imageGCHighThresholdPercent: 100
serverTLSBootstrap: false
registerNode: true
maxPods: 100
address: @NODE@
port: 10250
healthzPort: 0
nodeStatusUpdateFrequency: 2s
syncFrequency: 10s
`

// proxyConfig: the limits of connection tracking belong to the machine, not
// to the sandbox, which may not write them.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: "@KUBECONFIG@"}
clusterCIDR: @PODS@
bindAddress: @NODE@
healthzBindAddress: ""
metricsBindAddress: ""
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {syncPeriod: 30s, minSyncPeriod: 100ms}
`

// dnsManifests run CoreDNS as clusters do: a Deployment behind kube-dns.
const dnsManifests = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:5353 {
      errors
      ready :8181
      hosts {
        @HOSTS@
        ttl 5
        fallthrough
      }
      kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 5
      }
      cache 5
      reload 2s
    }
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: @DNS@
  selector: {k8s-app: kube-dns}
  ports:
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
  - {name: dns-tcp, port: 53, targetPort: 5353, protocol: TCP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      containers:
      - name: coredns
        image: attache.test/coredns:e2e
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: coredns}}]
`
