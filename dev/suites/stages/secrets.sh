# shellcheck shell=bash
# A stage of 60-end-to-end: no secret stands in logs, status, events or arguments.

# no_secret_in_the_open TOKEN: of enrolment, storage, database, vault and certificates.
no_secret_in_the_open() {
  echo "== no secret in logs, status, events or arguments"
  local everything keys secret pod
  # shellcheck source=/dev/null
  . "$STATE/storage/credentials"
  everything=$(mktemp)
  {
    "$DEV/in" kubectl get all,events,configmaps,replicationappliances,replicationpolicies,protectedservers,recoveryplans,failoverruns,failoverapprovals -A -o yaml
    for pod in $("$DEV/in" kubectl get pods -A -o 'jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}'); do
      "$DEV/in" kubectl -n "${pod%/*}" logs "${pod#*/}" --all-containers --prefix
    done
    server_ journalctl --merge -u lifeboat-agent -u lifeboat-thaw --no-pager
    server_ 'cat /proc/[0-9]*/cmdline' | tr '\0' ' '
    cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '
  } >"$everything" 2>/dev/null || true
  [ "$(wc -l <"$everything")" -gt 1000 ] || fail "there was hardly anything to look through"
  keys=$(k get secret berlin-keys -o json | jq -r '.data["keys.json"] | @base64d | fromjson | .. | strings | select(length >= 40)')
  [ -n "$keys" ] || fail "the data keys were not found"
  while read -r secret; do
    [ -n "$secret" ] || continue
    ! grep -qF -- "$secret" "$everything" || fail "a secret is in the open: it begins with $(cut -c1-4 <<<"$secret")…, and stands in: $(grep -nF -m1 -- "$secret" "$everything" | cut -c1-60)"
  done < <(printf '%s\n' "$1" "$KEY" "$(cat "$STATE/servers/db-1/database_password")" "$(grep -v '^#' "$STATE/demo/recovery-key.txt")" "$keys")
  ! grep -q 'PRIVATE KEY' "$everything" || fail "a private key is in the open"
  rm -f "$everything"
}
