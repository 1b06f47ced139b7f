# shellcheck shell=bash
# A stage of 60-end-to-end: the server's administrator restarts it. Replication goes on, and nothing is compared or
# copied again but what nobody vouches for.

# restart_server: in order, and until the server is protected by points of after the restart.
restart_server() {
  echo "== an orderly restart of the server"
  local boot before began took
  boot=$(server_ cat /proc/sys/kernel/random/boot_id)
  before=$(received)
  server_ systemctl reboot || true
  began=$SECONDS
  until [[ $(server_ cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo "$boot") != "$boot" ]]; do
    [ $((SECONDS - began)) -lt 600 ] || fail "the server does not come back"
    sleep 1
  done
  protected_since "$(date +%s)" 600
  took=$(($(received) - before))
  echo "back and protected after $((SECONDS - began)) s, $((took >> 20)) MiB received meanwhile"
  # Its disk has 2.5 GiB.
  [ "$took" -lt $((512 << 20)) ] || fail "the restart was followed by a copy"
  local compared
  compared=$(k get events --field-selector involvedObject.name=db-1 -o json | jq -r '.items[] | select(.reason | test("Resynchroni"; "i")) | .reason + ": " + .message')
  [ -z "$compared" ] || fail "an orderly restart was followed by a comparison: $compared"
}
