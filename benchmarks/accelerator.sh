#!/usr/bin/env bash
# Measures the training step on one GPU against PyTorch's, in 8 minutes:
#   bash benchmarks/accelerator.sh OUT [SECONDS]
# Writes figures, logs and traces to the folder OUT and prints the tables of
# benchmarks/RESULTS.md. Stages that would not end within SECONDS (450) are left
# out. Needs no network: jax with CUDA, torch, timm and requirements.txt.
# PYTHON names the interpreter; TINY=1 tries the script at a small size.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
budget=${2:-450}
python=${PYTHON:-python3}
mkdir -p "$out"
figures=$out/figures.jsonl
: >"$figures"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Pairs and the images of a step.
pairs=(s3-ti:256 b3-s:256 l3-b:128)
time="--dtype bfloat16 --attention xla,auto --more s3-ti --compile"
time+=" --option xla_gpu_enable_triton_gemm=false"
time+=" --option xla_gpu_enable_cudnn_layer_norm=true"
time+=" --rounds 5 --steps 5" agreement="" epochs=8
if [ "${TINY:-}" ]; then
  pairs=(quickstart:4)
  time="--dtype float32 --rounds 1 --steps 1 --matmul 64"
  agreement="--batch 2 --size 32" epochs=1
fi
# What both compilers make while nothing is timed is found again later.
caches=$(mktemp -d)
export JAX_COMPILATION_CACHE_DIR=$caches/jax TORCHINDUCTOR_CACHE_DIR=$caches/torch
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

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

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
# shellcheck disable=SC2086  # $time and $agreement are words
{
  for pair in "${pairs[@]}"; do
    JAX_PLATFORMS=cpu "$python" -m benchmarks.step --case "$pair" $time \
      --warm peer >"$out/warm-peer-${pair%:*}.log" 2>&1 &
  done
  # In one process: XLA times its candidates on the GPU, one at a time.
  "$python" -m benchmarks.step ${pairs[@]/#/--case=} $time \
    --warm ours >"$out/warm-ours.log" 2>&1 &
  stage agreement 30 "$python" -m benchmarks.agreement $agreement \
    --json "$figures"
  wait
  tail -n 1 "$out"/warm-*.log
  for pair in "${pairs[@]}"; do
    stage "step-${pair%:*}" 40 "$python" -m benchmarks.step --case "$pair" \
      $time --profile "$out/traces/${pair%:*}" --json "$figures"
  done
}
for placement in host device; do
  stage "train-$placement" 40 "$python" -m vitkd_jax.train \
    --config "configs/quickstart.py:method=both,epochs=$epochs" \
    --workdir "$caches/$placement" --config.student.dtype_mm=bfloat16 \
    --config.data.placement="$placement"
done
tar -C "$out" -czf "$out/traces.tgz" --remove-files traces
rm -rf "$caches"
echo "== done after $SECONDS s"
