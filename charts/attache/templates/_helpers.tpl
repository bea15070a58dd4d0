{{- define "attache.labels" -}}
app.kubernetes.io/name: attache
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: attache
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "attache.selector" -}}
app.kubernetes.io/name: attache
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: control
{{- end }}

{{- /* An image as it stands in pods: (list . .Values.control.image). */ -}}
{{- define "attache.image" -}}
{{- $root := index . 0 -}}
{{- $i := index . 1 -}}
{{- $name := $i.repository -}}
{{- with $root.Values.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if $i.digest -}}
{{ $name }}@{{ $i.digest }}
{{- else -}}
{{ $name }}:{{ $i.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "attache.control" -}}
attache-control.{{ .Release.Namespace }}.svc:8443
{{- end }}

{{- define "attache.serviceAccount" -}}
system:serviceaccount:{{ .Release.Namespace }}:attache-control
{{- end }}

{{- define "attache.hasRole" -}}
{{- if has (index . 1) (index . 0).Values.control.roles }}true{{ end -}}
{{- end }}

{{- /* Namespaces whose pods are injected and guarded. */ -}}
{{- define "attache.namespaceSelector" -}}
matchExpressions:
  - {key: attache.dev/inject, operator: In, values: [enabled]}
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: {{ concat (list "kube-system" .Release.Namespace) .Values.webhook.excludedNamespaces | uniq | toJson }}
{{- end }}
