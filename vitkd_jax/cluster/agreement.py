"""What the processes of a run agree on before they train."""

import jax
from jax.experimental import multihost_utils
import numpy as np

from vitkd_jax import errors

# Longest text that process 0 broadcasts, in bytes.
_MOST_BYTES = 2048


def said_by_the_first(text: str) -> str:
  """Process 0's text, broadcast to every process.

  Args:
    text: of this process.
  """
  if jax.process_count() == 1:
    return text
  content = text.encode()[:_MOST_BYTES].ljust(_MOST_BYTES, b"\0")
  told = multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8))
  return np.asarray(told).tobytes().rstrip(b"\0").decode(errors="ignore")


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
