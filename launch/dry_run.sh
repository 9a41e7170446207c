# shellcheck shell=bash
# What the launch scripts share; to be sourced.

# Ends with one sentence and status 2.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# check_number WHAT VALUE: refuses a VALUE that is not a whole number. Where bash
# computes with a variable, it also runs a command that stands in it.
check_number() {
  case $2 in
    "" | *[!0-9]*) refuse "expected $1 to be a whole number, got '$2'" ;;
  esac
}

# Prints the comment that a script begins with.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"
}

# open_script ACTIONS WHAT ARGS...: checks a script's first two arguments, an
# action, which it puts into $action, and the name of a WHAT.
open_script() {
  local actions=$1 what=$2
  action=${3:-}
  if [ "$action" = --help ] || [ -z "$action" ]; then
    usage
    exit $((${#action} == 0 ? 2 : 0))
  fi
  [[ " $actions " == *" $action "* ]] ||
    refuse "unknown action '$action'; see --help"
  case ${4:-} in
    "" | -*) refuse "the $what's name is missing; see --help" ;;
  esac
}

# check_training WHY ARGS...: checks that the arguments of vitkd_jax.train have a
# config and a workdir on gs://, which it puts into $workdir; WHY says why gs://.
check_training() {
  local why=$1 i
  shift
  workdir=
  for ((i = 1; i <= $#; i++)); do
    case ${!i} in
      --workdir=*) workdir=${!i#*=} ;;
      --workdir) workdir=${*:i+1:1} ;;
    esac
  done
  [[ " $*" == *" --config"[=\ ]* ]] ||
    refuse "expected arguments for vitkd_jax.train: -- --config FILE --workdir DIR"
  [[ $workdir == gs://* ]] ||
    refuse "expected --workdir gs://..., which $why, got '$workdir'"
}

# Prints a command, quoted for a shell.
show() {
  local word line=
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command, or prints it where dry_run is set.
perform() {
  if [ -n "${dry_run:-}" ]; then
    show "$@"
  else
    "$@"
  fi
}
