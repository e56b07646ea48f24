#!/usr/bin/env bash
# Makes sure that PgBouncer is there for the tests that go through it; the launcher (devkit) starts its own, never the system's.
set -euo pipefail

have() {
    { [ -n "${LOCKSTEP_PGBOUNCER:-}" ] && [ -x "$LOCKSTEP_PGBOUNCER" ]; } ||
        command -v pgbouncer >/dev/null 2>&1 ||
        [ -x /usr/sbin/pgbouncer ]
}

have && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "lockstep: no pgbouncer found, installing Debian's package pgbouncer" >&2
    export DEBIAN_FRONTEND=noninteractive
    # The package's own service is not wanted: nothing is started by the installation.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends pgbouncer >&2
    have && exit 0
fi
cat >&2 <<'TXT'
lockstep: no pgbouncer found, and this user may not install it; the tests through a pooler need it. One of:
  - as root on Debian or Ubuntu:  apt-get install pgbouncer
  - any other install:            export LOCKSTEP_PGBOUNCER=/path/to/pgbouncer
TXT
exit 1
