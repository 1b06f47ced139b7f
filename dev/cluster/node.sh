# shellcheck shell=bash disable=SC2034 # used by those who source this
# Configuration and command lines of what runs on the one node: containerd, kubelet, kube-proxy.
# Source it after lib.sh with C (configuration), DATA, PKI and SOCKET set; write_node_config writes the files.

write_node_config() {
  mkdir -p "$C/cni" "$DATA"
  : >"$C/resolv.conf"
  cat >"$C/containerd.toml" <<EOF
version = 2
root = "$DATA/containerd"
state = "$(dirname "$SOCKET")"
[grpc]
  address = "$SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/lifeboat/pause:dev"
  # Lowering oom_score_adj needs a capability that containers as hosts often lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$C/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
  path = "$DATA/containerd-opt"
EOF
  cat >"$C/cni/10-lifeboat.conflist" <<EOF
{"cniVersion": "0.4.0", "name": "lifeboat-dev", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$DATA/cni-ipam", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
  cat >"$C/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet-serving.crt
tlsPrivateKeyFile: $PKI/kubelet-serving.key
containerRuntimeEndpoint: unix://$SOCKET
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
readOnlyPort: 0
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
resolvConf: $C/resolv.conf
podLogsDir: $DATA/pod-logs
volumePluginDir: $DATA/volume-plugins
# Images come by import, not from a registry: they must stay, however full the disk.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%"}
nodeStatusUpdateFrequency: 4s
# A drill's pods come and go: quick look-ups of changed Secrets and ConfigMaps.
syncFrequency: 10s
EOF
  cat >"$C/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: node1
clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
EOF
}

# What the kubelet sets for the whole machine; saved before and restored after.
KUBELET_SYSCTLS=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

ctr_() { ctr -a "$SOCKET" -n k8s.io "$@"; }
# import ARCHIVE...: images into containerd, each archive once.
import_images() {
  local archive mark name image
  mkdir -p "$DATA/imported"
  for archive in "$@"; do
    name=$(basename "$archive" .tar)
    image=localhost/lifeboat/${name%-*}
    mark=$DATA/imported/$name.tagged
    [ ! -e "$mark" ] || continue
    ctr_ images import "$archive" >>"$LOG/import.log" 2>&1 || { tail -3 "$LOG/import.log" >&2; die "could not import $archive"; }
    ctr_ images tag --force "$image:dev" "$image:${name##*-}" >>"$LOG/import.log"
    touch "$mark"
    say "imported $name"
  done
}
