#!/usr/bin/env bash
# Makes sure that libfaketime is there for the tests that run a coordinator by another clock.
set -euo pipefail

have() {
    { [ -n "${LOCKSTEP_FAKETIME:-}" ] && [ -r "$LOCKSTEP_FAKETIME" ]; } ||
        compgen -G "/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null
}

have && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "lockstep: no libfaketime found, installing Debian's package libfaketime" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends libfaketime >&2
    have && exit 0
fi
cat >&2 <<'TXT'
lockstep: no libfaketime found, and this user may not install it; the tests with a wrong clock need it. One of:
  - as root on Debian or Ubuntu:  apt-get install libfaketime
  - any other install:            export LOCKSTEP_FAKETIME=/path/to/libfaketimeMT.so.1
TXT
exit 1
