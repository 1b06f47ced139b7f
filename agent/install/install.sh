#!/bin/sh
# Installs the Lifeboat agent on this machine and enrols it. The command that `kubectl lifeboat enroll` prints
# downloads and runs it; nothing comes from anywhere but the appliance. Safe to run again.
#
#   LIFEBOAT_MANAGEMENT       host:port of the appliance's management endpoint
#   LIFEBOAT_CA               file with the appliance's CA certificate
#   LIFEBOAT_PIN              sha256//… of the management endpoint's public key
#   LIFEBOAT_ENROLMENT_TOKEN  one-time token (environment only: it must not stand in a process list)
#   LIFEBOAT_BIN_DIR          where the program goes; /usr/local/bin when not set
set -eu

say() { printf 'lifeboat: %s\n' "$*"; }
fail() { printf 'lifeboat: %s\n' "$*" >&2; exit 1; }

check_machine() {
  [ "$(id -u)" = 0 ] || fail 'run this as root (tracking disks needs it)'
  [ "$(uname -s)" = Linux ] || fail "only Linux servers can be protected, this is $(uname -s)"
  [ "$(uname -m)" = x86_64 ] || fail "only x86_64 servers can be protected, this is $(uname -m)"
  [ -d /run/systemd/system ] || fail 'systemd does not run here; the agent is started by it'
  command -v curl >/dev/null || fail 'curl is missing: install it with the package manager of this machine'
}

check_invitation() {
  for name in LIFEBOAT_MANAGEMENT LIFEBOAT_CA LIFEBOAT_PIN LIFEBOAT_ENROLMENT_TOKEN; do
    eval "value=\${$name:-}"
    [ -n "$value" ] || fail "$name is not set: run the whole command that 'kubectl lifeboat enroll' prints"
  done
  [ -r "$LIFEBOAT_CA" ] || fail "cannot read $LIFEBOAT_CA: run the whole command that 'kubectl lifeboat enroll' prints"
}

download() {
  binary=$bin_dir/lifeboat-agent
  partial=$bin_dir/.lifeboat-agent.partial
  trap 'rm -f "$partial"' EXIT
  mkdir -p "$bin_dir"
  say "downloading the agent from $LIFEBOAT_MANAGEMENT"
  curl -fsS --retry 3 --connect-timeout 10 --cacert "$LIFEBOAT_CA" --pinnedpubkey "$LIFEBOAT_PIN" \
    -o "$partial" "https://$LIFEBOAT_MANAGEMENT/lifeboat-agent" ||
    fail "cannot download from https://$LIFEBOAT_MANAGEMENT/lifeboat-agent: check the network path, or get a new command with 'kubectl lifeboat enroll'"
  chmod 755 "$partial"
  "$partial" --version >/dev/null || fail 'the agent does not run on this machine'
  # By rename: a running agent keeps its file.
  mv -f "$partial" "$binary"
}

main() {
  bin_dir=${LIFEBOAT_BIN_DIR:-/usr/local/bin}
  check_machine
  check_invitation
  download
  say 'enrolling'
  "$binary" enroll --management "$LIFEBOAT_MANAGEMENT" --ca "$LIFEBOAT_CA" --pin "$LIFEBOAT_PIN"
  unset LIFEBOAT_ENROLMENT_TOKEN
  say 'installing the services'
  "$binary" install
  say 'done: watch the ProtectedServer, or journalctl -u lifeboat-agent here'
}

# Last, so that a half downloaded script does nothing.
main
