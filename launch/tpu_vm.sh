#!/usr/bin/env bash
# A training on a Cloud TPU slice, from the checkout's root:
#   bash launch/tpu_vm.sh create NAME --zone=Z --type=v4-32 [--spot]
#   bash launch/tpu_vm.sh setup  NAME --zone=Z
#   bash launch/tpu_vm.sh run    NAME --zone=Z -- --config configs/FILE.py \
#       --workdir gs://BUCKET/RUN --config.data.data_dir=gs://BUCKET/DATA
#   bash launch/tpu_vm.sh resume NAME --zone=Z --type=v4-32 [--spot] -- ...
#   bash launch/tpu_vm.sh logs|stop|status|delete NAME --zone=Z
#
# create   asks for the slice as a queued resource and waits for it
# setup    copies HEAD of this checkout to all workers and installs it
# run      starts the training on all workers; it survives a lost connection
# resume   after a preemption: deletes what is left, then all three again; if
#          the slice is still active, only starts the training
# logs     follows worker 0
# stop     saves the state and ends the training
#
# Options: --type a Cloud TPU type (v5e-8 is v5litepod-8), --runtime the VM's
# software (default: by type), --project, --worker for logs, --dry-run prints the
# commands and runs none.
set -euo pipefail

# shellcheck source=launch/dry_run.sh
source "$(dirname "$0")/dry_run.sh"

open_script "create setup run resume logs stop status delete" slice "$@"
name=$2
shift 2

zone=
type=
runtime=
worker=0
spot=
dry_run=
project=()
train=()
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --project=*) project=("$1") ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    --) shift && train=("$@") && break ;;
    *) refuse "unknown option '$1'; options are --name=value, see --help" ;;
  esac
  shift
done
[ -n "$zone" ] || refuse "--zone is missing; see --help"

case $type in v5e-*) type=v5litepod-${type#v5e-} ;; esac
if [ -z "$runtime" ]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
case $action in
  create | resume) [ -n "$type" ] || refuse "--type is missing; see --help" ;;
esac
case $action in
  run | resume)
    # A worker's own disk is private, and deleted with the worker.
    check_training "all workers share" ${train[@]+"${train[@]}"}
    ;;
esac

where=("--zone=$zone" ${project[@]+"${project[@]}"})
tpus=(gcloud compute tpus)
folder=vitkd_jax

on() { # on WORKER COMMAND
  perform "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    "--command=$2"
}

state() {
  "${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
    '--format=value(state.state)' 2>/dev/null || echo NONE
}

create() {
  perform "${tpus[@]}" queued-resources create "$name" "--node-id=$name" \
    "${where[@]}" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${spot:+--spot}
  if [ -n "$dry_run" ]; then
    echo "# until its state is ACTIVE:"
    perform "${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
      '--format=value(state.state)'
    return
  fi
  local now before=
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || echo "$(date +%H:%M:%S) $name is $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | NONE)
        refuse "the request ended as $now; 'status' says why, 'delete' ends it"
        ;;
    esac
    sleep 20
  done
}

setup() {
  # Another user of this machine must not know the name beforehand.
  scratch=${TMPDIR:-/tmp}/tmp.XXXXXXXXXX
  if [ -z "$dry_run" ]; then
    scratch=$(mktemp -d "$scratch")
    trap 'rm -rf "$scratch"' EXIT
  fi
  local archive=$scratch/$folder.tar.gz
  perform git archive --format=tar.gz "--output=$archive" HEAD
  perform "${tpus[@]}" tpu-vm scp "$archive" "$name:$folder.tar.gz" \
    "${where[@]}" --worker=all
  # The VMs' own Python is 3.10; uv brings a newer one.
  on all "set -e; rm -rf $folder; mkdir $folder; tar xzf $folder.tar.gz -C $folder; cd $folder; python3 -m pip install --quiet --user uv; ~/.local/bin/uv venv --quiet --python 3.12 .venv; ~/.local/bin/uv pip install --quiet --python .venv/bin/python --editable . 'jax[tpu]' gcsfs; .venv/bin/python -c 'import vitkd_jax'"
}

run() {
  local words
  words=$(printf '%q ' "${train[@]}")
  # A second training would compete for the TPU and the workdir.
  on all "cd $folder; if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then echo 'the training runs already'; exit 1; fi; nohup setsid .venv/bin/python -m vitkd_jax.train ${words% } </dev/null >>train.log 2>&1 & echo \$! >train.pid"
}

case $action in
  create) create ;;
  setup) setup ;;
  run) run ;;
  resume)
    if [ -n "$dry_run" ]; then
      echo "# unless the slice is ACTIVE:"
    fi
    if [ -n "$dry_run" ] || [ "$(state)" != ACTIVE ]; then
      if [ -n "$dry_run" ] || [ "$(state)" != NONE ]; then
        perform "${tpus[@]}" queued-resources delete "$name" "${where[@]}" \
          --force --quiet
      fi
      create
      setup
    fi
    [ -z "$dry_run" ] || echo "# then:"
    run
    ;;
  logs) on "$worker" "tail -n 50 -F $folder/train.log" ;;
  stop) on all "kill -TERM \$(cat $folder/train.pid)" ;;
  status)
    perform "${tpus[@]}" queued-resources describe "$name" "${where[@]}"
    ;;
  delete)
    perform "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force \
      --quiet
    ;;
esac
