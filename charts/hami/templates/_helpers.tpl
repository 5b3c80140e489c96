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

{{/* Two where the cluster itself outlives the end of one machine. A template that is rendered without a cluster has one, as has
a managed cluster, which hides its control plane. */}}
{{- define "hami.replicas" -}}
{{- if .Values.scheduler.replicas }}{{ .Values.scheduler.replicas }}
{{- else }}
{{- $planes := 0 }}
{{- range (lookup "v1" "Node" "" "").items }}
{{- if hasKey (.metadata.labels | default dict) "node-role.kubernetes.io/control-plane" }}{{ $planes = add1 $planes }}{{ end }}
{{- end }}
{{- if gt (int $planes) 1 }}2{{ else }}1{{ end }}
{{- end }}
{{- end }}

{{/* Whether the extender keeps what fragmentation-aware has learned. */}}
{{- define "hami.keepsRequestMix" -}}
{{- $policies := .Values.scheduler.defaultSchedulerPolicy }}
{{- if or (contains "fragmentation-aware" $policies.nodeSchedulerPolicy) (contains "fragmentation-aware" $policies.gpuSchedulerPolicy) }}true{{ end }}
{{- end }}

{{- define "hami.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* metadata of an object: (list . "name" "component"), and on demand more labels and annotations of its own */}}
{{- define "hami.metadata" -}}
name: {{ index . 1 }}
namespace: {{ include "hami.namespace" (index . 0) }}
{{ include "hami.describedBy" . }}
{{- end }}

{{- define "hami.clusterMetadata" -}}
name: {{ index . 1 }}
{{ include "hami.describedBy" . }}
{{- end }}

{{- define "hami.describedBy" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "hami.labels" $root | nindent 2 }}
  {{- with index . 2 }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- $own := dict }}{{ if gt (len .) 3 }}{{ $own = index . 3 | default dict }}{{ end }}
  {{- with merge (dict) $own $root.Values.global.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $own = dict }}{{ if gt (len .) 4 }}{{ $own = index . 4 | default dict }}{{ end }}
{{- with merge (dict) $own $root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
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

{{/* What brings the driver into our own pods. Source: contract of NVIDIA's container toolkit. */}}
{{- define "hami.driver" -}}
{{- $plugin := .Values.devicePlugin }}
{{- if ne $plugin.driver "auto" }}{{ $plugin.driver }}
{{- else if not (has $plugin.nvidiaDriverRoot (list "" "auto")) }}hostPath
{{- else if or $plugin.runtimeClassName $plugin.createRuntimeClass (lookup "node.k8s.io/v1" "RuntimeClass" "" "nvidia") }}runtimeClass
{{- else }}hostPath
{{- end }}
{{- end }}

{{- define "hami.driverRoot" -}}
{{- $plugin := .Values.devicePlugin }}
{{- if has $plugin.nvidiaDriverRoot (list "" "auto") }}{{ $plugin.driverRoot }}{{ else }}{{ $plugin.nvidiaDriverRoot }}{{ end }}
{{- end }}

{{/* The labels of the nodes with GPUs, as YAML. The default is not in values.yaml, because helm would add it to others. */}}
{{- define "hami.nodeSelector" -}}
{{- $plugin := .Values.devicePlugin }}
{{- $plugin.nvidiaNodeSelector | default $plugin.nvidianodeSelector | default (dict "gpu" "on") | toYaml }}
{{- end }}

{{/* Where the pods of the nodes' agents may run. */}}
{{- define "hami.onNodes" -}}
{{- $plugin := .Values.devicePlugin }}
{{- include "hami.placing" (dict "nodeSelector" (include "hami.nodeSelector" . | fromYaml) "tolerations" $plugin.tolerations "affinity" $plugin.affinity) }}
{{- end }}

{{/* The settings of single nodes as JSON, {"nodeconfig": […]}: of a list, or of HAMi's object. */}}
{{- define "hami.nodeConfiguration" -}}
{{- $given := .Values.devicePlugin.nodeConfiguration }}
{{- if kindIs "slice" $given }}{{ toJson (dict "nodeconfig" $given) }}
{{- else if $given.config }}
{{- $read := $given.config | fromJson }}
{{- if or $read.Error (not (kindIs "slice" $read.nodeconfig)) }}
{{- fail (printf "devicePlugin.nodeConfiguration.config is not JSON with a list nodeconfig: %s" ($read.Error | default "no list nodeconfig in it")) }}
{{- end }}
{{- toJson $read }}
{{- else }}{"nodeconfig": []}{{ end }}
{{- end }}

{{/* The ConfigMap of the settings of single nodes. */}}
{{- define "hami.nodeConfigMap" -}}
{{- $given := .Values.devicePlugin.nodeConfiguration }}
{{- $name := "" }}{{ if kindIs "map" $given }}{{ $name = $given.externalConfigName }}{{ end }}
{{- $name | default "hami-device-plugin" }}
{{- end }}

{{/* Whether a node may use one of some kinds of isolation: (list . "auto" "mps") */}}
{{- define "hami.mayUse" -}}
{{- $plugin := (first .).Values.devicePlugin }}{{ $kinds := rest . }}
{{- $found := has $plugin.isolation $kinds }}
{{- range (include "hami.nodeConfiguration" (first .) | fromJson).nodeconfig }}{{ if has (.operatingmode | default "") $kinds }}{{ $found = true }}{{ end }}{{ end }}
{{- if $found }}true{{ end }}
{{- end }}

{{/* securityContext of a container that talks to the driver: (list . "CAPABILITY" …), those it needs in any case */}}
{{- define "hami.driverSecurity" -}}
{{- $root := first . }}{{ $capabilities := rest . }}
{{- if eq (include "hami.driver" $root) "hostPath" }}
# No runtime opens the driver's device files for it.
privileged: true
{{- else }}
{{- if $root.Values.devicePlugin.mig.enabled }}
{{- /* The driver reports and changes MIG instances only for callers with this capability. */}}
{{- $capabilities = append $capabilities "SYS_ADMIN" }}
{{- end }}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]{{ with $capabilities }}, add: [{{ join ", " . }}]{{ end }}}
{{- end }}
readOnlyRootFilesystem: true
{{- end }}

{{/* Environment by which NVIDIA's runtime brings the driver: (list . "capabilities" "MIG variables") */}}
{{- define "hami.driverEnvironment" -}}
- {name: NVIDIA_VISIBLE_DEVICES, value: all}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: {{ index . 1 | quote }}}
{{- if (first .).Values.devicePlugin.mig.enabled }}
{{- range slice . 2 }}
- {name: {{ . }}, value: all}
{{- end }}
{{- end }}
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

