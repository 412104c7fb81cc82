#!/usr/bin/env bash
# run.sh DIR
#
# Installs TT-NN 0.81.1 into an environment in DIR (700 MB, once; Linux on x86-64 with CPython 3.12 or 3.10 only), and runs
# one check after the other, each a script beside this one. PYTHON chooses the interpreter. Exit status: 77 where TT-NN cannot
# be had here, and says why; 1 where a check fails.
set -euo pipefail

version=0.81.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
skip() { echo "ttnn_check: SKIPPED: $*" >&2; exit 77; }

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
[ "$(uname -sm)" = "Linux x86_64" ] || skip "TT-NN's wheels are for Linux on x86-64 only"

# TT-NN is published for these versions only.
is_suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 10)))' 2> /dev/null
}
find_python() {
    local candidates=("${PYTHON:-python3.12}" python3.10 python3) candidate
    if command -v pyenv > /dev/null; then
        candidates+=("$(pyenv root)"/versions/3.12.*/bin/python3 "$(pyenv root)"/versions/3.10.*/bin/python3)
    fi
    for candidate in "${candidates[@]}"; do
        if is_suitable "$candidate"; then echo "$candidate"; return; fi
    done
    skip "no CPython 3.12 or 3.10 with the venv module found; set PYTHON to one"
}

python=$1/bin/python
if ! [ -x "$python" ]; then
    chosen=$(find_python) || exit
    "$chosen" -m venv "$1"
fi
if ! "$python" -c "import importlib.metadata as m; assert m.version('ttnn') == '$version'" 2> /dev/null; then
    "$python" -m pip install -q --disable-pip-version-check "ttnn==$version" || skip "ttnn $version cannot be installed"
fi

step() { printf '\n== %s\n' "$1"; shift; "$@"; }

# Files of every kind of layout: does TT-NN load them, and would it store the same bytes?
samples() {
    (cd "$here/../.." && cargo run --quiet -p dsv3-galaxy --example write_samples -- "$written")
    "$python" "$here/check_tensorbin.py" --index "$written/index.json" --strict
}

# Every weight of a small DeepSeek-V3, converted by the binary: is it what TT-NN makes of the same numbers?
weights() {
    (cd "$here/../.." && cargo build --quiet -p dsv3)
    "$python" "$here/check_weights.py" "${CARGO_TARGET_DIR:-$here/../../target}/debug/dsv3"
}

written=$(mktemp -d)
trap 'rm -rf "$written"' EXIT
step "files of every layout" samples
step "the weights of a small model" weights
