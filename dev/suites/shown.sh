# shellcheck shell=bash
# shown LOG COMMAND...: runs the command with its output in LOG and on the screen, and returns its exit code when the
# command ends. (`| tee` would wait for whatever a test left running with the output still open.)
shown() {
  local log=$1 pid status=0
  shift
  : >"$log"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # A command in the background is not interrupted by the keyboard.
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  tail -n +1 -s 0.2 --pid="$pid" -f "$log"
  wait "$pid" || status=$?
  trap - INT TERM
  return $status
}
