{{/* Prefix of all names. */}}
{{- define "longflow.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The alert rules look for "longflow" in the scrape job, which is named after this. */}}
{{- define "longflow.monitorName" -}}
{{- $name := include "longflow.fullname" . -}}
{{- if contains "longflow" $name }}{{ $name }}{{ else }}{{ $name }}-longflow{{ end -}}
{{- end }}

{{- define "longflow.serverSelector" -}}
app.kubernetes.io/name: sglang-longflow
app.kubernetes.io/instance: {{ include "longflow.fullname" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "longflow.routerSelector" -}}
app.kubernetes.io/name: sglang-longflow
app.kubernetes.io/instance: {{ include "longflow.fullname" . }}
app.kubernetes.io/component: router
{{- end }}

{{- define "longflow.pickerSelector" -}}
app.kubernetes.io/name: sglang-longflow
app.kubernetes.io/instance: {{ include "longflow.fullname" . }}
app.kubernetes.io/component: endpoint-picker
{{- end }}

{{- define "longflow.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sglang-longflow
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "longflow.labels" -}}
{{ include "longflow.serverSelector" . }}
{{ include "longflow.commonLabels" . }}
{{- end }}

{{- define "longflow.routerLabels" -}}
{{ include "longflow.routerSelector" . }}
{{ include "longflow.commonLabels" . }}
{{- end }}

{{- define "longflow.pickerLabels" -}}
{{ include "longflow.pickerSelector" . }}
{{ include "longflow.commonLabels" . }}
{{- end }}

{{/* What clients use: the router where there is one. */}}
{{- define "longflow.clientService" -}}
{{ include "longflow.fullname" . }}{{ ternary "-router" "" .Values.router.enabled }}
{{- end }}

{{- define "longflow.clientPort" -}}
{{ ternary .Values.router.port .Values.service.port .Values.router.enabled }}
{{- end }}

{{- define "longflow.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ ternary "@" ":" (hasPrefix "sha256:" $tag) }}{{ $tag }}
{{- end }}

{{/* The most servers that may run at once. */}}
{{- define "longflow.mostReplicas" -}}
{{- if eq .Values.autoscaling.kind "none" }}{{ .Values.replicas }}{{ else }}{{ .Values.autoscaling.maxReplicas }}{{ end -}}
{{- end }}

{{- define "longflow.claimName" -}}
{{- .Values.modelCache.existingClaim | default (printf "%s-models" (include "longflow.fullname" .)) -}}
{{- end }}

{{- define "longflow.graceSeconds" -}}
{{- add .Values.shutdown.preStopSeconds .Values.shutdown.longestGenerationSeconds 30 -}}
{{- end }}

{{/* What a request may take in all: it may wait for a row as long as it then generates. */}}
{{- define "longflow.requestSeconds" -}}
{{- mul 2 .Values.shutdown.longestGenerationSeconds -}}
{{- end }}

{{- define "longflow.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "longflow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /*
The gauges of one release, as requests. `max` is over what one scheduler reports more than once: its
ranks, and scrapes by two jobs. `sum` is over schedulers: pods, and data-parallel ones in a pod.
priority="" is the total, and also matches where there is no such label.
*/ -}}
{{- define "longflow.requests" -}}
sum(max by (namespace, pod, dp_rank) (sglang:{{ .metric }}{
namespace="{{ .root.Release.Namespace }}",
pod=~"{{ include "longflow.fullname" .root }}-[a-z0-9]+-[a-z0-9]+", priority=""}))
{{- end }}

{{- define "longflow.loadQuery" -}}
{{ include "longflow.requests" (dict "root" . "metric" "num_running_reqs") }}
+ {{ include "longflow.requests" (dict "root" . "metric" "num_queue_reqs") }}
{{- end }}

{{- define "longflow.queueQuery" -}}
{{ include "longflow.requests" (dict "root" . "metric" "num_queue_reqs") }}
{{- end }}

{{- define "longflow.loadThreshold" -}}
{{- max 1 (div (mul .Values.autoscaling.rowsPerReplica .Values.autoscaling.targetPercent) 100) -}}
{{- end }}

{{- define "longflow.queueThreshold" -}}
{{- max 1 (div (mul .Values.autoscaling.rowsPerReplica .Values.autoscaling.queuePercent) 100) -}}
{{- end }}

{{/* One server at a time is removed, slowly: it has to drain. Adding may double them. */}}
{{- define "longflow.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - type: Percent
      value: 100
      periodSeconds: 60
    - type: Pods
      value: 2
      periodSeconds: 60
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ .Values.autoscaling.scaleDownPeriodSeconds }}
{{- end }}

{{- define "longflow.namespaces" -}}
{{- range . }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- end }}

{{- define "longflow.clients" -}}
- podSelector: {}
{{- include "longflow.namespaces" .Values.networkPolicy.clientNamespaces }}
{{- end }}

{{- /*
How the endpoint picker chooses. Free rows count most: 1 - running requests / row capacity. The queue
decides where no server has any. Servers are drawn by their score, not the best one taken: the gauges are
up to a second old, and a burst would go to one server. The picker's KV usage would be the pool's share in
use, which stays near 1 once prefixes are cached.
*/ -}}
{{- define "longflow.pickerConfig" -}}
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: metrics-data-source
  - type: core-metrics-extractor
    parameters:
      defaultEngine: sglang
      engineConfigs:
        - name: sglang
          queuedRequestsSpec: sglang:num_queue_reqs
          runningRequestsSpec: sglang:num_running_reqs
          kvUsageSpec: sglang_longflow_rows_used_ratio
  - name: free-rows
    type: kv-cache-utilization-scorer
  - type: queue-scorer
  {{- if eq .Values.inferencePool.parser "openai-parser" }}
  - type: prefix-cache-scorer
    parameters:
      autoTune: false
      blockSizeTokens: 64
  {{- end }}
  - type: weighted-random-picker
  # Requests of a negative priority are refused when rows and queue are full.
  - type: utilization-detector
    parameters:
      kvCacheUtilThreshold: 0.95
      queueDepthThreshold: {{ include "longflow.queueThreshold" . }}
      metricsStalenessThreshold: 5s
  - type: {{ .Values.inferencePool.parser }}
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: free-rows
        weight: 8
      - pluginRef: queue-scorer
        weight: 1
      {{- if eq .Values.inferencePool.parser "openai-parser" }}
      - pluginRef: prefix-cache-scorer
        weight: 4
      {{- end }}
      - pluginRef: weighted-random-picker
saturationDetector:
  pluginRef: utilization-detector
parser:
  pluginRef: {{ .Values.inferencePool.parser }}
{{- end }}
