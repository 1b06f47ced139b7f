# shellcheck shell=bash disable=SC2034 # used by those who source this
# Where a server of dev/server keeps its things; source it after lib.sh, then call `server NAME`.
server() {
  [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,11}$ ]] || die "a server's name has up to 12 small letters, digits and '-': '$1'"
  NAME=$1
  HOME_DIR=$STATE/servers/$NAME DISK=$STATE/servers/$NAME/disk.raw TAP=lb-$NAME QMP=$STATE/servers/$NAME/qmp.sock
  RUN=$STATE/servers/$NAME/run
  LOG=$STATE/servers/$NAME/log
}
address() { cat "$HOME_DIR/address" 2>/dev/null || die "there is no server '$NAME': dev/server/up $NAME"; }
# Commands in the guest. The host key is not known beforehand; the network is ours alone.
guest() {
  in_ns ssh -q -i "$HOME_DIR/ssh_key" -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o StrictHostKeyChecking=accept-new \
    -o "UserKnownHostsFile=$HOME_DIR/known_hosts" -o LogLevel=ERROR "root@$(address)" "$@"
}
