# shellcheck shell=bash
# A stage of 60-end-to-end: the server is taken out of service while a client writes, recovered from the vault with every
# row that was ever acknowledged, and switched on again.

# shut_down_server: by order, and until the machine is off.
shut_down_server() {
  echo "== out of service by order, under load"
  lifeboat shutdown db-1 --yes
  local i
  for ((i = 0; i < 300; i++)); do server_runs || break; sleep 0.1; done
  ! server_runs || fail "the server said that it is off, and its machine still runs"
  "$DEV/load/down" db-1
  lifeboat status
}

# recover_all: a drill of what is in the vault: nothing that the client was ever told is missing.
recover_all() {
  local acknowledged
  acknowledged=$(grep -c '^A ' "$STATE/load/db-1/rows.log")
  "$DEV/demo" 6
  echo "$(jq .acknowledgedBeforeRequest "$STATE/demo/compare.json") of $acknowledged rows that were ever acknowledged compared, none lost"
  [ "$(jq .acknowledgedBeforeRequest "$STATE/demo/compare.json")" = "$acknowledged" ] || fail "the point is not of after the last write: $(cat "$STATE/demo/compare.json")"
  local rpo
  rpo=$(k get frun "$(cat "$STATE/demo/run")" -o 'jsonpath={.status.rpoSeconds}')
  [ "$rpo" = 0 ] || fail "the run says that $rpo s are lost"
  lifeboat failover "$(cat "$STATE/demo/run")" --clean-up
}

# switch_on_again: the machine goes on replicating into the same vault, after a comparison.
switch_on_again() {
  echo "== switched on again"
  local before
  before=$(received)
  "$DEV/server/up" db-1
  protected_since "$(date +%s)" 900
  echo "protected again, $((($(received) - before) >> 20)) MiB received"
  "$DEV/load/up" db-1 >/dev/null
}