{{/* Probes: (dict "port" "name of the port" "probes" values), and "scheme" where it is not HTTP */}}
{{- define "hami.probes" -}}
{{- range $kind := list "startup" "liveness" "readiness" }}
{{- with index $.probes $kind }}
{{ $kind }}Probe:
  httpGet: {path: {{ .path | quote }}, port: {{ $.port }}{{ with $.scheme }}, scheme: {{ . }}{{ end }}}
  initialDelaySeconds: {{ .initialDelaySeconds }}
  periodSeconds: {{ .periodSeconds }}
  timeoutSeconds: {{ .timeoutSeconds }}
  failureThreshold: {{ .failureThreshold }}
{{- end }}
{{- end }}
{{- end }}

{{/* The paths of the probes as flags of the process. */}}
{{- define "hami.probeArgs" -}}
- --startupz-path={{ .startup.path }}
- --livez-path={{ .liveness.path }}
- --readyz-path={{ .readiness.path }}
{{- end }}

{{- define "hami.pull" -}}
{{- with concat .Values.imagePullSecrets .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}}
  {{- end }}
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

{{/* Whether there are monitors: they are in the pods of the device plugin. */}}
{{- define "hami.hasMonitors" -}}
{{- if and .Values.devicePlugin.enabled .Values.monitor.enabled }}true{{ end }}
{{- end }}

{{/* Whether GPUs are hidden from containers that request none; HAMi's name is a word or a boolean. */}}
{{- define "hami.hidesGpus" -}}
{{- or .Values.scheduler.admissionWebhook.hideGpus (eq (toString .Values.scheduler.overwriteEnv) "true") }}
{{- end }}

