#!/usr/bin/env bash
# Makes .venv with what is asked for; sourced by the other scripts.
#   source launch/setup.sh [extra]     e.g. "test", from pyproject.toml
# VITKD_PYTHON names the interpreter (3.11 or newer); else the newest is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in ${VITKD_PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer was found; install one, or name it in" \
    "VITKD_PYTHON" >&2
  return 2
}

extra=${1:-}
if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv || {
    rm -rf .venv
    echo "error: $python cannot make a virtual environment; install its venv" \
      "package (python3-venv on Debian)" >&2
    exit 2
  }
fi
# Installed once for each state of the requirements.
stamp=.venv/installed-${extra:-base}
if [ ! -e "$stamp" ] || [ requirements.txt -nt "$stamp" ] ||
  [ pyproject.toml -nt "$stamp" ]; then
  echo "installing the requirements into .venv (about 1.3 GB)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".${extra:+[$extra]}"
  touch "$stamp"
fi
