# shellcheck shell=bash
. dev/suites/shown.sh
# cargo_tests ARGUMENT...: `cargo test`, and a failure if no test ran: a suite that tests nothing must not pass.
cargo_tests() {
  local log status=0
  log=$(mktemp)
  shown "$log" cargo test --locked "$@" || status=$?
  if [ $status = 0 ] && ! grep -qE '^test result: ok\. [1-9]' "$log"; then echo "FAILED: no test ran" >&2; status=1; fi
  rm -f "$log"
  return $status
}
