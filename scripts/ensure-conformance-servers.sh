#!/usr/bin/env bash
# Installs the further real S3 servers of the conformance tests: Ceph radosgw (Debian) and moto (PyPI). Needs root for the former.
set -euo pipefail

if ! command -v radosgw >/dev/null 2>&1; then
    echo "lockstep: installing radosgw and a one-machine ceph for the conformance tests" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common >&2
fi
# An own environment: the system's Python may be externally managed.
venv="${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep}/moto"
if ! [ -x "$venv/bin/moto_server" ]; then
    echo "lockstep: installing moto[server] into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q 'moto[server]' >&2
fi
