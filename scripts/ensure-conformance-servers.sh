#!/usr/bin/env bash
# Installs the further real S3 servers of the conformance tests: Ceph radosgw (Debian) and moto (PyPI). Needs root for the former.
set -euo pipefail

missing=()
for program in radosgw radosgw-admin ceph-mon ceph-osd ceph monmaptool; do
    command -v "$program" >/dev/null 2>&1 || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "lockstep: installing radosgw and a one-machine ceph for the conformance tests (missing: ${missing[*]})" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends radosgw ceph-mon ceph-osd ceph-common >&2
fi

# An own environment: the system's Python may be externally managed. Pinned: the tests know where exactly this one differs from S3.
moto=5.2.5
venv="${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep}/moto"
if ! [ -x "$venv/bin/moto_server" ] || ! [ -e "$venv/lockstep-moto-$moto" ]; then
    echo "lockstep: installing moto[server] $moto into $venv" >&2
    # Debian's python3 comes without what a venv needs.
    if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >&2
        apt-get install -y -qq --no-install-recommends python3 python3-venv >&2
    fi
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q "moto[server]==$moto" >&2
    touch "$venv/lockstep-moto-$moto"
fi
