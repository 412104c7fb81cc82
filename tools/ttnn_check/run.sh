#!/usr/bin/env bash
# run.sh DIR [--quick]
#
# Installs TT-NN 0.81.1 into an environment in DIR (700 MB, once; Linux on x86-64 with CPython 3.12 or 3.10 only), and runs
# one check after the other, each a script beside this one; --quick leaves out the longest cases. PYTHON chooses the
# interpreter. Exit status: 77 where TT-NN cannot be had here, and says why; 1 where a check fails.
set -euo pipefail

version=0.81.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
skip() { echo "ttnn_check: SKIPPED: $*" >&2; exit 77; }

case "$#:${2:-}" in 1: | 2:--quick) ;; *) echo "usage: $0 DIR [--quick]" >&2; exit 2 ;; esac
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

# Every operation of a step of the 671B model, as the planner configures it: does TT-NN accept it, and leave what is planned?
plans() {
    case "$(cd "$(dirname "$python")" && pwd)" in *[[:space:]]*)
        echo "SKIPPED: TT-NN cannot call its compiler from a directory with a blank in its name"
        return ;;
    esac
    if ! stand_in; then
        echo "SKIPPED: TT-NN's kernels need riscv64-unknown-elf-as and -ld (Debian: binutils-riscv64-unknown-elf)"
        return
    fi
    (cd "$here/../.." && cargo build --quiet -p dsv3)
    "$python" "$here/check_plans.py" "${CARGO_TARGET_DIR:-$here/../../target}/debug/dsv3" \
        "$here/../../testdata/configs/deepseek-v3-671b.json" $quick
}

# TT-NN compiles kernels even for a mock device, with a compiler of its own, for which a stand-in is put: see standin_sfpi.
stand_in() {
    if ! command -v riscv64-unknown-elf-as > /dev/null || ! command -v riscv64-unknown-elf-ld > /dev/null; then
        [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 1
        apt-get update -q > /dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
            binutils-riscv64-unknown-elf > /dev/null || return 1
    fi
    local sfpi
    sfpi=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/ttnn/runtime/sfpi
    if [ -e "$sfpi" ] && ! grep -q "NOT a compiler" "$sfpi/compiler/bin/riscv-tt-elf-g++" 2> /dev/null; then
        echo "ttnn_check: $sfpi holds a real compiler; use a separate environment for mock devices" >&2
        exit 1
    fi
    mkdir -p "$sfpi"
    cp -r "$here/standin_sfpi/." "$sfpi/"
    riscv64-unknown-elf-as -march=rv32i -mabi=ilp32 "$sfpi/stub/stub.s" -o "$sfpi/stub/stub.o"
}

quick=${2:-}
written=$(mktemp -d)
trap 'rm -rf "$written"' EXIT
step "what is made of outputs" "$python" "$here/support/test_judge.py"
step "files of every layout" samples
step "the weights of a small model" weights
step "the operators of DeepSeek-V3" plans
