{{/* Names are fixed: there is one installation in a cluster, and documents, dashboards and alerts name its parts. */}}
{{- define "hami.labels" -}}
app.kubernetes.io/name: hami
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "hami.selector" -}}
app.kubernetes.io/name: hami
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* metadata of an object: (list . "name" "component") */}}
{{- define "hami.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "hami.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ index . 2 }}
{{- end }}

{{- define "hami.clusterMetadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
labels:
  {{- include "hami.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ index . 2 }}
{{- end }}

{{/* An image: (list . image "the tag where none is given") */}}
{{- define "hami.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $repository := $image.repository }}
{{- with $root.Values.global.imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^[^/]*[.:][^/]*/" $repository "") }}
{{- end }}
{{- if $image.digest }}{{ printf "%s@%s" $repository $image.digest }}
{{- else }}{{ printf "%s:%s" $repository ($image.tag | default (index . 2)) }}{{ end }}
{{- end }}

{{/* The version of the cluster without what vendors write behind it. */}}
{{- define "hami.kubeVersion" -}}
{{- regexFind "^v[0-9]+\\.[0-9]+\\.[0-9]+" .Capabilities.KubeVersion.Version }}
{{- end }}

{{- define "hami.resourceArgs" -}}
- --resource-name={{ .Values.resourceName }}
- --resource-mem={{ .Values.resourceMem }}
- --resource-mem-percentage={{ .Values.resourceMemPercentage }}
- --resource-cores={{ .Values.resourceCores }}
- --resource-priority={{ .Values.resourcePriority }}
{{- end }}

{{/* Of a container that needs nothing: what the pod security standard "restricted" asks for. */}}
{{- define "hami.restricted" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Probes: (dict "port" "name of the port") */}}
{{- define "hami.probes" -}}
startupProbe:
  httpGet: {path: /startupz, port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- define "hami.pull" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hami.placing" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hami.hasServiceMonitors" -}}
{{- if and .Values.monitor.serviceMonitor.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor") }}true{{ end }}
{{- end }}

{{- define "hami.tlsSecret" -}}
{{- .Values.scheduler.existingSecret | default "hami-scheduler-tls" }}
{{- end }}

{{- define "hami.keepsCertificate" -}}
{{- if not (or .Values.scheduler.certManager.enabled .Values.scheduler.existingSecret) }}true{{ end }}
{{- end }}
