"""Compiled models that score any number of splits."""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import dataclasses
import functools
from typing import Any, Protocol

import jax
import numpy as np

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.data import crop, datasets, loader, preprocess
from vitkd_jax.evaluation import (
  contract,
  cost,
  measures,
  probes,
  resuming,
  running,
)
from vitkd_jax.runs import fingerprint, students

Advance = Callable[[int], None]


class Model(Protocol):
  """A model with its parameters, such as `scoring.Scored`."""

  model: Any
  params: Any
  images: preprocess.Preprocess

  def logits(self, params: Any, image: jax.Array) -> jax.Array:
    """[B, C] float32 of images [B, H, W, 3] uint8."""
    ...


@dataclasses.dataclass(frozen=True)
class Split:
  """Images to score a model on.

  Attributes:
    source: see `datasets.load`, with label sets if `info` has them.
    info: of its dataset.
    images: their preprocessing; of one size in all splits of a `Scorer`.
  """

  source: datasets.Source
  info: datasets.Info
  images: preprocess.Preprocess

  @property
  def described(self) -> list[Any]:
    """What its batches depend on, ready for JSON."""
    return [dataclasses.asdict(self.info), len(self.source), repr(self.images)]


class Scorer:
  """A student and its teachers, compiled once for all splits.

  Args:
    student: the model to score; teachers get the same images.
    teachers: models to compare it with, by name.
    batch_size: over all devices; rounded up to a multiple of their number. No
      result depends on it.
    with_features: whether the student shows its features, which probes need.

  Raises:
    ValueError: a batch size below 1.
  """

  def __init__(
    self,
    student: Any,
    teachers: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    with_features: bool = False,
  ):
    check.integers(1, batch_size=batch_size)
    self.mesh = sharding.make_mesh()
    self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
    self._with_features, self._ran = with_features, False
    teachers = teachers or {}
    # A path may be called "student", or as a probe is.
    self._teachers = {f"teacher {name}": name for name in teachers}
    named = zip(self._teachers, teachers.values(), strict=True)
    self._models: dict[str, Model] = {"student": student, **dict(named)}
    replicated = sharding.replicated(self.mesh)
    params = {name: model.params for name, model in self._models.items()}
    self._params = jax.device_put(params, replicated)
    rows = sharding.batch(self.mesh)
    functions = {name: model.logits for name, model in self._models.items()}
    if with_features:
      functions["student"] = student.logits_and_features
    self._forward = {
      name: jax.jit(function, out_shardings=rows)
      for name, function in functions.items()
    }

  def score(
    self,
    split: Split,
    advance: Advance = lambda number: None,
    fitted: probes.Fitted | None = None,
    kept: resuming.Pass | None = None,
  ) -> dict[str, Any]:
    """The student's results on every image of a split, each counted once.

    Args:
      split: the images.
      advance: called with the number of images of each batch.
      fitted: probes of the student, which needs `with_features`.
      kept: from `resume`, of the same split and probes; None keeps nothing.

    Returns:
      Results by name, see `Classification.compute` and `Agreement.compute`; of
      several teachers "teachers", a list of the latter with each one's "name";
      of probes "probes", see `probes.Fitted.results`.

    Raises:
      ValueError: an empty source.
      loader.InputError: too many records cannot be read.
    """
    measured = self._measures(split, fitted)
    return measured.results(self._run(split, measured, advance, kept))

  def resume(
    self,
    split: Split,
    path: str,
    settings: Mapping[str, Any],
    fitted: probes.Fitted | None = None,
  ) -> resuming.Pass:
    """What an interrupted `score` of a split has left in a file.

    Args:
      split: the images.
      path: of the file; may be a URL.
      settings: what makes another evaluation, beside all that is known here;
        by names for users, ready for JSON.
      fitted: see `score`.
    """
    zeros = self._measures(split, fitted).zeros()
    shapes = {k: f"{x.dtype}{x.shape}" for k, x in _flat(zeros).items()}
    identity = {**self._identity(split), **settings, "measures": shapes}
    if fitted:  # anew, and not always to the same bits
      identity["fitted probes"] = fitted.fingerprint()
    what = f"the evaluation on {split.info.name}"
    return resuming.Pass(path, what, identity)

  def resume_features(
    self, split: Split, path: str, settings: Mapping[str, Any]
  ) -> resuming.Pass:
    """What an interrupted `features` of a split has left in files.

    Args:
      split: the images.
      path: what their names begin with; may be a URL.
      settings: as for `resume`.
    """
    identity = {**self._identity(split), **settings}
    what = f"the pass over training images of {split.info.name}"
    return resuming.Pass(path, what, identity, grows=True)

  def _identity(self, split: Split) -> dict[str, Any]:
    """What passes over a split depend on, as `resuming.Pass` has it."""
    return {
      "batch size": self.batch_size,
      "dataset": split.described,
      "models": {k: repr((m.model, m.images)) for k, m in self._models.items()},
      "parameters": self._hashes,
    }

  @functools.cached_property
  def _hashes(self) -> dict[str, str]:
    return {
      name: students.sha256(fingerprint.paths(model.params))
      for name, model in self._models.items()
    }

  def _measures(
    self, split: Split, fitted: probes.Fitted | None
  ) -> measures.Measures:
    rows = -(-len(split.source) // self.batch_size) * self.batch_size
    return measures.Measures(split.info, rows, self._teachers, fitted)

  def _run(
    self,
    split: Split,
    measured: measures.Measures,
    advance: Advance,
    kept: resuming.Pass | None,
  ) -> dict[str, Any]:
    """The sums of evaluators over a split, on the host."""
    replicated, fitted = sharding.replicated(self.mesh), measured.fitted
    update = jax.jit(
      running.make_update(measured.evaluators), out_shardings=replicated
    )

    def step(
      sums: running.Sums, params: Mapping[str, Any], batch: contract.Batch
    ) -> running.Sums:
      logits = {
        name: self._alone(forward, params[name], batch["image"])
        for name, forward in self._forward.items()
      }
      if self._with_features:
        logits["student"], features = logits["student"]
      if fitted:
        logits |= self._alone(fitted.scores, features)
      return update(sums, logits, _without_image(batch))

    done, sums = kept.done if kept else 0, measured.zeros()
    if kept and kept.found:
      leaves = [kept.found[0][name] for name in _flat(sums)]
      sums = jax.tree.unflatten(jax.tree.structure(sums), leaves)

    def after_batch(sums: Mapping[str, running.Sums]) -> None:
      nonlocal done
      advance(self._images(split, done))
      done += 1
      if kept:
        kept.after_batch(done, lambda: _flat(jax.device_get(sums["all"])))

    with contextlib.closing(self._batches(split, done)) as batches:
      sums = running.run(
        step,
        sharding.place(sums, replicated),
        {"all": self._params},
        batches,
        self.mesh,
        after_batch,
      )["all"]
    if kept:
      kept.save(done, _flat(sums))
    return sums

  def features(
    self,
    split: Split,
    advance: Advance = lambda number: None,
    kept: resuming.Pass | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The student's features of a split, which needs `with_features`.

    Args:
      split: the images.
      advance: called with the number of images of each batch.
      kept: from `resume_features`, of the same split; None keeps nothing.

    Returns:
      [N, D] float32 and the labels [N] int32, on every process alike, without
      images that cannot be read.

    Raises:
      loader.InputError: too many records cannot be read.
    """
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(self.mesh))
    found, start = (list(kept.found), kept.done) if kept else ([], 0)
    saved = len(found)

    def new() -> resuming.Arrays:
      nonlocal saved
      rows, saved = found[saved:], len(found)
      return {k: np.concatenate([x[k] for x in rows]) for k in ("x", "label")}

    with contextlib.closing(self._batches(split, start)) as batches:
      for done, local in enumerate(batches, start):
        batch = sharding.global_batch(local, self.mesh)
        forward, params = self._forward["student"], self._params["student"]
        _, x = self._alone(forward, params, batch["image"])
        wanted = (x, batch["label"], batch["weight"])
        x, label, weight = jax.device_get(self._alone(gather, wanted))
        found.append({"x": x[weight > 0], "label": label[weight > 0]})
        advance(self._images(split, done))
        if kept:
          kept.after_batch(done + 1, new)
    if kept and len(found) > saved:
      kept.save(done + 1, new())
    saved = 0
    rows = new()
    return rows["x"], rows["label"]

  def _alone(self, function: Callable[..., Any], *args: Any) -> Any:
    """What a program returns, which may not run beside another one."""
    found = function(*args)
    self._ran = True
    sharding.limit_dispatch(self.mesh, None, found)
    return found

  def left(self, split: Split, kept: resuming.Pass | None) -> int:
    """The number of images that a pass has not been over.

    Args:
      split: the images.
      kept: what there is of the pass.
    """
    done = kept.done * self.batch_size if kept else 0
    return max(0, len(split.source) - done)

  def _images(self, split: Split, index: int) -> int:
    """The number of images in a batch."""
    return min(self.batch_size, len(split.source) - index * self.batch_size)

  def _batches(self, split: Split, start: int = 0) -> loader.Batches:
    return loader.eval_batches(
      split.source,
      batch_size=self.batch_size,
      start=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      crop=crop.centre(split.images),
    )

  def speed(self) -> dict[str, Any]:
    """The speed of the student's forward pass, see `cost.speed`."""
    forward, params = self._forward["student"], self._params["student"]
    shape = (self.batch_size, *self._models["student"].images.size, 3)
    return cost.speed(
      lambda image: forward(params, image),
      shape,
      self.mesh,
      compiled=self._ran,
    )


def fitting(batch_size: int, sources: Iterable[datasets.Source]) -> int:
  """A batch size, no larger than the largest of some sources.

  Args:
    batch_size: asked for.
    sources: of images.
  """
  check.integers(1, batch_size=batch_size)
  return max(1, min(batch_size, max(map(len, sources))))


def _without_image(batch: contract.Batch) -> dict[str, jax.Array]:
  return {name: x for name, x in batch.items() if name != "image"}


def _flat(sums: running.Sums) -> dict[str, Any]:
  """Arrays by the names that a file has."""
  return {f"sums/{name}": x for name, x in fingerprint.paths(sums).items()}
