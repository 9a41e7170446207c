"""One pass over images that measures models and compares them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax import check
from vitkd_jax.data import crop, datasets, loader
from vitkd_jax.diagnostics import (
  attention,
  calibration,
  findings,
  fit,
  gallery,
  generation,
  matching,
  similarity,
  spectra,
)
from vitkd_jax.distill import losses, tokens
from vitkd_jax.evaluation import scoring

# Fewer examples have no unbiased HSIC.
_FEWEST = 4


def inspect(
  student: scoring.Scored,
  source: datasets.Source,
  info: datasets.Info,
  *,
  teacher: scoring.Scored | None = None,
  trained: generation.Trained | None = None,
  images: int = 256,
  batch_size: int = 64,
  kernel: str = "linear",
  advance: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
  """What the maps and logits of a model look like, beside another's.

  The maps are those after each block, patch tokens only.

  Args:
    student: the model.
    source: of images, see `datasets.load`.
    info: of the dataset.
    teacher: the model to compare it with, which gets the same images.
    trained: the methods that made maps when the student was trained.
    images: number of images, evenly spaced in the source; whole batches count.
    batch_size: images at a time, and in a kernel of the alignment; at least 4.
    kernel: of the alignment, see `similarity.KERNELS`.
    advance: called with the number of images of each batch.

  Returns:
    Ready for JSON but for "gallery" (see `gallery.make`): "images", "models"
    ({"student", "teacher"}: see `findings`), and with a teacher "cka"
    [student's blocks][teacher's], "pairs" (see `findings`), "agreement", "kl"
    by class and "advice"; with `trained`, "made" (see `findings`).

  Raises:
    ValueError: a number or the kernel is wrong, or there are too few images.
    loader.InputError: too many records cannot be read.
  """
  check.integers(1, images=images)
  check.integers(_FEWEST, batch_size=batch_size)
  check.known("kernel", kernel, similarity.KERNELS)
  batch_size = min(batch_size, images, len(source))
  if batch_size < _FEWEST:
    raise ValueError(
      f"expected at least {_FEWEST} images, got {min(images, len(source))}"
    )
  number = min(images, len(source)) // batch_size
  models = {"student": student}
  if teacher is not None:
    models["teacher"] = teacher
  step = jax.jit(functools.partial(_step, models, kernel))
  params = {name: model.params for name, model in models.items()}
  rebuild = _rebuilding(trained)
  batches = loader.eval_batches(
    _Sample(source, number * batch_size),
    batch_size=batch_size,
    process_index=0,
    process_count=1,
    crop=crop.centre(student.images),
  )
  total, shown, good = None, [], 0
  with contextlib.closing(batches):
    for batch in _without_bad(batches, batch_size):
      found = jax.device_get(step(params, batch["image"], batch["label"]))
      for name in models:
        for block in found[name]["blocks"]:
          each = spectra.image_dimensions(block.pop("grams"))
          block["dimensions"] = each.sum(0)
      found["made"] = rebuild(batch["image"])
      for sums in found["made"].values():
        sums["error"] = np.sum(sums["error"], dtype=np.float64)
      # In float64, so that no number of batches costs digits.
      found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
      total = found if total is None else jax.tree.map(np.add, total, found)
      few = -(-gallery.MOST // number)
      shown.append(batch["image"][:: batch_size // few][:few])
      good += 1
      advance(batch_size)
  if total is None:
    raise ValueError(
      f"expected a batch of {batch_size} images that can be read, got fewer"
    )
  result = findings.of(models, total, good, good * batch_size, info)
  images_ = np.concatenate(shown)[: gallery.MOST]
  looked = gallery.make(models, images_, total, result)
  if trained:
    size = trained.objective.student_side.grid
    count = good * batch_size * int(np.prod(size))
    result["made"] = findings.made(trained, total["made"], count)
    looked["made"] = gallery.made(result["made"], rebuild(images_), size)
  return result | {"gallery": looked}


def _rebuilding(
  trained: generation.Trained | None,
) -> Callable[[np.ndarray], dict[str, dict[str, np.ndarray]]]:
  """The compiled `generation.Trained.errors` of images, on the host."""
  if trained is None:
    return lambda image: {}
  compiled = jax.jit(trained.errors)
  given = {"own": trained.params, "teachers": trained.teacher_params}
  return lambda image: jax.device_get(compiled(given, image))


def _without_bad(
  batches: Iterable[Mapping[str, np.ndarray]], size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Whole batches of the records that can be read; what is left over is not."""
  left: dict[str, np.ndarray] = {}
  for batch in batches:
    good = {
      name: np.asarray(batch[name])[np.asarray(batch["weight"]) > 0]
      for name in ("image", "label")
    }
    left = {
      name: np.concatenate([left[name], x]) if left else x
      for name, x in good.items()
    }
    if len(left["label"]) >= size:
      yield {name: x[:size] for name, x in left.items()}
      left = {name: x[size:] for name, x in left.items()}


