#!/usr/bin/env bash
# Measures the training step on one GPU against PyTorch's, in 8 minutes:
#   bash benchmarks/accelerator.sh OUT [SECONDS]
# Writes figures, logs and traces to the folder OUT and prints the tables of
# benchmarks/RESULTS.md. Stages that would not end within SECONDS (450) are left
# out. Needs no network: jax with CUDA, torch, timm and requirements.txt.
# PYTHON names the interpreter; TINY=1 tries the script at a small size.
set -uo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/dry_run.sh
source launch/dry_run.sh
out=$1
budget=${2:-450}
check_number SECONDS "$budget"
python=${PYTHON:-python3}
mkdir -p "$out"
figures=$out/figures.jsonl
: >"$figures"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Pairs and the images of a step.
pairs=(s3-ti:256 b3-s:256 l3-b:128) placements=(host device)
time="--dtype bfloat16 --attention xla,auto --more s3-ti --compile"
time+=" --option xla_gpu_enable_triton_gemm=false"
time+=" --option xla_gpu_enable_cudnn_layer_norm=true"
time+=" --rounds 5 --steps 5" agreement="" train=epochs=8
if [ "${TINY:-}" ]; then
  pairs=(quickstart:4) placements=(device)
  time="--dtype float32 --rounds 1 --steps 1 --matmul 64"
  agreement="--batch 2 --size 32"
  train="epochs=0.1 --config.schedule.warmup_epochs=0"
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# stage NAME SECONDS COMMAND...: runs it if that many seconds are left.
stage() {
  local name=$1 seconds=$2
  shift 2
  if ((SECONDS + seconds > budget)); then
    echo "== $name: left out, $((budget - SECONDS)) of $budget s are left"
    return 1
  fi
  echo "== $name, after $SECONDS s"
  timeout "$((budget - SECONDS))" "$@" >"$out/$name.log" 2>&1
  local status=$?
  tail -n 14 "$out/$name.log"
  ((status == 0)) || echo "== $name: exit status $status"
}

nvidia-smi --query-gpu=name,memory.total,driver_version \
  --format=csv,noheader || echo "no NVIDIA GPU here"
# The pairs compile side by side, and are timed one after the other.
for pair in "${pairs[@]}"; do
  touch "$scratch/busy-${pair%:*}"
done
# shellcheck disable=SC2086  # $time and $agreement are words
{
  for pair in "${pairs[@]}"; do
    case=${pair%:*}
    {
      timeout "$((budget - 60))" "$python" -m benchmarks.step --case "$pair" \
        $time --turns "$scratch" --profile "$out/traces/$case" \
        --json "$figures" >"$out/step-$case.log" 2>&1
      rm -f "$scratch/busy-$case"
    } &
  done
  stage agreement 30 "$python" -m benchmarks.agreement $agreement \
    --json "$figures"
}
wait
for pair in "${pairs[@]}"; do
  echo "== step-${pair%:*}"
  tail -n 14 "$out/step-${pair%:*}.log"
done
for placement in "${placements[@]}"; do
  # shellcheck disable=SC2086
  stage "train-$placement" 40 "$python" -m vitkd_jax.train \
    --config configs/quickstart.py:method=both,$train \
    --config.data.placement="$placement" --config.student.dtype_mm=bfloat16 \
    --workdir "$scratch/$placement"
done
tar -C "$out" -czf "$out/traces.tgz" --remove-files traces
echo "== done after $SECONDS s"
