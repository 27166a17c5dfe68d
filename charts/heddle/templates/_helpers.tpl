{{/* Names are fixed: sidecars, the webhook's certificate and the rights all say them. There is one Heddle in a cluster. */}}
{{- define "heddle.labels" -}}
{{ include "heddle.selector" . }}
app.kubernetes.io/part-of: heddle
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "heddle.selector" -}}
app.kubernetes.io/name: heddle-control-plane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Called with (dict "all" .Values.image "own" .Values.x.image "version" .Chart.AppVersion). */}}
{{- define "heddle.image" -}}
{{- with .all.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .own.repository }}
{{- if .own.digest }}@{{ .own.digest }}{{ else }}:{{ .all.tag | default .version }}{{ end }}
{{- end }}

{{/* Called with (dict "host" … "port" …). */}}
{{- define "heddle.listen" -}}
{{- if contains ":" .host }}[{{ .host }}]{{ else }}{{ .host }}{{ end }}:{{ .port }}
{{- end }}

{{- define "heddle.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
{{- end }}

{{- define "heddle.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
