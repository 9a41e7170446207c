"""Completion of `vitkd` in a shell."""

from collections.abc import Iterable

from vitkd_jax.commandline import config_files

# Bash ends a word at "=", so that --config=NAME is three of them.
_SCRIPT = """\
# eval "$(vitkd --completion)" in ~/.bashrc or ~/.zshrc
if [ -n "${ZSH_VERSION:-}" ]; then
  autoload -U +X compinit && compinit
  autoload -U +X bashcompinit && bashcompinit
fi
_vitkd() {
  local word=${COMP_WORDS[COMP_CWORD]#=} words=
  local before=${COMP_WORDS[COMP_CWORD-1]}
  if [ "$before" = = ]; then
    before=${COMP_WORDS[COMP_CWORD-2]}
  fi
  case $COMP_CWORD,$before in
    1,*) words="%(commands)s" ;;
    *,--config) words="%(configs)s" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}
complete -o filenames -F _vitkd vitkd"""


def script(commands: Iterable[str]) -> str:
  """Shell code that completes commands, names of configs, and paths.

  Args:
    commands: names of the commands.
  """
  return _SCRIPT % dict(
    commands=" ".join(commands), configs=" ".join(config_files.names())
  )
