#!/usr/bin/env bash
# Runs a training and says by the exit status whether to start it again, for
# schedulers that take 0 for "finished":
#   bash launch/until_done.sh WORKDIR COMMAND...
# 0: the student is exported; 42: the command ended without error before that,
# because it was preempted; anything else is the command's own status. It passes
# SIGTERM on.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit 2
fi
workdir=$1
shift
stopped=
child=
trap 'stopped=1; kill -TERM "$child" 2>/dev/null || true' TERM INT USR1
"$@" &
child=$!
# For a signal that came before the child started.
[ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || true
while true; do
  stopped=
  status=0
  wait "$child" || status=$?
  # A signal ends the waiting, not the child.
  [ -n "$stopped" ] || break
done
[ "$status" -eq 0 ] || exit "$status"
"${VITKD_PYTHON:-.venv/bin/python}" - "$workdir/student.safetensors" <<'END'
import sys
from etils import epath
sys.exit(0 if epath.Path(sys.argv[1]).exists() else 42)
END
