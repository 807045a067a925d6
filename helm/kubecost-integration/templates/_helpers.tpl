{{- define "integration.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "integration.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains (include "integration.name" .) .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name (include "integration.name" .)) -}}
{{- end -}}
{{- if gt (len $name) 50 -}}
{{- $name = printf "%s-%s" (trunc 41 $name | trimSuffix "-" | trimSuffix ".") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* A value as an environment variable holds it: whole numbers without an exponent. */ -}}
{{- define "integration.text" -}}
{{- kindIs "string" . | ternary . (toJson .) -}}
{{- end -}}

{{- define "integration.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ kindIs "map" . | ternary (dig "name" "" (kindIs "map" . | ternary . dict)) . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "integration.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "integration.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Labels that never change: dict "root" $ "part" "agent". */ -}}
{{- define "integration.selector" -}}
app.kubernetes.io/name: {{ include "integration.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "integration.labels" -}}
{{ include "integration.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "integration.image" -}}
{{- $image := .Values.agent.image -}}
{{- $name := $image.repository -}}
{{- if .Values.global.imageRegistry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .Values.global.imageRegistry) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (include "integration.text" (default .Chart.AppVersion $image.tag)) -}}
{{- end -}}
{{- end -}}

{{- /* How the Kubecost of this chart names itself: the same rule as every chart's. */ -}}
{{- define "integration.kubecostName" -}}
{{- $own := dig "fullnameOverride" "" .Values.kubecost -}}
{{- if $own -}}
{{- $own | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default "kubecost" (dig "nameOverride" "" .Values.kubecost) -}}
{{- contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Where the Kubecost of this chart is. */ -}}
{{- define "integration.kubecostUrl" -}}
{{- if .Values.agent.kubecostUrl -}}
{{- .Values.agent.kubecostUrl -}}
{{- else if not .Values.agent.opencostUrl -}}
{{- printf "http://%s:%v" (include "integration.kubecostName" .) (dig "service" "port" 9090 .Values.kubecost) -}}
{{- end -}}
{{- end -}}

{{- define "integration.environment" -}}
- name: METROCULUS_AGENT_TO
  value: {{ .Values.gateway.url | quote }}
- name: METROCULUS_AGENT_ACCOUNT
  value: {{ .Values.gateway.account | quote }}
- name: METROCULUS_AGENT_TOKEN_FILE
  value: /etc/metroculus-agent/token
{{- with .Values.agent.opencostUrl }}
- name: METROCULUS_AGENT_OPENCOST
  value: {{ . | quote }}
{{- end }}
{{- with include "integration.kubecostUrl" . }}
- name: METROCULUS_AGENT_KUBECOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.agent.currency }}
- name: METROCULUS_AGENT_CURRENCY
  value: {{ . | quote }}
{{- end }}
- name: METROCULUS_AGENT_POLL
  value: {{ include "integration.text" .Values.agent.pollSeconds | quote }}
- name: METROCULUS_AGENT_TIMEOUT
  value: {{ include "integration.text" .Values.agent.timeoutSeconds | quote }}
- name: LOG_FORMAT
  value: json
{{- if .Values.caBundle.existingConfigMap }}
- name: METROCULUS_AGENT_CA
  value: /etc/metroculus-ca/ca.crt
{{- end }}
{{- end -}}

{{- define "integration.mounts" -}}
- name: token
  mountPath: /etc/metroculus-agent
  readOnly: true
{{- if .Values.caBundle.existingConfigMap }}
- name: ca
  mountPath: /etc/metroculus-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "integration.volumes" -}}
- name: token
  secret:
    secretName: {{ .Values.gateway.token.existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ .Values.gateway.token.key | quote }}
        path: token
{{- if .Values.caBundle.existingConfigMap }}
- name: ca
  configMap:
    name: {{ .Values.caBundle.existingConfigMap | quote }}
    items:
      - key: {{ .Values.caBundle.key | quote }}
        path: ca.crt
{{- end }}
{{- end -}}

{{- define "integration.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "integration.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: [ALL]
{{- end -}}
