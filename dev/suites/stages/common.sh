# shellcheck shell=bash
# What the stages of 60-end-to-end share. Source it after dev/lib.sh.

NAMESPACE=lifeboat-demo
k() { "$DEV/in" kubectl -n "$NAMESPACE" "$@"; }
lifeboat() { "$DEV/in" kubectl-lifeboat -n "$NAMESPACE" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
server_() { "$DEV/server/ssh" db-1 "$@"; }
# Is the machine on?
# shellcheck disable=SC2034 # used by alive
server_runs() (RUN=$STATE/servers/db-1/run; alive qemu)
# Bytes that the process server has received since it was started.
received() {
  local address
  address=$(k get pods -l app.kubernetes.io/component=process-server -o 'jsonpath={.items[0].status.podIP}')
  "$DEV/in" curl -s --max-time 10 "http://$address:8080/metrics" | awk '/^lifeboat_process_server_server_received_bytes_total\{/ {printf "%d\n", $NF}'
}
# seconds_of TIME: since 1970; 0 of none.
seconds_of() { if [ -n "$1" ]; then date -d "$1" +%s; else echo 0; fi; }
# protected_since SECONDS LIMIT: waits until db-1 is protected by a point that is not older.
protected_since() {
  local began=$SECONDS
  until [ "$(k get pserver db-1 -o 'jsonpath={.status.phase}')" = Protected ] &&
    [ "$(seconds_of "$(k get pserver db-1 -o 'jsonpath={.status.lastPointTime}')")" -ge "$1" ]; do
    [ $((SECONDS - began)) -lt "$2" ] || fail "db-1 is not protected after $2 s: $(k get pserver db-1 -o json | jq -c '.status | {phase, lastPointTime, issues, conditions}')"
    sleep 1
  done
}
