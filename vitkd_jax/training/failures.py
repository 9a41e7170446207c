"""Contexts that turn what ends a training into its `FailedError`."""

from collections.abc import Iterator
import contextlib

from vitkd_jax import errors
from vitkd_jax.data import loader
from vitkd_jax.runs import checkpoint


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Reports a failed save, which raises at the next wait if asynchronous."""
  try:
    yield
  # Orbax and tensorstore raise many types, even for a full disk.
  except Exception as error:
    raise errors.FailedError(
      "a checkpoint could not be written (earlier ones are intact): "
      + checkpoint.first_line(error)
    ) from error


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Reports an input that cannot continue."""
  try:
    yield
  except loader.InputError as error:
    raise errors.FailedError(str(error)) from error
