#!/usr/bin/env bash
# Runs the linters, the type checker and all tests. Arguments go to pytest:
#   bash launch/test.sh -k tokenizer
# Files of tests are spread over TEST_PROCS processes (half of the cores, at least two; at most 8).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh
# several processes of the tests share few cores; spinning OpenMP threads would starve them
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ $# -eq 0 ]; then
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m mypy
fi
cores=$(env -u OMP_NUM_THREADS nproc)  # which answers that variable where it is set
: "${TEST_PROCS:=$((cores < 4 ? 2 : cores > 16 ? 8 : cores / 2))}"
exec "$PYTHON" -m pytest --numprocesses "$TEST_PROCS" --dist loadfile "$@"
