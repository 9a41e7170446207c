#!/usr/bin/env bash
# Trains the same small student three ways on the embedded data and compares:
#   bash launch/quickstart.sh [folder]          (default runs/quickstart)
# Run it again after an interruption: it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/quickstart}
# shellcheck source=launch/setup.sh
source launch/setup.sh
began=$SECONDS
runs=()
for method in baseline vitkd both; do
  echo
  echo "== $method"
  .venv/bin/python -m vitkd_jax.train \
    --config "configs/quickstart.py:method=$method" --workdir "$out/$method"
  runs+=("$out/$method")
done
echo
.venv/bin/python -m vitkd_jax.report --out "$out/report" "${runs[@]}"
echo "trained and compared in $((SECONDS - began)) s"
