# shellcheck shell=bash
# A stage of 60-end-to-end, the last one, since the vault is spoilt by it: data that a recovered machine reads has rotted in
# the store. The machine is switched off, and the run says which blob is damaged and what to do.

# runs_on RUN: does a machine of that run?
runs_on() {
  k get pods -l "lifeboat.dev/run=$1" -o json | jq -e '[.items[].status.containerStatuses[]? | select(.name == "machine" and .state.running)] | length > 0' >/dev/null
}

damage_and_drill() {
  echo "== a vault that is damaged"
  # What is applied lies in seed disks; only what is newer is read from segments. So nothing is applied meanwhile.
  near_off
  local id run began=$SECONDS phase
  id=$(k get pserver db-1 -o 'jsonpath={.status.id}')
  sleep 20
  run=damaged-$(date +%s)
  lifeboat failover erp --test --run "$run" --no-follow
  until k get frun "$run" -o 'jsonpath={.status.servers[0].recoveryPoint.time}' | grep -q .; do sleep 0.2; done
  # shellcheck source=/dev/null
  . "$STATE/storage/credentials"
  echo "$(ACCOUNT=$ACCOUNT KEY=$KEY ENDPOINT=$ENDPOINT in_ns "$DEV/storage/damage" lifeboat-cache "journal/$id/") segments damaged"
  until phase=$(k get frun "$run" -o 'jsonpath={.status.phase}') && [[ $phase == Failed || $phase == Waiting || $phase == Completed ]]; do
    [ $((SECONDS - began)) -lt 900 ] || fail "run $run does not end: $phase"
    sleep 1
  done
  local told
  told=$(k get frun "$run" -o json | jq -r '.status.steps[] | select(.state == "Failed") | .message')
  echo "$told"
  [ "$phase" = Failed ] || fail "a run over a damaged vault is $phase"
  [[ $told == *"journal/$id/"* ]] || fail "the failed step does not name the damaged blob: $told"
  local i
  for ((i = 0; i < 30; i++)); do runs_on "$run" || break; sleep 1; done
  ! runs_on "$run" || fail "a machine with damaged disks runs on: $(k get pods -o wide)"
  lifeboat failover "$run" --clean-up
}
