"""Compiled models that score any number of splits."""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import dataclasses
import math
import time
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.data import crop, datasets, loader, preprocess
from vitkd_jax.evaluation import (
  agreement,
  classification,
  contract,
  probes,
  running,
)

Advance = Callable[[int], None]
# Seconds for which a forward pass is repeated to be timed, or how often it is
# in each of several processes.
_TIMED, _PASSES = 1.0, 3


class Model(Protocol):
  """A model with its parameters, such as `scoring.Scored`."""

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
    self._with_features = with_features
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
  ) -> dict[str, Any]:
    """The student's results on every image of a split, each counted once.

    Args:
      split: the images.
      advance: called with the number of images of each batch.
      fitted: probes of the student, which needs `with_features`.

    Returns:
      Results by name, see `Classification.compute` and `Agreement.compute`; of
      several teachers "teachers", a list of the latter with each one's "name";
      of probes "probes", see `probes.Fitted.results`.

    Raises:
      ValueError: an empty source.
      loader.InputError: too many records cannot be read.
    """
    info = split.info
    classes = info.scored_classes
    batches = -(-len(split.source) // self.batch_size)
    evaluators: dict[str, contract.Evaluator] = {
      "student": classification.Classification(
        classes,
        info.class_names,
        info.label_sets,
        room=batches * self.batch_size,
      )
    }
    for name in self._teachers:
      evaluators[name] = agreement.Agreement(classes, name)
    for name in fitted.names if fitted else ():
      evaluators[name] = classification.Classification(
        classes, None, info.label_sets, model=name
      )
    sums = self._run(split, evaluators, advance, fitted)
    results = {
      name: evaluator.compute(sums[name])
      for name, evaluator in evaluators.items()
    }
    found = results["student"]
    names = ("classes", "confusion", "confusions")
    large = {name: found.pop(name) for name in names if name in found}
    taught = {name: results[key] for key, name in self._teachers.items()}
    if len(taught) == 1:
      found |= next(iter(taught.values()))
    elif taught:
      found["teachers"] = [{"name": k, **each} for k, each in taught.items()]
    if fitted:
      found["probes"] = fitted.results(results)
    if classes:
      found["scored_classes"] = len(classes)
    return found | large  # last, as they are long

  def _run(
    self,
    split: Split,
    evaluators: Mapping[str, contract.Evaluator],
    advance: Advance,
    fitted: probes.Fitted | None,
  ) -> dict[str, Any]:
    """The sums of evaluators over a split, on the host."""
    replicated = sharding.replicated(self.mesh)
    update = jax.jit(running.make_update(evaluators), out_shardings=replicated)

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

    zeros = jax.device_put(running.zero_sums(evaluators), replicated)
    with contextlib.closing(self._batches(split)) as batches:
      return running.run(
        step,
        zeros,
        {"all": self._params},
        batches,
        self.mesh,
        after_batch=self._counting(split, advance),
      )["all"]

  def features(
    self, split: Split, advance: Advance = lambda number: None
  ) -> tuple[np.ndarray, np.ndarray]:
    """The student's features of a split, which needs `with_features`.

    Args:
      split: the images.
      advance: called with the number of images of each batch.

    Returns:
      [N, D] float32 and the labels [N] int32, on every process alike, without
      images that cannot be read.

    Raises:
      loader.InputError: too many records cannot be read.
    """
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(self.mesh))
    after_batch = self._counting(split, advance)
    found = []
    with contextlib.closing(self._batches(split)) as batches:
      for local in batches:
        batch = sharding.global_batch(local, self.mesh)
        forward, params = self._forward["student"], self._params["student"]
        _, x = self._alone(forward, params, batch["image"])
        wanted = (x, batch["label"], batch["weight"])
        x, label, weight = jax.device_get(self._alone(gather, wanted))
        found.append((x[weight > 0], label[weight > 0]))
        after_batch()
    x, label = (np.concatenate(each) for each in zip(*found, strict=True))
    return x, label

  def _alone(self, function: Callable[..., Any], *args: Any) -> Any:
    """What a program returns, which may not run beside another one."""
    found = function(*args)
    sharding.limit_dispatch(self.mesh, None, found)
    return found

  def _counting(self, split: Split, advance: Advance) -> Callable[[], None]:
    """Calls `advance` with the number of images, once for each batch."""
    numbers = (
      min(self.batch_size, len(split.source) - start)
      for start in range(0, len(split.source), self.batch_size)
    )
    return lambda: advance(next(numbers))

  def _batches(self, split: Split) -> loader.Batches:
    return loader.eval_batches(
      split.source,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      crop=crop.centre(split.images),
    )

  def speed(self) -> dict[str, Any]:
    """The speed of the student's compiled forward pass.

    The images are on the devices already: it is without reading and decoding.
    Call it after `score`, or the first pass may be slowed by the compiler.

    Returns:
      "images_per_second" on all devices, "batch_size", "devices", their number,
      and "device", their kind.
    """
    student = self._models["student"]
    shape = (self.batch_size, *student.images.size, 3)
    rows = sharding.batch(self.mesh)
    image = jax.jit(lambda: jnp.zeros(shape, jnp.uint8), out_shardings=rows)()
    jax.block_until_ready(image)
    seconds: list[float] = []
    while not seconds or self._goes_on(seconds):
      began = time.monotonic()
      found = self._forward["student"](self._params["student"], image)
      jax.block_until_ready(found)
      seconds.append(time.monotonic() - began)
    devices = self.mesh.devices.flat
    return {
      "images_per_second": self.batch_size / min(seconds),
      "batch_size": self.batch_size,
      "devices": len(devices),
      "device": devices[0].device_kind,
    }

  def _goes_on(self, seconds: list[float]) -> bool:
    """Whether to time one more pass: all processes must say the same."""
    if jax.process_count() > 1:
      return len(seconds) < _PASSES
    return sum(seconds) < _TIMED


def cost(scored: Any) -> dict[str, Any]:
  """What one image costs a model.

  Args:
    scored: a `scoring.Scored`.

  Returns:
    "parameters", their number, and "flops" of a forward pass: matrix products
    alone, two FLOPs per multiply-add.
  """
  grid = scored.model.grid(*scored.images.size)
  leaves = jax.tree.leaves(scored.params)
  return {
    "parameters": sum(math.prod(jnp.shape(leaf)) for leaf in leaves),
    "flops": sum(scored.model.forward_flops(grid)),
  }


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
