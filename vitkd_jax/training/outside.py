"""What a config names of a user's own code."""

import importlib
import os
import sys
from typing import Any


def find(key: str, path: str) -> Any:
  """The object that a key of the config names.

  Args:
    key: full name of the key, for the message.
    path: "module:name"; the working directory is searched, too.

  Raises:
    ValueError: there is no such object.
  """
  module, _, name = path.partition(":")
  try:
    sys.path.insert(0, os.getcwd())
    try:
      return getattr(importlib.import_module(module), name)
    finally:
      sys.path.remove(os.getcwd())
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f"expected {key} to be module:name, got {path!r} ({error})"
    ) from None


def said(error: Exception) -> str:
  """The first line of what a user's code raised, with its type.

  Args:
    error: any; of a ValueError the text alone is said.
  """
  text = f"{error}".strip().partition("\n")[0]
  return (
    text
    if isinstance(error, ValueError)
    else (f"{type(error).__name__}: {text}")
  )
