#!/usr/bin/env bash
# Trains the same small student three ways on the embedded data and compares:
#   bash launch/quickstart.sh [folder]          (default runs/quickstart)
# Run it again after an interruption: it resumes.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../runs/quickstart}")
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
source launch/setup.sh ""
# Two CPU devices use two cores better than one; GPUs and TPUs are unaffected.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"
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
