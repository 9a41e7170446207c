"""What --help prints: the command's own flags, and the keys of a config.

The meaning of a key comes from the docstring of what its section goes to.
"""

import argparse
import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import inspect
import pathlib
import re
import sys
import textwrap
from typing import Any

from absl import flags
import flax.linen as nn
import ml_collections

from vitkd_jax.commandline import config_files
from vitkd_jax.data import augment
from vitkd_jax.models import vit
from vitkd_jax.training import (
  durations,
  fields,
  method_sections,
  optim,
  optimizer_section,
  optimizers,
  sections,
)

# Whose docstrings describe the keys of a section; of those of `teachers` and
# `methods` each is a section.
_READERS: dict[str, tuple[Callable, ...]] = {
  "run": (sections.Run, durations.Every),
  "data": (sections.Data,),
  "augment": (augment.make_augment,),
  "student": (vit.Model, vit.ViT, fields.Own),
  "task": (sections.Task,),
  "schedule": (sections.Schedule, optim.make_schedule),
}
_HEADINGS = ("Args:", "Attributes:")


def text(
  ours: Sequence[flags.Flag],
  config: ml_collections.ConfigDict | None,
  file: str | None,
  *,
  with_config: bool,
) -> str:
  """The help page of the running command.

  Args:
    ours: the command's flags, without --config.
    config: the config of --config, with its overrides; None without one.
    file: path of that config file.
    with_config: the command has a flag --config.
  """
  main = sys.modules["__main__"]
  program = f"python -m {main.__spec__.name}" if main.__spec__ else sys.argv[0]
  usage = f"{program} --config=FILE[:ARGUMENTS]" if with_config else program
  parser = argparse.ArgumentParser(
    usage=f"{usage} [--NAME=VALUE ...]",
    description=main.__doc__ and main.__doc__.rstrip(),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    add_help=False,
  )
  for flag in ours:
    _add(parser, flag.name, _metavar(flag), _meaning(flag))
  if with_config:
    _add(
      parser,
      "config",
      "FILE",
      "a config file or its name and, after a colon, its arguments",
    )
  if config is not None:
    _add_keys(parser, config, _docstring(file) if file else None)
  elif with_config:
    parser.epilog = (
      "Everything else is in the config file. --config=FILE --help lists its "
      "keys with\ntheir values and meanings; --config.SECTION.KEY=VALUE "
      "overrides one. Sections:\n"
      + textwrap.fill(f"{', '.join(sections.SECTIONS)}.", 79)
      + "\n"
      + textwrap.fill(config_files.described(), 79)
    )
  return parser.format_help()


def _add_keys(
  parser: argparse.ArgumentParser,
  config: ml_collections.ConfigDict,
  docstring: str | None,
) -> None:
  arguments = parser.add_argument_group("config file", docstring)
  plain = {
    key: value
    for key, value in config.items()
    if not isinstance(value, ml_collections.ConfigDict)
  }
  for key, value in plain.items():  # of a lab
    _add(arguments, f"config.{key}", str(value), "")
  if not plain:
    said = "sets a key of these sections"
    _add(arguments, "config.SECTION.KEY", "VALUE", said)
  for section, values in sections_of(config):
    group = parser.add_argument_group(f"section {section}")
    known = meanings(section, values)
    for key, value in values.items():
      if key == "fields":
        _add(group, f"config.{section}.fields.FIELD", "VALUE", known[key])
      elif isinstance(value, ml_collections.ConfigDict):  # weights by term
        for term, weight in value.items():
          said = "weight of this loss term; 0 leaves it out"
          _add(group, f"config.{section}.{key}.{term}", str(weight), said)
      else:
        _add(group, f"config.{section}.{key}", str(value), known.get(key, ""))


def sections_of(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
  """(name, section) of each that has keys, such as "run" or "methods.vitkd".

  Args:
    config: of a training.
  """
  for section in filter(config.get, sections.SECTIONS):
    if section in ("teachers", "methods"):
      yield from ((f"{section}.{k}", v) for k, v in config[section].items())
    else:
      yield section, config[section]


def meanings(section: str, values: Mapping[str, Any]) -> dict[str, str]:
  """The meaning of each key of a config's section.

  Args:
    section: name of the section, such as "run" or "methods.vitkd".
    values: the section.
  """
  folder, _, name = section.partition(".")
  readers = _READERS.get(section, ())
  if folder == "teachers":
    readers = (sections.Teacher,)
  elif folder == "optimizer":
    name = values.get("name") or optimizer_section.DEFAULT
    named = optimizers.OPTIMIZERS.get(name, optim.make_optimizer)
    readers = (named, *optimizers.OPTIMIZERS.values(), optim.make_optimizer)
  elif folder == "methods":
    kind = method_sections.kind_of(name, values)
    own = (x for x in kind.__mro__ if issubclass(x, nn.Module))
    readers = (*own, method_sections.Common)
  found: dict[str, str] = {}
  for reader in reversed(readers):
    found |= _described(inspect.getdoc(reader) or "")
  return found


def _described(docstring: str) -> dict[str, str]:
  """The entries below "Args:" and "Attributes:" of a docstring."""
  found: dict[str, str] = {}
  name = None
  within = False
  for line in docstring.splitlines():
    if line.strip() and not line.startswith(" "):
      within, name = line.strip() in _HEADINGS, None
    elif within and (entry := re.match(r"  \*{0,2}(\w+): +(\S.*)", line)):
      name = entry[1]
      found[name] = entry[2]
    elif name and line.strip():
      found[name] += " " + line.strip()
  return found


def _docstring(file: str) -> str | None:
  """A config file's docstring, escaped; it has run already and so parses."""
  tree = ast.parse(pathlib.Path(file).read_text())
  return (ast.get_docstring(tree) or "").replace("%", "%%") or None


def _metavar(flag: flags.Flag) -> str:
  if flag.boolean:
    return "True|False"
  if values := getattr(flag.parser, "enum_values", None):
    return "|".join(values)
  return flag.name.replace("-", "_").upper()


def _meaning(flag: flags.Flag) -> str:
  shown = flag.default not in (None, [], "", 0, False)
  said = re.sub(r"^<[^>]*>: ", "", flag.help)  # an enum's values again
  return said + (f" (default: {flag.default})" if shown else "")


def _add(
  parser: argparse._ActionsContainer, name: str, metavar: str, meaning: str
) -> None:
  parser.add_argument(
    f"--{name}",
    metavar=metavar.replace("%", "%%"),
    help=meaning.replace("%", "%%"),
  )
