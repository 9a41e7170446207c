"""Classifiers of a frozen model's features: fitted on one split, scored on any.

Features are what the model's head reads: pooled, after the last LayerNorm. A
probe makes scores of them, which an evaluator counts as a model's logits.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.evaluation import logistic, neighbours, ridge, sgd
from vitkd_jax.runs import fingerprint

# "linear" stands for both linear probes that end at their minimum.
NAMES = ("knn", "ridge", "logistic", "linear", "sgd", "fewshot")
_LINEAR = ("ridge", "logistic", "sgd")
# Strengths to choose from; of equally good ones the first, which is strongest.
RIDGE = tuple(2.0**i for i in range(20, -1, -2))
LOGISTIC = tuple(10.0**i for i in range(0, -7, -1))
# big_vision's, for any number of images a class (`configs/common_fewshot.py`).
FEWSHOT = 2.0**10
# Of the training images one in so many chooses the strength; fewer of them than
# that cannot be divided.
_HELD_OUT = 10

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Options:
  """Which probes, and their settings.

  Attributes:
    which: some of `NAMES`.
    neighbours: numbers of nearest neighbours; by default DINO's.
    temperature: of their votes, > 0; by default DINO's.
    shots: training images a class; by default big_vision's.
    seeds: number of draws of these images.
    sgd_steps: updates by stochastic gradient descent; by default DINOv2's.

  Raises:
    ValueError: a value is out of range.
  """

  which: tuple[str, ...]
  neighbours: tuple[int, ...] = (10, 20, 100, 200)
  temperature: float = 0.07
  shots: tuple[int, ...] = (1, 5, 10, 25)
  seeds: int = 3
  sgd_steps: int = 12_500

  def __post_init__(self) -> None:
    for name in self.which:
      check.known("probe", name, NAMES)
    for each in self.neighbours:
      check.integers(1, neighbours=each)
    for each in self.shots:
      check.integers(1, shots=each)
    check.integers(1, seeds=self.seeds, sgd_steps=self.sgd_steps)
    if not (check.is_real(self.temperature) and self.temperature > 0):
      raise ValueError(f"expected temperature > 0, got {self.temperature!r}")

  def has(self, name: str) -> bool:
    """Whether a probe is asked for.

    Args:
      name: one of `NAMES` but "linear".
    """
    linear = name in ("ridge", "logistic") and "linear" in self.which
    return linear or name in self.which

  def check_size(self, number: int) -> None:
    """Refuses a training split that is too small.

    Args:
      number: of its images.

    Raises:
      ValueError: it is smaller than a number of neighbours, or cannot be
        divided.
    """
    if number < _HELD_OUT:
      raise ValueError(
        f"expected at least {_HELD_OUT} training images for the probes, got "
        f"{number}"
      )
    if self.has("knn") and max(self.neighbours) > number:
      raise ValueError(
        f"expected at most {number} neighbours, the training images, got "
        f"{max(self.neighbours)}; give a smaller --neighbours"
      )


class Fitted:
  """Probes of one model's features.

  Args:
    linear: linear classifiers by name.
    bank: training features for the neighbours, see `neighbours.place`; None
      without them.
    options: of the probes.
    num_classes: C.
    mesh: from `sharding.make_mesh`.
    about: what is known of each from its training.
    trained: "images", the number of training images, and "width", D.
  """

  def __init__(
    self,
    linear: Mapping[str, ridge.Linear],
    bank: dict[str, jax.Array] | None,
    options: Options,
    num_classes: int,
    mesh: Mesh,
    about: Mapping[str, Mapping[str, Any]],
    trained: Mapping[str, int],
  ):
    self._options, self._num_classes = options, num_classes
    self._mesh, self._about, self._trained = mesh, about, trained
    knn = [f"knn/{k}" for k in options.neighbours] if bank else []
    self.linear, self.names = tuple(linear), (*knn, *linear)
    replicated = sharding.replicated(mesh)
    params = {
      name: {"kernel": each.kernel, "bias": each.bias}
      for name, each in linear.items()
    }
    self._params = {"linear": sharding.place(params, replicated), "bank": bank}
    self._scores = jax.jit(self._compute, out_shardings=sharding.batch(mesh))

  def fingerprint(self) -> dict[str, int]:
    """The hash of every array of the linear classifiers."""
    return fingerprint.of(self._params["linear"])

  def scores(self, x: jax.Array) -> dict[str, jax.Array]:
    """Scores [B, C] float32 of features, by the name of the probe.

    Args:
      x: [B, D] float32.
    """
    return self._scores(self._params, x)

  def _compute(self, params: Any, x: jax.Array) -> dict[str, jax.Array]:
    found = {
      name: jnp.matmul(x, each["kernel"], precision="highest") + each["bias"]
      for name, each in params["linear"].items()
    }
    if params["bank"] is not None:
      voted = neighbours.votes(
        x,
        params["bank"],
        self._mesh,
        neighbours=self._options.neighbours,
        temperature=self._options.temperature,
        num_classes=self._num_classes,
      )
      found |= dict(zip(self.names, voted, strict=False))
    return found

  def results(
    self, scored: Mapping[str, Mapping[str, float]]
  ) -> dict[str, Any]:
    """What the probes reach, ready for JSON.

    Args:
      scored: "top1" and "top5" by the name of the probe.

    Returns:
      "images", the number of training images, and "width" of the features;
      "knn": of each number of neighbours k, temperature, top1 and top5;
      "ridge" and "logistic": l2, held_out_top1, top1 and top5; "sgd":
      learning_rate in the place of l2, steps and batch_size; "fewshot": of
      each number of shots l2, the means top1 and top5 over the seeds, top1_std,
      and each seed's top1.
    """
    found: dict[str, Any] = dict(self._trained)
    of = {
      name: {**self._about[name], **{k: scored[name][k] for k in _SHARES}}
      for name in self.names
    }
    for name in _LINEAR:
      if name in of:
        found[name] = of[name]
    if knn := [of[name] for name in self.names if name.startswith("knn/")]:
      found["knn"] = knn
    if any(name.startswith("fewshot/") for name in self.names):
      found["fewshot"] = [self._few(shots, of) for shots in self._options.shots]
    return found

  def _few(self, shots: int, of: Mapping[str, Any]) -> dict[str, Any]:
    seeds = range(self._options.seeds)
    each = [of[f"fewshot/{shots}/{seed}"] for seed in seeds]
    top1 = [one["top1"] for one in each]
    return {
      "shots": shots,
      "l2": FEWSHOT,
      "top1": statistics.fmean(top1),
      "top5": statistics.fmean(one["top5"] for one in each),
      "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
      "top1_of_seeds": top1,
    }


_SHARES = ("top1", "top5")


def fit(
  options: Options,
  x: np.ndarray,
  label: np.ndarray,
  num_classes: int,
  mesh: Mesh,
  advance: Advance = lambda number: None,
) -> Fitted:
  """The probes of a model's features of training images.

  Args:
    options: which probes.
    x: [N, D] float32, at least 10 rows; equal on all processes.
    label: [N] int32.
    num_classes: C.
    mesh: from `sharding.make_mesh`.
    advance: called with the number of iterations done, of all probes.
  """
  linear: dict[str, ridge.Linear] = {}
  about: dict[str, dict[str, Any]] = {}
  held = _held_out(len(x))
  if options.has("ridge"):
    made = ridge.fit(x[~held], label[~held], num_classes, RIDGE)
    best, top1 = _best(made, x[held], label[held])
    (linear["ridge"],) = ridge.fit(x, label, num_classes, [RIDGE[best]])
    about["ridge"] = {"l2": RIDGE[best], "held_out_top1": top1}
  if options.has("logistic"):
    regression = logistic.Regression(x, label, num_classes, mesh)
    made = [regression.minimise(l2, ~held, advance)[0] for l2 in LOGISTIC]
    best, top1 = _best(made, x[held], label[held])
    l2 = LOGISTIC[best]
    linear["logistic"], number = regression.minimise(l2, None, advance)
    about["logistic"] = {
      "l2": l2,
      "iterations": number,
      "held_out_top1": top1,
    }
    del regression
  if options.has("sgd"):
    linear["sgd"], about["sgd"] = _descended(
      options, x, label, num_classes, mesh, advance
    )
  if options.has("fewshot"):
    few = _few_shot(options, x, label, num_classes)
    linear |= few
    about |= {name: {} for name in few}
  bank = neighbours.place(x, label, mesh) if options.has("knn") else None
  if bank:
    for k in options.neighbours:
      about[f"knn/{k}"] = {"k": k, "temperature": options.temperature}
  trained = {"images": len(x), "width": x.shape[1]}
  return Fitted(linear, bank, options, num_classes, mesh, about, trained)


def _descended(
  options: Options,
  x: np.ndarray,
  label: np.ndarray,
  num_classes: int,
  mesh: Mesh,
  advance: Advance,
) -> tuple[ridge.Linear, dict[str, Any]]:
  """By `sgd`, at the best of its rates; and what is known of it."""
  held, steps = _held_out(len(x)), options.sgd_steps
  made = sgd.fit(
    x[~held], label[~held], num_classes, mesh, steps=steps, advance=advance
  )
  best, top1 = _best(made, x[held], label[held])
  rate = sgd.RATES[best]
  (found,) = sgd.fit(
    x, label, num_classes, mesh, steps=steps, rates=[rate], advance=advance
  )
  size = min(sgd.BATCH, len(x))
  about = {"learning_rate": rate, "steps": steps, "batch_size": size}
  return found, {**about, "held_out_top1": top1}


def _held_out(number: int) -> np.ndarray:
  """The images [N] bool that choose a strength, drawn at random."""
  drawn = np.random.default_rng(0).permutation(number)
  return drawn < number // _HELD_OUT


def _best(
  made: Sequence[ridge.Linear], x: np.ndarray, label: np.ndarray
) -> tuple[int, float]:
  """Which classifier is right most often, the first of equals; how often."""
  shares = [each.top1(x, label) for each in made]
  best = int(np.argmax(shares))
  return best, shares[best]


def _few_shot(
  options: Options, x: np.ndarray, label: np.ndarray, num_classes: int
) -> dict[str, ridge.Linear]:
  """Classifiers from a few images a class, drawn as big_vision draws them.

  A class that has fewer images gives all of them.

  Raises:
    ValueError: no class has as many images.
  """
  most = int(np.bincount(label).max())
  if max(options.shots) > most:
    raise ValueError(
      f"expected at most {most} shots, the training images of the largest "
      f"class, got {max(options.shots)}; give smaller --shots"
    )
  found = {}
  for seed in range(options.seeds):
    rng = np.random.default_rng(seed)
    drawn = [
      rng.permutation(np.flatnonzero(label == c)) for c in range(num_classes)
    ]
    for shots in options.shots:
      rows = np.concatenate([each[:shots] for each in drawn])
      (found[f"fewshot/{shots}/{seed}"],) = ridge.fit(
        x[rows], label[rows], num_classes, [FEWSHOT]
      )
  return found