class _Sample:
  """Evenly spaced examples of a source, whose classes may come one by one."""

  def __init__(self, source: Any, number: int):
    self._source, self._number = source, number

  def __len__(self) -> int:
    return self._number

  def _index(self, index: int) -> int:
    return index * len(self._source) // self._number

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[self._index(index)]

  def read(self, index: int, crop: Any) -> dict[str, Any]:
    return self._source.read(self._index(index), crop)


def _step(
  models: Mapping[str, scoring.Scored],
  kernel: str,
  params: Mapping[str, Any],
  image: jax.Array,
  label: jax.Array,
) -> dict[str, Any]:
  """What adds up over batches."""
  found: dict[str, Any] = {}
  maps, kernels, logits = {}, {}, {}
  for name, each in models.items():
    model = each.model
    logits[name], out = matching.outputs(each, params[name], image)
    maps[name] = tokens.after_blocks(out, model.depth, model.num_prefix_tokens)
    kernels[name] = jnp.stack(
      [similarity.kernel(x.reshape(len(x), -1), kernel) for x in maps[name]]
    )
    found[name] = {
      "hsic": similarity.own_hsic(kernels[name]),
      "blocks": [_of_map(x, matching.grid(each)) for x in maps[name]],
      "calibration": calibration.sums(
        logits[name], label, jnp.ones(len(label))
      ),
    }
    if model.qkv_heads:
      found[name]["attention"] = [
        _of_attention(out, block, each) for block in range(model.depth)
      ]
  if "teacher" in models:
    found["both"] = _of_both(models, maps, kernels, logits, label)
  return found


def _of_map(x: jax.Array, grid: tuple[int, int]) -> dict[str, jax.Array]:
  x = jnp.float32(x)
  return {
    "sum": jnp.sum(x, axis=(0, 1)),
    "product": fit.product(x, x),
    "norm": jnp.sum(jnp.mean(jnp.linalg.norm(x, axis=-1), axis=1)),
    "grams": spectra.grams(x),
    "frequencies": jnp.sum(spectra.frequencies(x, grid), axis=0),
  }


def _of_attention(
  out: Mapping[str, Any], block: int, each: scoring.Scored
) -> dict[str, jax.Array]:
  found = attention.of_block(out, block)
  prefix, patch = each.model.num_prefix_tokens, each.model.patch_size
  return {
    "distance": len(found)
    * attention.distances(found, matching.grid(each), patch, prefix),
    "entropy": len(found) * attention.entropies(found),
  }


def _of_both(
  models: Mapping[str, scoring.Scored],
  maps: Mapping[str, Sequence[jax.Array]],
  kernels: Mapping[str, jax.Array],
  logits: Mapping[str, jax.Array],
  label: jax.Array,
) -> dict[str, Any]:
  student, teacher = models["student"], models["teacher"]
  grids = matching.grid(teacher), matching.grid(student)
  resampled = [tokens.resample(x, *grids) for x in maps["teacher"]]
  own, theirs = logits["student"], logits["teacher"]
  kl = losses.kl(own, theirs)
  same = jnp.argmax(own, axis=-1) == jnp.argmax(theirs, axis=-1)
  of_class = jax.nn.one_hot(label, own.shape[-1])
  each = jnp.stack([jnp.ones_like(kl), jnp.float32(same), kl])
  return {
    "hsic": similarity.hsic(kernels["student"], kernels["teacher"]),
    "resampled": [
      {"sum": jnp.sum(jnp.float32(x), (0, 1)), "product": fit.product(x, x)}
      for x in resampled
    ],
    "crossed": [
      fit.product(maps["student"][s], resampled[t])
      for s, t in similarity.pairs(student.model.depth, teacher.model.depth)
    ],
    "by_class": each @ of_class,
  }
