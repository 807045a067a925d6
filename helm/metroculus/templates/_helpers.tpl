{{- define "metroculus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 40 characters, for "-worker-aggregator" comes behind it; a longer one keeps what tells it apart. */ -}}
{{- define "metroculus.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains (include "metroculus.name" .) .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name (include "metroculus.name" .)) -}}
{{- end -}}
{{- if gt (len $name) 40 -}}
{{- $name = printf "%s-%s" (trunc 31 $name | trimSuffix "-" | trimSuffix ".") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* A value as an environment variable holds it: whole numbers without an exponent. */ -}}
{{- define "metroculus.text" -}}
{{- kindIs "string" . | ternary . (toJson .) -}}
{{- end -}}

{{- define "metroculus.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ kindIs "map" . | ternary (dig "name" "" (kindIs "map" . | ternary . dict)) . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* storageClassName of a claim: empty is the cluster's default, "-" is none. */ -}}
{{- define "metroculus.storageClass" -}}
{{- if eq . "-" }}
storageClassName: ""
{{- else if . }}
storageClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "metroculus.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "metroculus.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Labels that never change: dict "root" $ "part" "rest-api". */ -}}
{{- define "metroculus.selector" -}}
app.kubernetes.io/name: {{ include "metroculus.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "metroculus.labels" -}}
{{ include "metroculus.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "metroculus.image" -}}
{{- $image := .image -}}
{{- $name := $image.repository -}}
{{- if .root.Values.global.imageRegistry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .root.Values.global.imageRegistry) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (include "metroculus.text" (default .root.Chart.AppVersion $image.tag)) -}}
{{- end -}}
{{- end -}}

{{- /* A variable out of a secret: dict "name" "QUEUE_URL" "from" .Values.queue. */ -}}
{{- define "metroculus.fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .from.existingSecret | quote }}
      key: {{ .from.key | quote }}
{{- end -}}

{{- define "metroculus.settings" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ include "metroculus.text" $value | quote }}
{{- end }}
{{- end -}}

{{- /* What Metroculus and its worker both need. */ -}}
{{- define "metroculus.environment" -}}
{{- $values := .Values -}}
{{ include "metroculus.fromSecret" (dict "name" "CLUSTER_SECRET" "from" $values.clusterSecret) }}
- name: AUDIT_LOG
  value: "-"
- name: LOG_FORMAT
  value: json
{{- if $values.encryptionKey.existingSecret }}
{{ include "metroculus.fromSecret" (dict "name" "ENCRYPTION_KEY" "from" $values.encryptionKey) }}
{{- end }}
{{- if eq $values.store.kind "clickhouse" }}
{{ include "metroculus.fromSecret" (dict "name" "CLICKHOUSE_URL" "from" $values.store.clickhouse) }}
{{- else }}
- name: CLICKHOUSE_URL
  value: embedded:/data/store
{{- end }}
{{- if eq $values.registry.kind "etcd" }}
- name: REGISTRY_URL
  value: {{ $values.registry.etcdUrl | quote }}
{{- end }}
{{- if $values.registry.etcdUrl }}
- name: CONFIG_URL
  value: {{ $values.registry.etcdUrl | quote }}
- name: WORKER_LOCKS
  value: etcd
{{- end }}
{{- if $values.queue.existingSecret }}
{{ include "metroculus.fromSecret" (dict "name" "QUEUE_URL" "from" $values.queue) }}
{{- end }}
{{- if $values.redis.existingSecret }}
{{ include "metroculus.fromSecret" (dict "name" "REDIS_URL" "from" $values.redis) }}
{{- end }}
{{- if $values.alertWebhook.existingSecret }}
{{ include "metroculus.fromSecret" (dict "name" "ALERT_WEBHOOK_URL" "from" $values.alertWebhook) }}
{{ include "metroculus.fromSecret" (dict "name" "ALERT_WEBHOOK_SECRET" "from" (dict "existingSecret" $values.alertWebhook.existingSecret "key" $values.alertWebhook.secretKey)) }}
{{- end }}
{{- if $values.caBundle.existingConfigMap }}
- name: SSL_CERT_FILE
  value: /etc/metroculus-ca/ca.crt
{{- end }}
{{- include "metroculus.settings" $values.settings }}
{{- end -}}

{{- /* A pod: dict "root" $ "part" "worker" "own" .Values.worker "image" … "args" (list …) "port" 8970 "env" "…" "data" (dict …). */ -}}
{{- define "metroculus.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "metroculus.labels" (dict "root" $root "part" .part) | nindent 4 }}
  {{- with .own.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "metroculus.serviceAccount" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Longer than the longest request, with the pause before it.
  terminationGracePeriodSeconds: 60
  {{- include "metroculus.pullSecrets" $root | nindent 2 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: {{ .part }}
      image: {{ include "metroculus.image" (dict "root" $root "image" .image) }}
      imagePullPolicy: {{ .image.pullPolicy }}
      args:
        {{- toYaml .args | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        privileged: false
        capabilities:
          drop: [ALL]
      ports:
        {{- range $name, $port := .ports }}
        - name: {{ $name }}
          containerPort: {{ $port }}
        {{- end }}
      env:
        - name: DATA_DIR
          value: /data
        {{- .env | nindent 8 }}
        {{- with .own.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: {{ .probed }}}
        periodSeconds: 2
        failureThreshold: 90
      livenessProbe:
        httpGet: {path: /healthz, port: {{ .probed }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: {{ .probed }}}
        periodSeconds: 5
        timeoutSeconds: 5
      lifecycle:
        preStop:
          exec:
            # Routes to the pod are taken away first: what is on its way is still served.
            command: [python, -c, "import time; time.sleep(5)"]
      resources:
        {{- toYaml .own.resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /data
        - name: tmp
          mountPath: /tmp
        {{- if $root.Values.caBundle.existingConfigMap }}
        - name: ca
          mountPath: /etc/metroculus-ca
          readOnly: true
        {{- end }}
        {{- with .own.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if .claim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .claim | quote }}
    {{- else if not .claimed }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- if $root.Values.caBundle.existingConfigMap }}
    - name: ca
      configMap:
        name: {{ $root.Values.caBundle.existingConfigMap | quote }}
        items:
          - key: {{ $root.Values.caBundle.key | quote }}
            path: ca.crt
    {{- end }}
    {{- with .own.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .own.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .own.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .own.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .own.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "metroculus.restApiEnvironment" -}}
{{- $values := .Values -}}
{{ include "metroculus.fromSecret" (dict "name" "CLUSTER_SECRET" "from" $values.clusterSecret) }}
- name: METROCULUS_URL
  value: http://{{ include "metroculus.fullname" . }}:8969
- name: AUDIT_LOG
  value: "-"
- name: LOG_FORMAT
  value: json
{{- if eq $values.directory.kind "mongodb" }}
{{ include "metroculus.fromSecret" (dict "name" "DIRECTORY_URL" "from" $values.directory.mongodb) }}
{{- end }}
{{- if $values.caBundle.existingConfigMap }}
- name: SSL_CERT_FILE
  value: /etc/metroculus-ca/ca.crt
{{- end }}
{{- include "metroculus.settings" $values.restApi.settings }}
{{- end -}}

{{- define "metroculus.diproxyEnvironment" -}}
{{- $values := .Values -}}
{{ include "metroculus.fromSecret" (dict "name" "CLUSTER_SECRET" "from" $values.clusterSecret) }}
- name: METROCULUS_URL
  value: http://{{ include "metroculus.fullname" . }}:8969
- name: AUDIT_LOG
  value: "-"
- name: LOG_FORMAT
  value: json
{{- if $values.caBundle.existingConfigMap }}
- name: SSL_CERT_FILE
  value: /etc/metroculus-ca/ca.crt
{{- end }}
{{- $settings := $values.diproxy.settings | default dict }}
{{- if and (hasKey ($values.settings | default dict) "TENANT_LABEL") (not (hasKey $settings "TENANT_LABEL")) }}
{{- $settings = merge (dict "TENANT_LABEL" (get $values.settings "TENANT_LABEL")) $settings }}
{{- end }}
{{- include "metroculus.settings" $settings }}
{{- end -}}
