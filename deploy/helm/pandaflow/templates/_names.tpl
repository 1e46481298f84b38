{{- define "pandaflow.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 24 | trimSuffix "-" -}}
{{- end -}}

{{/* Called with (dict "top" $ "part" "server"). */}}
{{- define "pandaflow.selector" -}}
app.kubernetes.io/name: {{ .top.Chart.Name }}
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "pandaflow.labels" -}}
{{ include "pandaflow.selector" . }}
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .top.Chart.Name .top.Chart.Version }}
{{- end -}}

{{- define "pandaflow.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "pandaflow.policyConfigMap" -}}
{{- default (printf "%s-policy" (include "pandaflow.name" .)) .Values.policyConfigMap -}}
{{- end -}}

{{- define "pandaflow.scheme" -}}
{{- if .Values.server.tlsSecret -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{- define "pandaflow.pilotNamespace" -}}
{{- default .Release.Namespace .Values.harvester.pilotNamespace -}}
{{- end -}}

{{/* What all pods have in common; called with top, part and values of the part. */}}
{{- define "pandaflow.pod" -}}
serviceAccountName: {{ include "pandaflow.name" .top }}-{{ .part }}
automountServiceAccountToken: {{ eq .part "harvester" }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .top.Values.user }}
  runAsGroup: {{ .top.Values.user }}
  fsGroup: {{ .top.Values.user }}
  seccompProfile:
    type: RuntimeDefault
{{- with .top.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "pandaflow.selector" . | nindent 8 }}
{{- end -}}

{{- define "pandaflow.container" -}}
image: {{ include "pandaflow.image" .top }}
imagePullPolicy: {{ .top.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* URL of the state store, never on a command line. */}}
{{- define "pandaflow.storeEnv" -}}
- name: PANDAFLOW_STORE
  valueFrom:
    secretKeyRef:
      name: {{ .Values.store.secret }}
      key: {{ .Values.store.key }}
{{- end -}}

{{/* How a runner or a harvester finds the server and shows who it is. */}}
{{- define "pandaflow.clientEnv" -}}
- name: HOME
  value: /tmp
- name: PANDAFLOW_SERVER
  value: {{ .top.Values.url | quote }}
{{- if .top.Values.caConfigMap }}
- name: PANDAFLOW_CA
  value: /etc/pandaflow/ca/ca.pem
- name: SSL_CERT_FILE
  value: /etc/pandaflow/ca/ca.pem
{{- end }}
{{- with .values.credentials }}
{{- if .clientId }}
- name: PANDAFLOW_CLIENT_ID
  value: {{ .clientId | quote }}
- name: PANDAFLOW_ISSUER
  value: {{ required "credentials.issuer is needed with credentials.clientId" .issuer | quote }}
- name: PANDAFLOW_CLIENT_SECRET_FILE
  value: /etc/pandaflow/client/client-secret
{{- with .audience }}
- name: PANDAFLOW_AUDIENCE
  value: {{ . | quote }}
{{- end }}
{{- with .scopes }}
- name: PANDAFLOW_SCOPES
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "pandaflow.clientMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .top.Values.caConfigMap }}
- name: ca
  mountPath: /etc/pandaflow/ca
  readOnly: true
{{- end }}
{{- if .values.credentials.clientId }}
- name: client
  mountPath: /etc/pandaflow/client
  readOnly: true
{{- end }}
{{- end -}}

{{- define "pandaflow.clientVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if .top.Values.caConfigMap }}
- name: ca
  configMap:
    name: {{ .top.Values.caConfigMap }}
{{- end }}
{{- with .values.credentials }}
{{- if .clientId }}
- name: client
  secret:
    secretName: {{ required "credentials.secret is needed with credentials.clientId" .secret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end -}}
