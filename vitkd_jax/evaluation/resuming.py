"""What a pass over a split has so far, on disk: a killed one goes on there.

The order of the batches is fixed, so the number of those done is the place in
the pass. A file is used only by the evaluation that wrote it: it names whatever
its arrays depend on, and begins with the hash of what follows.
"""

from collections.abc import Callable, Mapping
import hashlib
import json
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

import vitkd_jax
from vitkd_jax import errors
from vitkd_jax.cluster import agreement, console, preemption
from vitkd_jax.weights import files

Arrays = dict[str, np.ndarray]

# Between two saves, each of which waits for the devices.
_SECONDS = 60.0
# Names of arrays beside those that are kept.
_DONE, _IDENTITY = "batches done", "identity"
_DIGEST = hashlib.sha256().digest_size


class Pass:
  """A pass over a split that is kept in files.

  Args:
    path: of the file; may be a URL. Process 0 alone reads and writes it.
    what: is done, for messages, such as "the evaluation on imagenet2012".
    identity: whatever the arrays depend on, by names for messages; for JSON.
    grows: whether a save adds what is new, files `path`.0, `path`.1 and so on,
      in place of replacing the one.

  Attributes:
    done: number of batches in the files; 0 without files of this pass.
    found: their arrays by name; at most one dict unless the pass grows.
  """

  def __init__(
    self,
    path: str,
    what: str,
    identity: Mapping[str, Any],
    *,
    grows: bool = False,
  ):
    self._path, self._what, self._grows = path, what, grows
    self._identity = {
      **identity,
      "versions": [vitkd_jax.__version__, jax.__version__],
    }
    self.done, self.found, self._parts = 0, list[Arrays](), 0
    while (grows or not self.found) and (content := self._read()):
      arrays = safetensors_numpy.load(content)
      self.done = int(arrays.pop(_DONE)[0])
      del arrays[_IDENTITY]
      self.found.append(arrays)
      self._parts += 1
    self._saved = time.monotonic()
    if self.done and jax.process_index() == 0:
      console.complain(f"resuming {what} after {self.done:,} batches")

  def after_batch(self, done: int, arrays: Callable[[], Arrays]) -> None:
    """Saves if it is time to; every process calls it after each batch.

    Args:
      done: number of batches done.
      arrays: what to save, see `save`.

    Raises:
      errors.PreemptedError: the evaluation was told to stop; it is saved.
      errors.FailedError: the file cannot be written.
    """
    noticed = preemption.noticed()
    if noticed or time.monotonic() - self._saved > _SECONDS:
      self.save(done, arrays())
    if noticed:
      preemption.stop(f"{self._what} is saved")

  def save(self, done: int, arrays: Arrays) -> None:
    """Replaces the file, or adds one.

    Args:
      done: number of batches done.
      arrays: by name; of a pass that grows those since the last save.

    Raises:
      errors.FailedError: the file cannot be written.
    """
    if jax.process_index() == 0:
      identity = json.dumps(self._hashes()).encode()
      kept = {
        **arrays,
        _DONE: np.array([done]),
        _IDENTITY: np.frombuffer(identity, np.uint8),
      }
      content = safetensors_numpy.save(
        {name: np.asarray(x, order="C") for name, x in kept.items()}
      )
      try:
        with (
          files.replacing(self._next()) as temporary,
          open(temporary, "wb") as file,
        ):
          file.write(hashlib.sha256(content).digest())
          file.write(content)
      except ValueError as error:
        raise errors.FailedError(
          f"{error}; {self._what} was saved after {self.done:,} batches, from "
          "which the same command resumes"
        ) from error
    self.done, self._saved = done, time.monotonic()
    self._parts += 1

  def _next(self) -> str:
    return f"{self._path}.{self._parts}" if self._grows else self._path

  def _hashes(self) -> dict[str, str]:
    """The identity of the next file, which follows the batches done."""
    begin = {"place": self.done} if self._grows else {}
    return {
      name: hashlib.sha256(json.dumps(value).encode()).hexdigest()
      for name, value in {**self._identity, **begin}.items()
    }

  def _read(self) -> bytes:
    """The next file without its hash, on all processes; b"" for none."""
    path, content = epath.Path(self._next()), b""
    if jax.process_index() == 0 and path.exists():
      content = path.read_bytes()
      if problem := self._problem(content):
        console.complain(
          f"{path} {problem}: starting {self._what} at batch {self.done:,}"
        )
        content = b""
    return agreement.of_the_first(content[_DIGEST:])

  def _problem(self, content: bytes) -> str:
    """Why a file is not the next one of this pass; "" if it is."""
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
      return "is damaged"
    found = json.loads(safetensors_numpy.load(content)[_IDENTITY].tobytes())
    own = self._hashes()
    names = sorted(own.keys() | found.keys())
    other = [name for name in names if own.get(name) != found.get(name)]
    if other:
      return f"is of an evaluation that differs in {', '.join(other)}"
    return ""
