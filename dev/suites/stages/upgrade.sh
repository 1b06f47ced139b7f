# shellcheck shell=bash
# A stage of 60-end-to-end: the server runs another agent than its appliance serves, which is told, and takes that one.

AGENT=/usr/local/bin/lifeboat-agent
has_upgrade() { [ "$(k get pserver db-1 -o 'jsonpath={.status.agent.upgradeAvailable}')" = true ]; }

upgrade_agent() {
  echo "== the agent's upgrade"
  local served began=$SECONDS before
  served=$(server_ sha256sum "$AGENT")
  # Another program that does the same.
  server_ "cp -p $AGENT $AGENT.other && echo >>$AGENT.other && mv $AGENT.other $AGENT && systemctl restart lifeboat-agent"
  until has_upgrade; do [ $((SECONDS - began)) -lt 120 ] || fail "nothing tells that db-1 runs another agent"; sleep 1; done
  lifeboat status
  before=$(received)
  server_ lifeboat-agent upgrade
  [ "$(server_ sha256sum "$AGENT")" = "$served" ] || fail "it has not taken the agent that the appliance serves"
  while has_upgrade; do [ $((SECONDS - began)) -lt 300 ] || fail "db-1 is still said to run another agent"; sleep 1; done
  protected_since "$(date +%s)" 120
  [ $(($(received) - before)) -lt $((256 << 20)) ] || fail "an upgrade was followed by a copy"
  server_ lifeboat-agent upgrade --check
}
