#!/usr/bin/env bash
# The chat page in headless Chromium:  run.sh DSV3 DIR [OPTIONS OF check.py]
#
# Makes a Python environment in DIR, once. Needs Python 3.9 or later with venv, and Chromium, which root gets from Debian's
# packages. Exit status: 77 where they cannot be had.
set -euo pipefail
binary=$1 environment=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)

if ! command -v chromium >/dev/null && [ "$(id --user)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } >&2 || true
fi
if ! command -v chromium >/dev/null; then
    echo "SKIPPED: the chat page is tested in Chromium, which is not here" >&2
    exit 77
fi
if ! "$environment/bin/python" -c 'import playwright' 2>/dev/null; then
    { python3 -m venv "$environment" && "$environment/bin/pip" install --quiet 'playwright>=1.50'; } >&2 || {
        echo "SKIPPED: the chat page is tested with playwright from PyPI, which cannot be installed" >&2
        exit 77
    }
fi
exec "$environment/bin/python" "$here/check.py" "$binary" "$@"
