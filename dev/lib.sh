# shellcheck shell=bash disable=SC2034 # used by those who source this
# What all scripts in dev/ share: where things are, messages with elapsed time, a cache
# keyed by the hash of its inputs, and processes that are known by pid and start time.
# Source it after `set -euo pipefail`; it starts nothing.

# Errors count inside $(…) too.
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEV=$ROOT/dev
# Built things, shared by every checkout of this user; safe to delete at any time.
CACHE=${LIFEBOAT_CACHE:-${HOME:-/root}/.cache/lifeboat}
# Running things: pids, logs, keys, data.
STATE=${LIFEBOAT_STATE:-/var/tmp/lifeboat-dev}
# The network namespace of cluster, storage and servers, and this machine's address in it.
NETNS=lbdev NODE_IP=10.240.0.1
# Where cargo puts the programs (.cargo/config.toml names the target).
BIN_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/x86_64-unknown-linux-gnu/debug
# Names under which processes are recorded; a script may set another folder.
RUN=$STATE/run
LOG=$STATE/log
LB_WHAT=${LB_WHAT:-$(basename "$(dirname "$0")")/$(basename "$0")}
LB_START=${EPOCHREALTIME/./}

# ---- messages: always on stderr, so that standard output stays for results

elapsed() { local now=${EPOCHREALTIME/./} t; t=$(((now - LB_START) / 100000)); printf '%d.%d' $((t / 10)) $((t % 10)); }
say() { printf '[%6ss] %s: %s\n' "$(elapsed)" "$LB_WHAT" "$*" >&2; }
die() { printf '[%6ss] %s: ERROR: %s\n' "$(elapsed)" "$LB_WHAT" "$*" >&2; exit 1; }

# ---- what the machine must have

need_root() { [ "$(id -u)" = 0 ] || die "needs root (network namespaces, containers and loop devices): run it as root or with sudo -E"; }
need_command() {
  local c
  for c in "$@"; do command -v "$c" >/dev/null || die "the program '$c' is missing: run dev/setup, which installs what is needed"; done
}
# need_disk DIR GIB: enough free space on the file system of DIR.
need_disk() {
  local free
  mkdir -p "$1"
  free=$(df --output=avail -B1G "$1" | tail -1 | tr -d ' ')
  [ "$free" -ge "$2" ] || die "needs $2 GiB free in $1, only $free GiB are: make room, or point LIFEBOAT_CACHE and LIFEBOAT_STATE elsewhere"
}
# The state folder holds keys: ours alone, also where anyone may make folders.
need_state() {
  (umask 077; mkdir -p "$STATE")
  [ -O "$STATE" ] || die "$STATE belongs to another user: set LIFEBOAT_STATE to a folder of your own"
}

# ---- the cache

