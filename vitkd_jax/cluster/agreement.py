"""What the processes of a run agree on before they begin."""

import jax
from jax.experimental import multihost_utils
import numpy as np

from vitkd_jax import errors


def of_the_first(content: bytes) -> bytes:
  """Process 0's bytes, broadcast to every process.

  Args:
    content: any; that of other processes is dropped.
  """
  if jax.process_count() == 1:
    return content
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
  if not size:
    return b""
  padded = np.frombuffer(content[:size].ljust(size, b"\0"), np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def agreed(step: int) -> int:
  """The step to resume from, once every process has found the same.

  Args:
    step: found by this process.

  Raises:
    errors.FailedError: another found another.
  """
  if jax.process_count() == 1:
    return step
  found = np.ravel(multihost_utils.process_allgather(np.int32(step)))
  if (found != step).any():
    raise errors.FailedError(
      f"the processes restored different steps, {found.tolist()}: some cannot "
      "read a checkpoint that others can"
    )
  return step
