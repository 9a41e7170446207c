"""The weights that a workdir stands for: one rule for every command.

A workdir stands for the student that its run exported. Before the export, or
if `step` or `which` is given, it stands for a checkpoint: for the moving
average if the run keeps one, as that is what it will export, else for the
student.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from vitkd_jax import check as checks
from vitkd_jax.data import preprocess as preprocessing
from vitkd_jax.models import fitting, variants, vit
from vitkd_jax.weights import hub, loading, opening, resolve

_NAMES = {"student": "student", "ema": "moving average"}


@dataclasses.dataclass(frozen=True)
class Saved:
  """The part of a checkpoint that was read.

  Attributes:
    which: "student" or "ema".
    step: updates done.
    sha256: hash of the parameters, see `sha256`.
  """

  which: str
  step: int
  sha256: str

  @property
  def note(self) -> str:
    """A description for users."""
    return f"{_NAMES[self.which]} of the checkpoint of step {self.step}"


@dataclasses.dataclass(frozen=True)
class Loaded(loading.Loaded):
  """Parameters from a file or a run.

  Attributes:
    saved: the part of a checkpoint that was read; None for a file.
  """

  saved: Saved | None = None

  def sha256(self) -> str:
    """The hash of the file, or of a checkpoint's parameters."""
    return self.saved.sha256 if self.saved else super().sha256()


def load(
  path: str | os.PathLike,
  *,
  variant: str,
  image_size: int | tuple[int, int] | None = None,
  which: str | None = None,
  step: str | int | None = None,
  source: str | None = None,
  **options: Any,
) -> Loaded:
  """Parameters of a model from weights of any kind, checkpoints included.

  Args:
    path: as for `weights.load`; or a workdir, or its folder of checkpoints.
    variant: name of the model, as for `vit.Model`.
    image_size: side or (rows, columns) in pixels; by default as the weights
      state, else the variant's.
    which: "student" or "ema" of a workdir's checkpoint.
    step: of the checkpoint: "latest", "best" (highest top-1) or a number; by
      default the exported student, else the latest checkpoint.
    source: name of the format; None detects it from the names of the leaves.
    **options: `num_classes` and others of `loading.to_model`.

  Raises:
    ValueError: the weights cannot be read or do not fit the model.
  """
  check(which, step)
  variants.get(variant)  # refuse an unknown name before reading
  path = hub.local(path)
  file = find(path, saved=(which, step) != (None, None))
  if file is not None and step is not None:
    raise ValueError(
      f"step={step!r} needs a workdir with checkpoints, got {path!r}"
    )
  options |= dict(variant=variant, image_size=image_size)
  if file is not None:
    return Loaded(**vars(loading.of_file(path, file, which, source, **options)))
  leaves, saved = read(path, which, step)
  content = loading.Content(leaves, "checkpoint", notes=(saved.note,))
  if image_size is None:
    options["image_size"] = stated(path).image_size
  found = loading.to_model(path, content, **options)
  return Loaded(**vars(found), saved=saved)


def find(path: str, *, saved: bool = False) -> str | None:
  """The file of weights that a path stands for; None for checkpoints of ours.

  Args:
    path: as for `load`.
    saved: prefer the checkpoints of a workdir to its exported file.

  Raises:
    ValueError: there are no weights at the path.
  """
  path = hub.local(path)
  if path.startswith(resolve.SHIPPED) or not opening.is_folder(path):
    return resolve.find(path)
  ours = opening.is_folder(os.path.join(path, "checkpoints"))
  file = None if ours and saved else resolve.in_folder(path)
  if file is None and (
    ours or os.path.basename(os.path.normpath(path)) == "checkpoints"
  ):
    return None
  return file or resolve.find(path)  # whose message says what is missing


