"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Iterator
import contextlib


def count(text: str) -> int:
  """A whole number of at least 1; for `add_argument(type=...)`."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: wanted a number from 1 on")
  return int(text)


@contextlib.contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
  """A context whose errors are the user's: a sentence and exit status 2."""
  try:
    yield
  except (ValueError, OSError) as error:
    parser.error(str(error))
