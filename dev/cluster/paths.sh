# shellcheck shell=bash disable=SC2034
# Where the local cluster keeps its things; source it after lib.sh.
RUN=$STATE/cluster/run
LOG=$STATE/cluster/log
DATA=$STATE/cluster/data
PKI=$STATE/cluster/pki
C=$STATE/cluster/conf
SOCKET=/run/$NETNS-containerd/containerd.sock
