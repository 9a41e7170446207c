"""What the loop gives to its steps and evaluations, wherever the images are."""

from collections.abc import Generator
from concurrent import futures
import contextlib
import functools
from typing import Any, Protocol

import jax
import numpy as np

from vitkd_jax.cluster import sharding
from vitkd_jax.training import experiment, failures, inputs, placement

Batch = placement.Batch


class Feed(Protocol):
  """One step's input after the other."""

  def next(self) -> Any:
    """The third argument of the next step, on the mesh.

    Raises:
      errors.FailedError: the input failed.
    """
    ...

  def batch(self, given: Any) -> Batch:
    """The batch that the next step makes of what `next` returned.

    Args:
      given: what it returned.
    """
    ...

  def close(self) -> None:
    """Stops threads and worker processes."""
    ...


def start(parts: experiment.Experiment, first_step: int) -> Feed:
  """The input of the steps from `first_step` + 1 on.

  With config.data.placement="device" this reads the training split.

  Args:
    parts: the training, with images.
    first_step: number of updates done.

  Raises:
    errors.FailedError: too many records of the training split are bad.
  """
  if parts.data.placement == "device":
    return _Device(parts, first_step)
  return _Host(parts, first_step)


class Shared:
  """Starts the inputs of trainings side by side; what is equal is read once."""

  def __init__(self) -> None:
    self._sources: dict[int, _Source] = {}

  def start(self, parts: experiment.Experiment, first_step: int) -> Feed:
    """The input of one of the trainings, see the function `start`.

    Args:
      parts: the training.
      first_step: number of updates done.
    """
    source = self._sources.get(first_step)
    if source is None or not source.users:
      source = self._sources[first_step] = _Source(start(parts, first_step))
    return _Member(source)


class _Source:
  """A feed of several members: the last thing it gave, and its number."""

  def __init__(self, feed: Feed):
    self.feed, self.users = feed, 0
    self._number, self._given = 0, None

  def at(self, number: int) -> Any:
    if number == self._number + 1:
      self._given, self._number = self.feed.next(), number
    assert number == self._number, "the members are at one step"
    return self._given


class _Member:
  """What one training takes of a source; the last one closes it."""

  def __init__(self, source: _Source):
    self._source, self._number = source, 0
    source.users += 1

  def next(self) -> Any:
    self._number += 1
    return self._source.at(self._number)

  def batch(self, given: Any) -> Batch:
    return self._source.feed.batch(given)

  def close(self) -> None:
    self._source.users -= 1
    if not self._source.users:
      self._source.feed.close()


class _Host:
  """Batches that the host reads and sends."""

  def __init__(self, parts: experiment.Experiment, first_step: int):
    self._batches = _images(parts).train(first_step)
    self._mesh = parts.mesh

  def next(self) -> Batch:
    with failures.reading():
      batch = next(self._batches)
    return sharding.global_batch(batch, self._mesh)

  def batch(self, given: Batch) -> Batch:
    return given

  def close(self) -> None:
    self._batches.close()


class _Device:
  """The training split on the devices, and some steps' indices at a time."""

  def __init__(self, parts: experiment.Experiment, first_step: int):
    images, self._parts = _images(parts), parts
    self._where = placement.shardings(parts.mesh)
    self._order = images.order()
    with failures.reading():
      image, label, self._stand_in = images.whole()
    self._held = self._placed(image=image, label=label)
    self._steps = placement.window(parts.run.batch_size, parts.total_steps)
    self._step, self._end = first_step, first_step
    self._gather = jax.jit(
      functools.partial(
        placement.gather, image_shape=parts.image_shape, mesh=parts.mesh
      )
    )
    self._pool = futures.ThreadPoolExecutor(1, "order")
    self._coming = self._pool.submit(self._window, first_step)

  def next(self) -> placement.Held:
    if self._step == self._end:
      self._held = {**self._held, **self._coming.result()}
      self._end += self._steps
      # While the devices are at the steps of this one.
      self._coming = self._pool.submit(self._window, self._end)
    self._step += 1
    return self._held

  def batch(self, given: placement.Held) -> Batch:
    return self._gather(given, np.int32(self._step - 1))

  def close(self) -> None:
    self._pool.shutdown(cancel_futures=True)

  def _window(self, first: int) -> dict[str, jax.Array]:
    """The indices of the examples of some steps, and the first of these."""
    size = self._parts.run.batch_size
    rows = self._order.between(first * size, (first + self._steps) * size)
    return self._placed(
      rows=self._stand_in[rows].reshape(self._steps, size),
      first=np.int32(first),
    )

  def _placed(self, **arrays: Any) -> dict[str, jax.Array]:
    where = {name: self._where[name] for name in arrays}
    return sharding.place(arrays, where)


class Evaluations:
  """The batches of one evaluation after the other.

  With config.data.placement="device" those of the first stay on the devices.

  Args:
    parts: the training, with images.
  """

  def __init__(self, parts: experiment.Experiment):
    self._images, self._mesh = _images(parts), parts.mesh
    self._keeps = parts.data.placement == "device"
    self._kept: list[Batch] | None = None

  def batches(self) -> Generator[Batch, None, None]:
    """Global batches, see `inputs.Inputs.evaluation`; a generator to close."""
    if self._kept is not None:
      yield from self._kept
      return
    kept = []
    with contextlib.closing(self._images.evaluation()) as batches:
      for batch in batches:
        placed = sharding.global_batch(batch, self._mesh)
        kept += [placed] if self._keeps else []
        yield placed
    self._kept = kept if self._keeps else None


def _images(parts: experiment.Experiment) -> inputs.Inputs:
  if isinstance(parts.inputs, inputs.Planned):
    raise ValueError("expected an experiment with images, got a planned one")
  return parts.inputs
