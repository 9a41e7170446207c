#!/usr/bin/env bash
# The quickstart over several seeds, with a table of mean and deviation:
#   bash launch/quickstart_seeds.sh [seeds] [folder]
set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "$0")/dry_run.sh"
seeds=${1:-5}
check_number "the number of seeds" "$seeds"
out=$(realpath -m "${2:-$(dirname "$0")/../runs/quickstart_seeds}")
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
source launch/setup.sh ""
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"
runs=()
for ((seed = 0; seed < 10#$seeds; seed++)); do
  for method in baseline vitkd nkd both; do
    run=$out/$method-$seed
    .venv/bin/python -m vitkd_jax.train --workdir "$run" \
      --config "configs/quickstart.py:method=$method,seed=$seed" | tail -n 2
    runs+=("$run")
  done
done
.venv/bin/python -m vitkd_jax.report --out "$out/report" "${runs[@]}"
