"""Refuses a value in one sentence that names the nearest valid one."""

from collections.abc import Iterable
import difflib
import json
from typing import Any


def nearest(name: str, names: Iterable[str]) -> str:
  """Half a sentence that names the nearest valid name."""
  near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
  return f"the nearest is {near[0]!r}" if near else "it takes no key"


def parse_json(text: str | bytes, what: str) -> Any:
  """The value of a JSON text.

  Args:
    text: the JSON.
    what: names it in the message.

  Raises:
    ValueError: the text is not JSON, or nested too deep.
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError(
      f"{what}: expected JSON, got one nested too deep"
    ) from None
  except ValueError as error:
    raise ValueError(f"{what}: expected JSON: {error}") from None
