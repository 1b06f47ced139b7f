{{/* Name of everything that the chart makes: the release's, with the chart's if it is not in it. */}}
{{- define "lifeboat.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lifeboat.selectorLabels" -}}
app.kubernetes.io/name: lifeboat
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "lifeboat.labels" -}}
{{ include "lifeboat.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Full name of an image: its own value, or repository, name and tag. Called with (list $ "key" "name"). */}}
{{- define "lifeboat.image" -}}
{{- $root := index . 0 -}}
{{- $own := index $root.Values.images (index . 1) -}}
{{- if $own -}}
{{- $own -}}
{{- else -}}
{{- $repository := required "set images.repository to where the images of Lifeboat are, such as registry.contoso.com/lifeboat" $root.Values.images.repository -}}
{{- printf "%s/%s:%s" $repository (index . 2) ($root.Values.images.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
