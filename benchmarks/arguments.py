"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Iterator
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
