#!/usr/bin/env bash
# cargo-deny from crates.io into a folder of its own, without optimisation: it runs once and a release build takes minutes longer.
set -euo pipefail

tools="${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep}"
if ! command -v cargo-deny >/dev/null 2>&1 && ! [ -x "$tools/bin/cargo-deny" ]; then
    echo "lockstep: installing cargo-deny into $tools" >&2
    cargo install cargo-deny --version 0.20.2 --locked --debug --quiet --root "$tools"
fi
