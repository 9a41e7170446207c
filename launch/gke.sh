#!/usr/bin/env bash
# A training on a GKE cluster of TPUs, by xpk (pip install xpk), from the
# checkout's root:
#   bash launch/gke.sh create CLUSTER --zone=Z --type=v5litepod-256 [--spot]
#   bash launch/gke.sh run    CLUSTER --zone=Z --type=v5litepod-256 --name=RUN \
#       -- --config configs/FILE.py --workdir gs://BUCKET/RUN \
#       --config.data.data_dir=gs://BUCKET/DATA
#   bash launch/gke.sh list   CLUSTER --zone=Z
#   bash launch/gke.sh stop   CLUSTER --zone=Z --name=RUN
#   bash launch/gke.sh delete CLUSTER --zone=Z
#
# create   makes the cluster with one node pool for the slice
# run      packs this checkout into an image and submits the training, which
#          restarts after preemptions and crashes, --restarts times (100)
# stop     saves the state and ends the training; run again to resume
#
# Options: --type a Cloud TPU type (v5e-8 is v5litepod-8), --slices (1), how to
# pay: --spot, --on-demand (default) or --reservation=ID, --project, --image to
# install into (python:3.12), --dry-run prints the commands and runs none.
set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "$0")/dry_run.sh"

open_script "create run list stop delete" cluster "$@"
cluster=$2
shift 2

zone=
type=
name=
slices=1
restarts=100
image=python:3.12
paid=--on-demand
dry_run=
project=()
train=()
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --spot | --on-demand | --reservation=*) paid=$1 ;;
    --project=*) project=("$1") ;;
    --dry-run) dry_run=1 ;;
    --) shift && train=("$@") && break ;;
    *) refuse "unknown option '$1'; options are --name=value, see --help" ;;
  esac
  shift
done
[ -n "$zone" ] || refuse "--zone is missing; see --help"
case $type in v5e-*) type=v5litepod-${type#v5e-} ;; esac
case $action in
  create | run) [ -n "$type" ] || refuse "--type is missing; see --help" ;;
esac
case $action in
  run | stop) [ -n "$name" ] || refuse "--name is missing; see --help" ;;
esac
where=("--cluster=$cluster" "--zone=$zone" ${project[@]+"${project[@]}"})

run() {
  local workdir
  # A pod's disk is deleted with the pod.
  check_training "outlives a pod" ${train[@]+"${train[@]}"}
  # xpk sends SIGTERM to this shell: exec replaces it by the script. Status 42
  # restarts the training, and so does any from 127 on, by xpk's own rule; 1 is
  # the watchdog's status for a hanging process.
  local command
  command="pip install --quiet --root-user-action=ignore --editable . 'jax[tpu]' gcsfs && VITKD_PYTHON=python exec bash launch/until_done.sh $(show "$workdir" python -m vitkd_jax.train "${train[@]}")"
  perform xpk workload create "${where[@]}" "--workload=$name" \
    "--tpu-type=$type" "--num-slices=$slices" "--base-docker-image=$image" \
    --script-dir=. "--max-restarts=$restarts" --restart-on-exit-codes=1 \
    --termination-grace-period-seconds=120 "--command=$command"
}

case $action in
  create)
    perform xpk cluster create "${where[@]}" "--tpu-type=$type" \
      "--num-slices=$slices" "$paid"
    ;;
  run) run ;;
  list) perform xpk workload list "${where[@]}" ;;
  stop)
    perform xpk workload delete "${where[@]}" "--workload=$name"
    ;;
  delete) perform xpk cluster delete "${where[@]}" ;;
esac
