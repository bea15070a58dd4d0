{{- /* Names that admission adds, as CEL lists. They are those of
webhook/inject; a test holds the two against each other. */ -}}
{{- define "attache.ownContainers" -}}['attache-sidecar', 'attache-redirect']{{- end }}
{{- define "attache.ownVolumes" -}}['attache-trust', 'attache-token', 'attache-state', 'attache-spool', 'attache-none']{{- end }}
{{- define "attache.privateVolumes" -}}['attache-token', 'attache-state', 'attache-spool', 'attache-none']{{- end }}
{{- define "attache.strongCapabilities" -}}['ALL', 'NET_ADMIN', 'NET_RAW', 'SYS_ADMIN', 'SYS_PTRACE', 'SYS_MODULE', 'SYS_RAWIO', 'DAC_READ_SEARCH', 'BPF', 'PERFMON']{{- end }}
{{- /* Folders of nodes in which the sidecar's lie, and from which nodes are taken. */ -}}
{{- define "attache.hostSecrets" -}}['/proc', '/sys', '/dev', '/boot', '/root', '/run/secrets', '/run/kubernetes', '/run/user', '/run/systemd', '/run/dbus', '/run/containerd', '/run/crio', '/run/docker', '/run/dockershim', '/run/k3s', '/run/podman', '/run/docker.sock', '/run/crio.sock', '/run/podman.sock', '/run/cri-dockerd.sock', '/run/dockershim.sock', '/etc/kubernetes', '/etc/cni', '/etc/containerd', '/etc/crio', '/etc/docker', '/etc/systemd', '/etc/cron.d', '/etc/crontab', '/etc/ssh', '/etc/pam.d', '/etc/sudoers', '/etc/sudoers.d', '/etc/rancher', '/etc/ld.so.preload', '/opt/cni', '/var/lib/kubelet', '/var/lib/containerd', '/var/lib/containers', '/var/lib/docker', '/var/lib/cni', '/var/lib/etcd', '/var/lib/rancher', '/var/lib/crio', '/var/lib/k0s', '/var/spool/cron']{{- end }}
{{- define "attache.audience" -}}attache.dev{{- end }}
{{- define "attache.uid" -}}64200{{- end }}

{{- /* A binding beside each policy: (list . "name" params). A binding whose
policy name is wrong does nothing and says nothing; a test reads each. */ -}}
{{- define "attache.binding" -}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels: {{- include "attache.labels" (index . 0) | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [Deny]
  {{- if index . 2 }}
  paramRef:
    name: attache-guard
    namespace: {{ (index . 0).Release.Namespace }}
    parameterNotFoundAction: Deny
  {{- end }}
{{- end }}

{{- define "attache.policyMeta" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ index . 1 }}
  labels: {{- include "attache.labels" (index . 0) | nindent 4 }}
{{- end }}
