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

# pair:batch:forms of attention
pairs=(s3-ti:256:xla,cudnn b3-s:256:cudnn l3-b:128:cudnn)
steps="--rounds 5 --steps 10 --compile" agreement="" epochs=1
if [ "${TINY:-}" ]; then
  pairs=(quickstart:4:auto)
  steps="--rounds 1 --steps 1 --matmul 64" agreement="--batch 2 --size 32"
  epochs=0.01
fi

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
  tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
  ((status == 0)) || echo "== $name: exit status $status"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

# torch.compile fills its caches while nothing is timed.
if [ -z "${TINY:-}" ]; then
  for pair in "${pairs[@]}"; do
    IFS=: read -r case batch _ <<<"$pair"
    JAX_PLATFORMS=cpu timeout 240 "$python" -m benchmarks.step --case "$case" \
      --batch "$batch" --dtype bfloat16 --warm >"$out/warm-$case.log" 2>&1 &
  done
fi

stage agreement 60 "$python" -m benchmarks.agreement $agreement \
  --json "$figures"
run=$(mktemp -d)
stage train 60 "$python" -m vitkd_jax.train \
  --config "configs/quickstart.py:method=both,epochs=$epochs" \
  --workdir "$run/both" --config.student.dtype_mm=bfloat16
wait
echo "== torch.compile's caches are filled, after $SECONDS s"

for pair in "${pairs[@]}"; do
  IFS=: read -r case batch forms <<<"$pair"
  share=$([ "$case" = s3-ti ] && echo --share)
  stage "step-$case" 60 "$python" -m benchmarks.step --case "$case" \
    --batch "$batch" --attention "$forms" $steps $share \
    --profile "$out/trace-$case" --json "$figures"
done
tar -C "$out" -czf "$out/traces.tgz" --remove-files $(cd "$out" && ls -d trace-* 2>/dev/null)
echo "== done after $SECONDS s"
