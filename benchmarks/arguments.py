"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Callable, Collection, Iterator
import contextlib


def count(text: str) -> int:
  """An integer >= 1, for `add_argument(type=count)`.

  Args:
    text: the argument.

  Raises:
    argparse.ArgumentTypeError: it is anything else.
  """
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
  return int(text)


def among(names: Collection[str]) -> Callable[[str], list[str]]:
  """A type for `add_argument`: some of these names, separated by commas.

  Args:
    names: the valid ones.
  """

  def parse(text: str) -> list[str]:
    found = text.split(",")
    for name in found:
      if name not in names:
        raise argparse.ArgumentTypeError(
          f"expected some of {', '.join(names)}, got {name!r}"
        )
    return found

  return parse


def option(text: str) -> tuple[str, str | bool]:
  """An option of XLA as (name, value), for `add_argument(type=option)`.

  Args:
    text: "NAME=VALUE".

  Raises:
    argparse.ArgumentTypeError: it has no "=".
  """
  name, given, value = text.partition("=")
  if not given:
    raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
  return name, {"true": True, "false": False}.get(value, value)


@contextlib.contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
  """A context whose errors are the user's: one sentence, exit status 2.

  Args:
    parser: reports them.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    parser.error(str(error))
