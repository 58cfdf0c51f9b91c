#!/usr/bin/env bash
# Installs if need be and runs all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev
cores=$(env -u OMP_NUM_THREADS nproc) # which would say what that variable says
# One thread a process: the tests run in parallel on the cores instead.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n "$cores" "$@"
