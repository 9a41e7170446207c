"""Exceptions that end a run early; their message is all that users see."""

from collections.abc import Iterator
import contextlib

# Exit status after Ctrl-C, by the convention of shells: a script that runs
# several trainings must not start the next one.
INTERRUPTED = 130


class RefusedError(ValueError):
  """A mistake of the user's; the message says everything about it."""


class FailedError(RuntimeError):
  """The run cannot continue; the message says why and what to do."""


class PreemptedError(Exception):
  """The run was asked to stop and has saved its state; this is no failure.

  Attributes:
    status: exit status of the process; 0 except after an interrupt.
  """

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


def sentence(error: Exception) -> str:
  """What users are told of an error.

  Args:
    error: one that is their mistake, or a file's or a system's.
  """
  if isinstance(error, OSError) and error.filename and error.strerror:
    return f"cannot use {error.filename}: {error.strerror}"
  return str(error)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  """A context whose errors are the user's mistakes: RefusedErrors.

  Raises:
    RefusedError: the context raised a ValueError, OSError or ImportError.
  """
  try:
    yield
  except (ValueError, OSError, ImportError) as error:  # a missing gcsfs
    raise RefusedError(sentence(error)) from error
