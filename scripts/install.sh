#!/usr/bin/env bash
# Makes .venv beside the README and installs jowa into it; does nothing if that is done.
# Usage: scripts/install.sh [EXTRA]   (EXTRA: dev, for tests and checks)
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-}

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null &&
        "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "jowa needs Python 3.11 or newer with the venv module: install it and try again." >&2
    exit 2
fi

stamp=.venv/.installed-${extra:-plain}
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing into .venv (PyTorch is large: a few minutes on a slow line) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${extra:+[$extra]}"
echo "$wanted" >"$stamp"
