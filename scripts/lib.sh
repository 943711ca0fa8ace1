# Shared by the scripts in this directory; source it, do not run it. The caller has set -euo pipefail.
# Progress goes to stderr, so that what a script prints to stdout stays usable.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${AMQPTASKS_VENV:-$ROOT/.venv}

say() { printf '\033[2m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'scripts/%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

accepts() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

alive() { [ -n "${1:-}" ] && kill -0 "$1" 2>/dev/null; }

# Below the range that the kernel hands to outgoing connections, so that none of them can take the port meanwhile.
free_ports() {
  python3 - "$1" <<'PY'
import random, socket, sys
found = []
while len(found) < int(sys.argv[1]):
    port = random.randrange(15000, 32000)
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
    if port not in found:
        found.append(port)
print(*found)
PY
}

# The newest Python that is new enough; AMQPTASKS_PYTHON names another.
find_python() {
  local name
  for name in ${AMQPTASKS_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then echo "$name"; return; fi
  done
  fail "no Python 3.10 or newer found (set AMQPTASKS_PYTHON to one)"
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
  say "installing $* with apt-get"
  { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }; } >&2 </dev/null
}

# The checkout that $VENV stands in, if that is not this one.
venv_of_another() {
  local owner
  owner=$(cd "$VENV/.." 2>/dev/null && pwd) || return 1
  [ "$owner" != "$ROOT" ] && [ -x "$VENV/bin/python" ] && [ -f "$owner/scripts/lib.sh" ] && echo "$owner"
}

# Make $VENV with this project (editable) and the extras named in $1, for example "test,bench", or "" for none. Nothing
# is done, and no network is needed, when that was done before for the same setup.cfg, Python and these extras.
ensure_venv() {
  local wanted=base,$1 python=$VENV/bin/python stamp file=$VENV/.amqptasks-installed have="" extra extras missing=""
  [ -x "$python" ] || python=$(find_python)
  stamp=$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | sha256sum | cut -c1-16)-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$(sed -n 1p "$file" 2>/dev/null)" != "$stamp" ] || have=$(sed -n 2p "$file")
  for extra in ${wanted//,/ }; do
    case ",$have," in *",$extra,"*) ;; *) missing=1 ;; esac
  done
  if venv_of_another >/dev/null; then
    # Installing there would make that checkout run this one's code.
    [ -z "$missing" ] || say "using $VENV as it is: it belongs to $(venv_of_another)"
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    return 0
  fi
  [ -n "$missing" ] || return 0
  if [ ! -x "$VENV/bin/python" ]; then
    say "making $VENV with $("$python" --version)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || { may_install && apt_install python3-venv; } ||
      fail "Python's venv module is missing: install it (Debian, Ubuntu: apt-get install python3-venv)"
    "$python" -m venv "$VENV"
  fi
  # Extras installed before, even for another setup.cfg, stay: one environment serves all scripts.
  wanted=$(printf '%s,%s' "$(sed -n 2p "$file" 2>/dev/null)" "$wanted" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -)
  extras=$(tr ',' '\n' <<<"$wanted" | sed '/^base$/d' | paste -sd, -)
  say "installing amqptasks${extras:+[$extras]} into $VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT${extras:+[$extras]}" >&2
  printf '%s\n%s\n' "$stamp" "$wanted" >"$file"
}

have_rabbitmq() { "$ROOT/scripts/rabbitmq" where >/dev/null 2>&1; }

# A rabbitmq-server to run, from Debian's package if need be and allowed. AMQPTASKS_RABBITMQ_VERSION asks for a version.
ensure_rabbitmq() {
  if [ -n "${AMQPTASKS_RABBITMQ_VERSION:-}" ]; then "$ROOT/scripts/rabbitmq" install; return; fi
  have_rabbitmq && return
  may_install || fail "no rabbitmq-server on this machine. Install it (Debian, Ubuntu: apt-get install rabbitmq-server) or run this as root"
  apt_install_idle rabbitmq-server || fail "apt-get could not install rabbitmq-server"
}

have_postgres() { "$ROOT/scripts/postgres" where >/dev/null 2>&1; }

# A PostgreSQL to run, from Debian's package if need be and allowed. Only the tests of one result store want it: without
# one they say so and go on, except in CI.
ensure_postgres() {
  have_postgres && return
  if ! may_install; then
    say "no PostgreSQL on this machine, and none can be installed without being root"
  elif ! apt_install_idle postgresql; then
    say "apt-get could not install postgresql"
  fi
  have_postgres || [ "${CI:-}" != true ] || fail "CI tests the database store on PostgreSQL, and there is none"
}

have_redis() { "$ROOT/scripts/redis" where >/dev/null 2>&1; }

# A Redis to run, likewise.
ensure_redis() {
  have_redis && return
  if ! may_install; then
    say "no Redis on this machine, and none can be installed without being root"
  elif ! apt_install_idle redis-server; then
    say "apt-get could not install redis-server"
  fi
  have_redis || [ "${CI:-}" != true ] || fail "CI tests the Redis store, and there is no Redis"
}

have_memcached() { "$ROOT/scripts/memcached" where >/dev/null 2>&1; }

# A memcached to run, likewise.
ensure_memcached() {
  have_memcached && return
  if ! may_install; then
    say "no memcached on this machine, and none can be installed without being root"
  elif ! apt_install_idle memcached; then
    say "apt-get could not install memcached"
  fi
  have_memcached || [ "${CI:-}" != true ] || fail "CI tests the memcached store, and there is no memcached"
}

# Install a server's package without the server that it would start at once: a private one is all that is wanted here.
apt_install_idle() {
  local policy=/usr/sbin/policy-rc.d ours= status=0
  if [ ! -e "$policy" ]; then ours=1; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; fi
  apt_install "$@" || status=$?
  [ -z "$ours" ] || rm -f "$policy"
  return "$status"
}
