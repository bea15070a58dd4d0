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

{{- define "attache.auditSelector" -}}
app.kubernetes.io/name: attache
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: audit
{{- end }}

{{- /* Not empty where records are collected. The issuer gives the collector its
certificate. */ -}}
{{- define "attache.audit" -}}
{{- if and .Values.audit.enabled (has "issuer" .Values.control.roles) }}yes{{ end -}}
{{- end }}

{{- define "attache.auditConfig" -}}
{{- $a := .Values.audit -}}
{{- $places := list -}}
{{- range $a.checkpoints.sinks -}}
{{- $s := omit . "claim" -}}
{{- if .claim -}}
{{- $_ := set $s "path" (printf "/var/lib/attache-checkpoints/%s/%s" .claim (.path | default "") | trimSuffix "/") -}}
{{- end -}}
{{- $places = append $places $s -}}
{{- end -}}
{{- $out := dict "retention" $a.retention "sinks" $a.sinks "checkpoints" (set (deepCopy $a.checkpoints) "sinks" $places) -}}
{{- if $a.ui.enabled -}}
{{- $ui := omit $a.ui "enabled" "from" "oidc" "sessionKey" -}}
{{- $oidc := omit $a.ui.oidc "clientSecret" -}}
{{- with $a.ui.oidc.clientSecret.secret -}}
{{- $_ := set $oidc "clientSecretFile" (printf "/etc/attache/secrets/%s/%s" . $a.ui.oidc.clientSecret.key) -}}
{{- end -}}
{{- with $a.ui.sessionKey.secret -}}
{{- $_ := set $ui "sessionKeyFile" (printf "/etc/attache/secrets/%s/%s" . $a.ui.sessionKey.key) -}}
{{- end -}}
{{- $_ := set $ui "oidc" $oidc -}}
{{- $_ := set $out "ui" $ui -}}
{{- end -}}
{{- toYaml $out -}}
{{- end }}

{{- /* Claims that checkpoints go to, each once. */ -}}
{{- define "attache.checkpointClaims" -}}
{{- $claims := list -}}
{{- range .Values.audit.checkpoints.sinks }}{{ with .claim }}{{ $claims = append $claims . }}{{ end }}{{ end -}}
{{- $claims | uniq | toJson -}}
{{- end }}
