# shellcheck shell=bash
# cargo_tests ARGUMENT...: `cargo test`, and a failure if no test ran: a suite that tests nothing must not pass.
cargo_tests() {
  local log status=0
  log=$(mktemp)
  cargo test --locked "$@" 2>&1 | tee "$log" || status=$?
  if [ $status = 0 ] && ! grep -qE '^test result: ok\. [1-9]' "$log"; then echo "FAILED: no test ran" >&2; status=1; fi
  rm -f "$log"
  return $status
}
