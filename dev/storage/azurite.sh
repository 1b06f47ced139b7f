# shellcheck shell=bash
# What the scripts that run Azurite share; source it after lib.sh.

# use DIR: that instance's folder.
use() {
  # shellcheck disable=SC2034
  RUN=$1/run LOG=$1/log
  INSTANCE=$1
  mkdir -p "$RUN" "$LOG" "$INSTANCE/data"
}
# credentials BASE-URL: sets ACCOUNT, KEY and ENDPOINT, made once for each instance.
credentials() {
  local file=$INSTANCE/credentials
  if [ ! -e "$file" ]; then
    (
      umask 077
      account=lifeboat$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
      printf 'ACCOUNT=%s\nKEY=%s\nENDPOINT=%s\n' "$account" "$(head -c 64 /dev/urandom | base64 -w0)" "$1/$account" >"$file.tmp"
      mv "$file.tmp" "$file"
    )
  fi
  # shellcheck source=/dev/null
  . "$file"
}
# run_azurite COMMAND...: the account goes by environment: arguments are everyone's to read.
run_azurite() { alive azurite || AZURITE_ACCOUNTS=$ACCOUNT:$KEY start azurite "$@"; }
