"""What a run's checkpoints stand for as weights: one rule for every command.

A workdir is the student that its run exported. Where there is none yet, or a
step or `which` is named, it is a checkpoint: its moving average if the run
keeps one, for that is what the run exports, else its student.
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

from vitkd_jax.data import preprocess as preprocessing
from vitkd_jax.models import variants, vit
from vitkd_jax.weights import big_vision, loading, resolve

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


@dataclasses.dataclass(frozen=True)
class Loaded(loading.Loaded):
  """What a file or a run gave.

  Attributes:
    saved: what was taken of a run's checkpoints; None for a file.
  """

  saved: Saved | None = None

  def sha256(self) -> str:
    """Of the file's bytes, or of a checkpoint's parameters."""
    return self.saved.sha256 if self.saved else super().sha256()


def load(
  path: str | os.PathLike,
  *,
  variant: str,
  num_classes: int | str | None,
  which: str | None = None,
  step: str | int | None = None,
  source: str | None = None,
  **options: Any,
) -> Loaded:
  """Parameters of a model from weights of any kind, a run's among them.

  Args:
    path: as for `weights.load`; or a workdir, or its folder of checkpoints.
    variant: the model's name, as `vit.Model` takes it.
    num_classes: C, None or 0 for no head, or "file" for the one that is there.
    which: "student" or "ema" of a workdir's checkpoint.
    step: of the checkpoint: "latest", "best" (of the highest top-1) or a
      number; by default the student that the run exported, else the latest.
    source: the format's name where the keys must not decide.
    **options: see `loading.load_with_notes`.

  Raises:
    ValueError: the weights cannot be read or do not fit.
  """
  check(which, step)
  path = os.path.expanduser(path)
  file = find(path, saved=(which, step) != (None, None))
  options |= {"variant": variant, "num_classes": num_classes}
  if file is not None:
    if step is not None:
      raise ValueError(
        f"step={step!r} needs a workdir with checkpoints, got {path!r}"
      )
    found = loading.load_with_notes(path, which=which, source=source, **options)
    return Loaded(**vars(found))
  variants.get(variant)  # an unknown name is said before anything is read
  leaves, saved = read(path, which, step)
  options.setdefault("image_size", None)
  if options["image_size"] is None:
    options["image_size"] = stated(path).image_size
  content = loading.Content(leaves, "checkpoint", notes=(saved.note,))
  found = loading.to_model(path, content, **options)
  return Loaded(**{**vars(found), "saved": saved})


def find(path: str, *, saved: bool = False) -> str | None:
  """The file of weights that a path stands for; None for our checkpoints.

  Args:
    path: as `load` takes it.
    saved: a workdir's checkpoints go before its exported file.

  Raises:
    ValueError: there is none.
  """
  if not path.startswith(resolve.SHIPPED) and resolve.is_folder(path):
    file = resolve.in_folder(path)
    ours = resolve.is_folder(os.path.join(path, "checkpoints"))
    if ours and (saved or file is None):
      return None
    if os.path.basename(os.path.normpath(path)) == "checkpoints" and not file:
      return None
  return resolve.find(path)


def stated(path: str | os.PathLike) -> resolve.Stated:
  """What a workdir, a file or another folder says of its model.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  return resolve.checked(path, _describe)


def _describe(path: str) -> resolve.Stated:
  if path.startswith(resolve.SHIPPED) or not resolve.is_folder(path):
    return resolve.describe(path)
  config = resolve.read_json(os.path.join(path, "config.json"))
  sections = config.get("config")
  student = isinstance(sections, dict) and sections.get("student")
  if isinstance(student, dict) and "variant" in student:
    return _of_run(path, config, student)
  return resolve.Stated() if find(path) is None else resolve.describe(path)


def _of_run(path, config, student) -> resolve.Stated:
  fields = resolve.tuples({k: v for k, v in student.items() if k in vit.FIELDS})
  variant = student["variant"]
  images, names = config.get("preprocess"), config.get("class_names")
  if images:
    images = preprocessing.from_dict(images)
    return resolve.Stated(
      variant, fields, images.size, images, resolve.class_names(names)
    )
  # Older runs: the crop is in the config, the size of whole images in the file.
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
  from vitkd_jax.runs import checkpoint

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
