# shellcheck shell=bash
# A stage of 60-end-to-end: a cluster near the vault applies, the first one only takes in (docs/src/install.md, "A cluster
# near the vault"); then a new data key while servers write. The second cluster is a second release that sees only a
# namespace of its own.

NEAR=lifeboat-near
near() { "$DEV/in" kubectl -n "$NEAR" "$@"; }

# copy_secret NAME: as a person would, by hand.
copy_secret() {
  k get secret "$1" -o json | jq '{apiVersion, kind, type, data, metadata: {name: .metadata.name}}' | near apply -f - >/dev/null
}

# apply_near_the_vault: from here on the second release's applier has the server.
apply_near_the_vault() {
  echo "== appliers in a second cluster"
  local values moved began=$SECONDS
  near create namespace "$NEAR" --dry-run=client -o yaml | near apply -f - >/dev/null
  near label namespace "$NEAR" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
  values=$(mktemp)
  "$DEV/in" helm -n lifeboat-system get values lifeboat -o yaml >"$values"
  "$DEV/in" helm upgrade lifeboat "$ROOT/charts/lifeboat" -n lifeboat-system -f "$values" --set "operator.watchNamespace=$NAMESPACE" --wait --timeout 3m >/dev/null
  "$DEV/in" helm upgrade --install lifeboat-near "$ROOT/charts/lifeboat" -n lifeboat-near-system --create-namespace -f "$values" \
    --set "operator.watchNamespace=$NEAR,crds.install=false" --wait --timeout 3m >/dev/null
  rm -f "$values"
  copy_secret vault
  copy_secret berlin-keys
  k get replicationappliance berlin -o json |
    jq '{apiVersion, kind, metadata: {name: "near"}, spec: {vault: .spec.vault, roles: ["Apply"], encryptionKeySecretRef: {name: "berlin-keys"}}}' |
    near apply -f - >/dev/null
  near wait replicationappliance/near --for=condition=Ready --timeout=3m >/dev/null || fail "the second cluster's appliance does not become Ready: $(near get replicationappliance near -o json | jq -c .status.conditions)"
  k patch replicationappliance berlin --type=merge -p '{"spec": {"roles": ["Ingest"]}}' >/dev/null
  until [[ $(k get pserver db-1 -o 'jsonpath={.status.applier}') == *"(another cluster)"* ]]; do
    [ $((SECONDS - began)) -lt 300 ] || fail "after 5 minutes db-1 is still applied by $(k get pserver db-1 -o 'jsonpath={.status.applier}')"
    sleep 2
  done
  moved=$(date +%s)
  # A recovery point that the second cluster has made, seen by the first one.
  until [ "$(seconds_of "$(k get pserver db-1 -o 'jsonpath={.status.recoveryPoints.latest}')")" -gt "$moved" ]; do
    [ $((SECONDS - began)) -lt 600 ] || fail "the second cluster makes no recovery points"
    sleep 2
  done
  [ -z "$(k get pods -l app.kubernetes.io/component=applier -o name)" ] || fail "appliers were left in the first cluster"
  echo "db-1 is applied by $(k get pserver db-1 -o 'jsonpath={.status.applier}')"
}

data_key() { k get replicationappliance berlin -o json | jq -r ".status.dataKey.$1 // \"\""; }

# rotate_data_key: nothing is written with the new key before the second cluster has it too.
rotate_data_key() {
  echo "== a new data key"
  local old began=$SECONDS
  old=$(data_key id)
  k patch replicationappliance berlin --type=merge -p '{"spec": {"rotateDataKey": "end-to-end"}}' >/dev/null
  until [[ $(data_key message) == *near* ]]; do
    [ $((SECONDS - began)) -lt 300 ] || fail "a rotation does not tell that the second cluster lacks the key: $(k get replicationappliance berlin -o json | jq -c .status.dataKey)"
    sleep 2
  done
  echo "it waits: $(data_key message)"
  [ "$(data_key id)" = "$old" ] || fail "the new key is used before the second cluster has it"
  copy_secret berlin-keys
  until [ "$(data_key id)" != "$old" ]; do
    [ $((SECONDS - began)) -lt 600 ] || fail "the new key does not become current: $(k get replicationappliance berlin -o json | jq -c .status.dataKey)"
    sleep 2
  done
  protected_since "$(date +%s)" 300
}

# The second cluster is switched off: nothing is applied any more.
near_off() {
  "$DEV/in" kubectl -n lifeboat-near-system scale deployment lifeboat-near --replicas=0 >/dev/null
  "$DEV/in" kubectl -n lifeboat-near-system wait pod --all --for=delete --timeout=2m >/dev/null
  near delete statefulset near-applier --ignore-not-found --wait >/dev/null
  near wait pod --all --for=delete --timeout=2m >/dev/null
}
