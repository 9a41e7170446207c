"""What a run's checkpoints stand for as weights: one rule for every command.

A workdir is the student that its run exported. Where there is none yet, or a
step or `which` is named, it is a checkpoint: its moving average if the run
keeps one, for that is what the run exports, else its student.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from vitkd_jax.weights import big_vision

EXPORTED = "student.safetensors"
_NAMES = {"student": "student", "ema": "moving average"}


@dataclasses.dataclass(frozen=True)
class Saved:
  """What was taken of a run's checkpoints.

  Attributes:
    which: "student" or "ema".
    step: updates done.
    sha256: of the parameters, see `sha256`.
  """

  which: str
  step: int
  sha256: str

  @property
  def note(self) -> str:
    """What was taken, for users."""
    return f"{_NAMES[self.which]} of the checkpoint of step {self.step}"


def is_export(file: str) -> bool:
  """Whether a file is what a run exports."""
  return os.path.basename(file) == EXPORTED


def check(which: str | None, step: str | int | None) -> str | int:
  """The step to read, "latest" for None, a number where its text is one.

  Raises:
    ValueError: neither argument's values are these.
  """
  if which not in (None, *_NAMES):
    raise ValueError(f"which={which!r}: expected 'student' or 'ema'")
  if step is None:
    return "latest"
  if isinstance(step, str) and step.isdecimal():
    return int(step)
  if isinstance(step, str) and step not in ("latest", "best"):
    raise ValueError(f"step={step!r}: expected 'latest', 'best' or a number")
  return step


def read(
  path: str | os.PathLike, which: str | None, step: str | int | None
) -> tuple[dict[str, np.ndarray], Saved]:
  """A student's leaves out of a run's checkpoints, and what was taken.

  Args:
    path: a workdir, or its folder `checkpoints`; may be gs://.
    which: "student" or "ema"; None for the moving average if the run keeps
      one.
    step: "latest", "best" (of the highest top-1) or a number; None for the
      latest.

  Returns:
    Float32 arrays by name, joined by "/", one entry a block.

  Raises:
    ValueError: no such checkpoint there, none whole, or no moving average in
      it.
  """
  # Orbax only where it is needed: it doubles a command's start.
  from vitkd_jax.training import checkpoint

  step = check(which, step)
  candidates = epath.Path(path) / "checkpoints", epath.Path(path)
  folder = next((path for path in candidates if path.is_dir()), None)
  if folder is None:
    raise ValueError(f"there is no folder {os.fspath(path)}")
  with checkpoint.Checkpoints(folder, read_only=True) as checkpoints:
    state, step = checkpoints.read(step)
  if which == "ema" and state["ema"] is None:
    raise ValueError(f"the run in {folder} keeps no moving average (ema_decay)")
  which = which or ("student" if state["ema"] is None else "ema")
  params = state["ema"] if which == "ema" else state["params"]["student"]
  leaves = traverse_util.flatten_dict(jax.device_get(params), sep="/")
  leaves = big_vision.unstack(leaves)
  return leaves, Saved(which, step, sha256(leaves))


def sha256(leaves: Mapping[str, np.ndarray]) -> str:
  """The SHA-256 of names, dtypes, shapes and values; of no file's layout."""
  digest = hashlib.sha256()
  for name, leaf in sorted(leaves.items()):
    digest.update(f"{name} {leaf.dtype.name} {leaf.shape}\n".encode())
    digest.update(np.ascontiguousarray(leaf).view(np.uint8))
  return digest.hexdigest()
