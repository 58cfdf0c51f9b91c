#!/usr/bin/env bash
# Installs if need be and runs all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev
# One thread a process: the tests run in parallel on the cores instead.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n "$(nproc)" "$@"