def stated(path: str | os.PathLike) -> resolve.Stated:
  """What a workdir, a file or another folder states about its model.

  Args:
    path: as for `load`.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  return resolve.checked(path, _describe)


def _describe(path: str) -> resolve.Stated:
  if path.startswith(resolve.SHIPPED) or not opening.is_folder(path):
    return resolve.describe(path)
  config = opening.read_json(os.path.join(path, "config.json"))
  sections = config.get("config")
  student = isinstance(sections, dict) and sections.get("student")
  if isinstance(student, dict) and "variant" in student:
    return _of_run(path, config, student)
  said = resolve.of_folder(path, config)
  if said is not None:
    return said
  file = find(path)
  return resolve.Stated() if file is None else resolve.of_file(file)


def _of_run(
  path: str, config: Mapping[str, Any], student: Mapping[str, Any]
) -> resolve.Stated:
  fields = resolve.tuples({k: v for k, v in student.items() if k in vit.FIELDS})
  variant = student["variant"]
  images, names = config.get("preprocess"), config.get("class_names")
  if images:
    images = preprocessing.from_dict(images)
    return resolve.Stated(
      variant, fields, images.size, images, resolve.class_names(names)
    )
  # Older runs: config.json has the crop, the file the size of whole images.
  data = config["config"].get("data") or {}
  short = preprocessing.short_side(
    data.get("image_size") or 0, data.get("eval_resize") or 0
  )
  file = os.path.join(path, resolve.EXPORTED)
  size = (data["image_size"],) * 2 if short else None
  if size is None and resolve.in_folder(path) == file:
    size = resolve.of_file(file).image_size
  if size is None:
    return resolve.Stated(variant, fields)
  named = variants.get(variant)
  images = preprocessing.Preprocess(size, short, named.mean, named.std)
  return resolve.Stated(variant, fields, size, images)


def check(which: str | None, step: str | int | None) -> str | int:
  """The step to read: "latest", "best" or a number.

  Args:
    which: "student", "ema" or None.
    step: "latest", "best", a number or its text; None for the latest.

  Raises:
    ValueError: another value of either.
  """
  if which is not None:
    checks.known("which", which, _NAMES)
  if step is None:
    return "latest"
  if isinstance(step, str) and step.isdecimal():
    return int(step)
  if isinstance(step, str) and step not in ("latest", "best"):
    raise ValueError(
      f"expected step to be 'latest', 'best' or a number, got {step!r}"
    )
  return step


def read(
  path: str | os.PathLike, which: str | None, step: str | int | None
) -> tuple[dict[str, np.ndarray], Saved]:
  """A student's leaves from a run's checkpoints.

  Args:
    path: a workdir, or its folder `checkpoints`; may be a URL.
    which: "student" or "ema"; None for the moving average if the run keeps
      one.
    step: "latest", "best" (highest top-1) or a number; None for the latest.

  Returns:
    (leaves, saved): float32 arrays by name, with parts joined by "/" and one
    leaf per block; and the part of the checkpoint that they are.

  Raises:
    ValueError: there is no such checkpoint, none is intact, or it has no
      moving average.
  """
  folder, (state, found) = _read(path, check(which, step))
  if which == "ema" and state["ema"] is None:
    raise ValueError(
      f"which='ema': the run in {folder} keeps no moving average "
      "(config.run.ema_decay=0); take which='student'"
    )
  which = which or ("student" if state["ema"] is None else "ema")
  params = state["ema"] if which == "ema" else state["params"]["student"]
  leaves = traverse_util.flatten_dict(jax.device_get(params), sep="/")
  leaves = fitting.unstack(leaves)
  return leaves, Saved(which, found, sha256(leaves))


def trained(path: str | os.PathLike) -> dict[str, Any]:
  """{"student": ..., "methods": {name: ...}} of a run's latest checkpoint.

  Args:
    path: a workdir; may be a URL.

  Raises:
    ValueError: there is no checkpoint, or none is intact.
  """
  return _read(path, "latest")[1][0]["params"]


def _read(
  path: str | os.PathLike, step: str | int
) -> tuple[epath.Path, tuple[Any, int]]:
  """The folder of checkpoints, a state and its step."""
  # Imported here, as orbax doubles the time of a command's start.
  from vitkd_jax.runs import checkpoint

  candidates = epath.Path(path) / "checkpoints", epath.Path(path)
  folder = next((path for path in candidates if path.is_dir()), None)
  if folder is None:
    raise ValueError(
      f"expected checkpoints in {os.fspath(path)}, got no such folder"
    )
  with checkpoint.Checkpoints(folder, read_only=True) as checkpoints:
    return folder, checkpoints.read(step)


def sha256(leaves: Mapping[str, np.ndarray]) -> str:
  """The SHA-256 of parameters: of names, dtypes, shapes and values.

  Args:
    leaves: arrays by name.

  Returns:
    64 hexadecimal digits, the same for any file that holds these leaves.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(leaves.items()):
    digest.update(f"{name} {leaf.dtype.name} {leaf.shape}\n".encode())
    digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
  return digest.hexdigest()
