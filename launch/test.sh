#!/usr/bin/env bash
# Sets up and runs the tests: bash launch/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
source launch/setup.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One worker a core; each test file stays in one, for its shared set-up, and
# they start in the order that tests/conftest.py gives them.
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
  --max-worker-restart 0 -m "not slow" "$@"