{{- define "hami.hasServiceMonitors" -}}
{{- if and .Values.monitor.serviceMonitor.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor") }}true{{ end }}
{{- end }}

{{/* The alerts with the limits, durations and the runbooks' address of the values. */}}
{{- define "hami.rules" -}}
{{- $file := .Files.Get "files/rules.yaml" | fromYaml }}
{{- if .Values.prometheusRule.workloads }}
{{- $workloads := .Files.Get "files/workload-rules.yaml" | fromYaml }}
{{- $_ := set $file "groups" (concat $file.groups $workloads.groups) }}
{{- end }}
{{- $limits := .Files.Get "files/rule-limits.yaml" | fromYaml }}
{{- $thresholds := .Values.prometheusRule.thresholds | default dict }}
{{- $names := list }}
{{- range $group := $file.groups }}
{{- range $rule := $group.rules }}
{{- $names = append $names $rule.alert }}
{{- $own := get $thresholds $rule.alert | default dict }}
{{- if hasKey $own "limit" }}
{{- $known := get $limits $rule.alert }}
{{- if not $known }}{{ fail (printf "prometheusRule.thresholds.%s.limit: this alert has no limit, only a duration (for)" $rule.alert) }}{{ end }}
{{- $_ := set $rule "expr" (replace "%LIMIT%" (kindIs "string" $own.limit | ternary $own.limit (toJson $own.limit)) $known.expr) }}
{{- end }}
{{- with get $own "for" }}{{ $_ := set $rule "for" . }}{{ end }}
{{- with $.Values.prometheusRule.runbookUrl }}
{{- $_ := set (unset $rule.annotations "runbook") "runbook_url" (printf "%s/runbooks/%s.html" (trimSuffix "/" .) $rule.alert) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $_ := $thresholds }}
{{- if not (has $name $names) }}
{{- if hasKey $limits $name }}{{ fail (printf "prometheusRule.thresholds.%s: this alert needs prometheusRule.workloads: true" $name) }}{{ end }}
{{- fail (printf "prometheusRule.thresholds.%s: there is no such alert; docs/reference/alerts.md lists them" $name) }}
{{- end }}
{{- end }}
{{- toYaml $file }}
{{- end }}

{{/* A dashboard with the addresses of the values: (list . "its JSON") */}}
{{- define "hami.dashboard" -}}
{{- $root := first . }}{{ $text := last . }}
{{- $addresses := dict "webui" $root.Values.dashboards.webuiUrl "runbooks" $root.Values.prometheusRule.runbookUrl }}
{{- if or (get $addresses "webui") (get $addresses "runbooks") }}
{{- $board := $text | fromJson }}
{{- range $variable := $board.templating.list }}
{{- with get $addresses $variable.name }}
{{- $address := trimSuffix "/" . }}
{{- $_ := set $variable "query" $address }}
{{- $_ := set $variable "current" (dict "text" $address "value" $address) }}
{{- end }}
{{- end }}
{{- $text = toPrettyJson $board }}
{{- end }}
{{- $text }}
{{- end }}

{{- define "hami.tlsSecret" -}}
{{- .Values.scheduler.existingSecret | default "hami-scheduler-tls" }}
{{- end }}

{{- define "hami.keepsCertificate" -}}
{{- if not (or .Values.scheduler.certManager.enabled .Values.scheduler.existingSecret) }}true{{ end }}
{{- end }}

{{- /* What two policies say of metadata: (dict "annotations" "its CEL list of keys" "labels" "likewise"). Maps are compared as
wholes, which is cheap. A loop over one is not (its cost grows with the square), so it ends at a size that no honest object has. */}}
{{- define "hami.metadataVariables" -}}
- name: annotationKeys
  expression: "{{ .annotations }}"
- name: labelKeys
  expression: "{{ .labels }}"
- name: annotations
  expression: "has(object.metadata.annotations) ? object.metadata.annotations : {}"
- name: oldAnnotations
  expression: "oldObject != null && has(oldObject.metadata.annotations) ? oldObject.metadata.annotations : {}"
- name: labels
  expression: "has(object.metadata.labels) ? object.metadata.labels : {}"
- name: oldLabels
  expression: "oldObject != null && has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}"
- name: sameMetadata
  expression: >-
    (oldObject == null || object.metadata.?finalizers == oldObject.metadata.?finalizers
                          && object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences)
    && (variables.annotations == variables.oldAnnotations
        || variables.annotations.size() <= 1000 && variables.oldAnnotations.size() <= 1000
           && variables.annotations.all(key, key in variables.annotationKeys
                || key in variables.oldAnnotations && variables.oldAnnotations[key] == variables.annotations[key])
           && variables.oldAnnotations.all(key, key in variables.annotationKeys || key in variables.annotations))
    && (variables.labels == variables.oldLabels
        || variables.labels.size() <= 1000 && variables.oldLabels.size() <= 1000
           && variables.labels.all(key, key in variables.labelKeys
                || key in variables.oldLabels && variables.oldLabels[key] == variables.labels[key])
           && variables.oldLabels.all(key, key in variables.labelKeys || key in variables.labels))
{{- end }}
{{/* A file with the names of the resources that these values set: the file's text, the values, and the words before a name. */}}
{{- define "hami.withResourceNames" -}}
{{- $text := index . 0 -}}
{{- $values := index . 1 -}}
{{- $before := index . 2 -}}
{{- $names := dict "nvidia.com/gpu" $values.resourceName "nvidia.com/gpumem" $values.resourceMem "nvidia.com/gpumem-percentage" $values.resourceMemPercentage "nvidia.com/gpucores" $values.resourceCores "nvidia.com/priority" $values.resourcePriority -}}
{{- $lines := list -}}
{{- range splitList "\n" $text -}}
{{- $read := . -}}
{{- $line := $read -}}
{{- range $name, $own := $names -}}
{{- if hasSuffix (printf "%s%s" $before $name) $read -}}
{{- $line = printf "%s%s" (trimSuffix $name $read) $own -}}
{{- end -}}
{{- end -}}
{{- $lines = append $lines $line -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}
