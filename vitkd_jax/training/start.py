"""The weights that a student starts from, instead of random ones."""

from collections.abc import Mapping
import contextlib
import dataclasses
from typing import Any

from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import variants
from vitkd_jax.runs import students
from vitkd_jax.training import fields, teachers
from vitkd_jax.weights import files


@dataclasses.dataclass
class Start:
  """A student's first weights.

  Attributes:
    keys: `init` and `init_head`, which say what they are.
    model: variant and fields of the student.
    info: dataset description.
    image_size: (H, W) of the student's images, in pixels.
    pin: which weights they are; until `read`, those of the run's first start.
    notes: what was read and changed, in sentences.
  """

  keys: fields.Own
  model: Mapping[str, Any]
  info: datasets.Info
  image_size: tuple[int, int]
  pin: teachers.Pin
  notes: tuple[str, ...] = ()
  _params: dict[str, Any] | None = None

  def params(self) -> dict[str, Any]:
    """Parameters of the student, on the host; without heads to be drawn."""
    if self._params is None:
      self.read()
    assert self._params is not None
    return self._params

  def read(self) -> None:
    """Reads the weights.

    Raises:
      ValueError: they cannot be read, or do not fit the student.
    """
    path, keep = self.keys.init, self.keys.init_head == "keep"
    values = {**self.model}
    try:
      loaded = students.load(
        path,
        variant=values.pop("variant"),
        num_classes="file" if keep else None,
        image_size=self.image_size,
        adopt=False,  # the config alone says what the student is
        step=None if _file(path, saved=True) else self.pin.step,
        **values,
      )
      said = students.stated(path)
    except ValueError as error:
      raise ValueError(f"config.student.init: {error}") from None
    classes = self.info.num_classes
    if keep and loaded.num_classes != classes:
      raise ValueError(
        f"expected weights with {self.info.name}'s {classes} classes in "
        f"config.student.init, got {loaded.num_classes or 'no'} classes in "
        f"{path}; set config.student.init_head='init' for a new head"
      )
    notes = loaded.notes
    if keep:
      notes += scoring.compare_classes(
        f"config.student.init={path}", said.class_names, self.info
      )
    else:
      notes += (f"a new head is drawn for {classes} classes",)
    own = variants.get(self.model["variant"])
    images = said.preprocess or own
    if (images.mean, images.std) != (own.mean, own.std):
      notes += (
        f"they were trained on images normalised by mean {images.mean} and std "
        f"{images.std}, the student's are by {own.mean} and {own.std}",
      )
    self._params, self.notes = loaded.params, notes
    step = loaded.saved.step if loaded.saved else None
    self.pin = teachers.Pin(loaded.sha256(), step)


def make(
  section: Mapping[str, Any],
  info: datasets.Info,
  image_size: tuple[int, int],
  *,
  from_file: bool,
  pinned: teachers.Pin | None,
  resumes: bool,
) -> Start | None:
  """The weights that a student starts from; None for random ones.

  A run that resumes from a checkpoint does not need them, and they may be gone.
  A file that is still there must be the one that the run started from.

  Args:
    section: section `student`.
    info: dataset description.
    image_size: (H, W) of a batch, in pixels.
    from_file: read the weights; False plans with shapes alone.
    pinned: the weights that the run's first start took.
    resumes: the run has a checkpoint.

  Raises:
    ValueError: a key is wrong, or the weights cannot be read or do not fit.
  """
  keys = fields.own(section)
  if not keys.init:
    return None
  start = Start(
    keys, fields.model(section), info, image_size, pinned or teachers.Pin()
  )
  if not from_file:
    return start
  if not (resumes and pinned):
    start.read()
  elif pinned.step is None and (file := _file(keys.init)):
    with contextlib.suppress(ValueError):  # unreadable, which does not matter
      start.pin = teachers.Pin(files.sha256(file))
  return start


def _file(path: str, *, saved: bool = False) -> str | None:
  """The file that a path stands for; None for checkpoints, and for nothing."""
  try:
    return students.find(path, saved=saved)
  except ValueError:
    return None
