#!/usr/bin/env bash
# Makes .venv; sourced by the other scripts from the checkout's root:
#   source launch/setup.sh EXTRA      "" or "test", from pyproject.toml
# VITKD_PYTHON names the interpreter, which must be 3.11 or newer.
set -euo pipefail

extra=$1
fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'

find_python() {
  local candidates=(python3.13 python3.12 python3.11 python3) candidate
  if [ -n "${VITKD_PYTHON:-}" ]; then
    candidates=("$VITKD_PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$fits" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.13 was found among ${candidates[*]};" \
    "install one, or name it in VITKD_PYTHON" >&2
  return 2
}

# An interrupted set-up leaves a .venv without pip: make it anew.
if ! .venv/bin/python -c "import pip; $fits" 2>/dev/null; then
  python=$(find_python)
  echo "making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv || {
    echo "error: $python could not make $PWD/.venv; is the folder writable," \
      "and python's venv package installed (python3-venv on Debian)?" >&2
    exit 2
  }
fi
# Installed once per version of the requirements.
stamp=.venv/installed-${extra:-base}
if [ ! -e "$stamp" ] || [ requirements.txt -nt "$stamp" ] ||
  [ pyproject.toml -nt "$stamp" ]; then
  echo "installing the requirements into .venv (about 1.3 GB)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".${extra:+[$extra]}"
  touch "$stamp"
fi