# hash_of [--text TEXT]... FILE...: one short hash over names and contents of files and over texts, in order.
hash_of() {
  local parts=() files=() file
  while [ $# -gt 0 ]; do
    if [ "$1" = --text ]; then parts+=("$2"); shift 2; else files+=("$1"); shift; fi
  done
  # Names count, as they are inside the checkout: two checkouts share what is the same.
  { printf '%s\n' "${parts[@]}"; for file in "${files[@]}"; do printf '%s ' "${file#"$ROOT/"}"; sha256sum <"$file"; done; } | sha256sum | cut -c1-16
}

# cached PATH FUNCTION: makes PATH (a file or folder in the cache) by calling `FUNCTION TMP`, which
# builds at TMP; only a finished result gets the name, and two callers never build the same thing.
cached() {
  local path=$1 build=$2 lock tmp status
  if [ -e "$path" ]; then touch "$path"; return 0; fi
  mkdir -p "$(dirname "$path")"
  lock=$path.lock
  exec {lock_fd}>"$lock"
  flock "$lock_fd"
  if [ ! -e "$path" ]; then
    tmp=$path.tmp
    remove_tree "$tmp"
    # Not as a condition ("build || die"): bash then ignores errors inside the function.
    set +e
    (set -e; "$build" "$tmp")
    status=$?
    set -e
    [ $status = 0 ] || die "could not make $path (see above)"
    mv "$tmp" "$path"
    forget_old "$path"
  fi
  exec {lock_fd}>&-
}
# Earlier states of the same thing that nobody has used for two weeks.
forget_old() {
  local name old
  name=$(basename "$1" | sed 's/-[0-9a-f]\{16\}.*//')
  while read -r old; do
    [ "$old" = "$1" ] || remove_tree "$old"
  done < <(find "$(dirname "$1")" -maxdepth 1 -mtime +14 -regex ".*/$name-[0-9a-f]+\(\.[a-z.]*\)?")
}

# Removes a tree, but never through a mount that a build left behind.
remove_tree() {
  [ -e "$1" ] || return 0
  if grep -q " $1/" /proc/mounts; then die "$1 has mounts in it: unmount them first (grep '$1' /proc/mounts)"; fi
  chmod -R u+w "$1" 2>/dev/null || true
  rm -rf -- "$1"
}

# ---- processes: recorded as "pid starttime", so that a reused pid is never taken for ours

start_time() { local stat; stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; stat=${stat##*) }; set -- $stat; echo "${20}"; }
# record NAME PID
record() { mkdir -p "$RUN"; echo "$2 $(start_time "$2")" >"$RUN/$1.pid"; }
pid_of() {
  local pid began
  read -r pid began 2>/dev/null <"$RUN/$1.pid" || return 1
  [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] || return 1
  # A zombie has ended, whoever has yet to collect it.
  ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || return 1
  echo "$pid"
}
alive() { pid_of "$1" >/dev/null; }
# start NAME COMMAND...: in the background, in a session of its own, log in $LOG/NAME.log.
start() {
  local name=$1
  shift
  mkdir -p "$LOG" "$RUN"
  [ ! -e "$LOG/$name.log" ] || mv -f "$LOG/$name.log" "$LOG/$name.log.1"
  # Locks and other descriptors of ours must not live on in a daemon.
  (
    for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-" 2>/dev/null || true; done
    exec setsid "$@" >"$LOG/$name.log" 2>&1 </dev/null
  ) &
  record "$name" $!
}
# stop SECONDS NAME...: asks all to end, waits, then kills what is left.
stop() {
  local seconds=$1 name pid i
  shift
  for name in "$@"; do pid=$(pid_of "$name") && kill "$pid" 2>/dev/null || true; done
  for name in "$@"; do
    for ((i = 0; i < seconds * 10; i++)); do alive "$name" || break; sleep 0.1; done
    if pid=$(pid_of "$name"); then
      [ "$seconds" -le 2 ] || say "$name did not end in ${seconds}s, killing it"
      kill -9 "$pid" 2>/dev/null || true
      for ((i = 0; i < 50; i++)); do alive "$name" || break; sleep 0.1; done
    fi
    rm -f "$RUN/$name.pid"
  done
}
# wait_for NAME SECONDS COMMAND...: until the command succeeds; shows the log and fails if NAME ends or time is up.
wait_for() {
  local name=$1 seconds=$2 end
  shift 2
  end=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    if [ -e "$RUN/$name.pid" ] && ! alive "$name"; then tail -n 12 "$LOG/$name.log" >&2; die "$name has ended; its log is $LOG/$name.log"; fi
    if [ $SECONDS -ge $end ]; then [ ! -e "$LOG/$name.log" ] || tail -n 12 "$LOG/$name.log" >&2; die "$name was not ready within ${seconds}s; its log is $LOG/$name.log"; fi
    sleep 0.1
  done
  say "$name is ready"
}

# ---- the namespace

in_ns() { nsenter --net="/run/netns/$NETNS" "$@"; }
