"""The real train step, compiled for a TPU slice without the slice.

The `libtpu` wheel has the TPU's compiler, which needs no TPU. It says how much
memory the step takes, what the chips send each other and, by its own cost
model, how many cycles the step takes. Only the config is read: parameters,
images and the teacher's weights are shapes.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
import ml_collections

from vitkd_jax.data import datasets
from vitkd_jax.estimate import flops, hlo
from vitkd_jax.models import variants
from vitkd_jax.training import experiment, inputs, placement, sections

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU generation.

  Attributes:
    hbm_gb: advertised memory of a chip, in 10^9 or 2^30 bytes; the compiler
      may use slightly less.
    peak: bfloat16 FLOP/s of a chip.
    clock: cycles per second: `peak` / (2 x 128^2 x matrix units), the FLOPs of
      a cycle, with 8 units for v4, 4 for v5e and 8 for v5p. v6e: the
      compiler's model does more than two units of 256^2 could; four assumed.
    sides: dimensions of a slice: 2 for a plane, 3 for a cube.
    cores: cores per chip that a name like v4-32 counts.

  Sources: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
  """

  hbm_gb: int
  peak: float
  clock: float
  sides: int
  cores: int = 1


CHIPS = {
  "v4": Chip(32, 275e12, 1.05e9, sides=3, cores=2),
  "v5e": Chip(16, 197e12, 1.5e9, sides=2),
  "v5p": Chip(95, 459e12, 1.75e9, sides=3, cores=2),
  "v6e": Chip(32, 918e12, 1.75e9, sides=2),
}

# Classes and examples of datasets that can be planned for unprepared.
# ILSVRC 2012, arXiv:1409.0575.
_KNOWN = {"imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000})}

# Keeps libtpu from asking a metadata server, which only exists on a TPU VM.
_OFF_CLOUD = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Otherwise a second compilation on the same machine is refused.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice.

  Attributes:
    chip: a key of CHIPS.
    shape: number of chips along each side.
  """

  chip: str
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(self.shape)

  def __str__(self) -> str:
    return f"{self.chip}:{'x'.join(map(str, self.shape))}"


def find(name: str) -> Slice:
  """The slice of a topology (`v5e:4x8`) or an accelerator type (`v4-32`).

  The number of a v4 or v5p type counts tensor cores, two a chip; that of a
  v5e (also `v5litepod-`) or v6e type counts chips.

  Args:
    name: of the topology or type.

  Raises:
    ValueError: there is no such slice.
  """
  match = re.fullmatch(r"(\w+?)(?::([\dx]+)|-(\d+))", name)
  kind = {"v5litepod": "v5e"}.get(match[1], match[1]) if match else None
  if match is None or kind not in CHIPS:
    raise ValueError(
      "expected a TPU topology such as v5e:4x8 or v4:2x2x4, or a type such as "
      f"v5e-32, of {', '.join(CHIPS)}, got {name!r}"
    )
  chip = CHIPS[kind]
  if match[3]:
    return Slice(kind, _default_shape(name, int(match[3]), chip))
  shape = tuple(int(n) for n in match[2].split("x") if n)
  if len(shape) != chip.sides or 0 in shape:
    raise ValueError(
      f"expected {chip.sides} sides >= 1 for a {kind} slice, got {name!r}"
    )
  return Slice(kind, shape)


def _default_shape(name: str, count: int, chip: Chip) -> tuple[int, ...]:
  """The most cube-like grid of powers of two, longest side last."""
  chips, rest = divmod(count, chip.cores)
  power = max(chips, 1).bit_length() - 1
  least = 1 if chip.sides == 2 else 4
  if rest or chips != 2**power or chips < least:
    raise ValueError(
      f"expected a power of two >= {least * chip.cores} in a TPU slice's type, "
      f"got {name!r}"
    )
  sides = [2 ** ((power + i) // chip.sides) for i in range(chip.sides)]
  # A host's four chips are a square of the first two sides.
  return (2, 2, 1) if sides == [1, 2, 2] else tuple(sides)


def devices(piece: Slice) -> list[jax.Device]:
  """Descriptions of a slice's chips, to build a mesh of and compile for.

  Args:
    piece: the slice.

  Raises:
    ValueError: libtpu is not installed, or refuses the shape.
  """
  for name, value in _OFF_CLOUD.items():
    os.environ.setdefault(name, value)
  options: dict[str, Any] = {}
  if piece.chip == "v4":
    # One device per chip, as in training, and not one per core.
    options["chip_config_name"] = "megacore"
  if piece.chips < 4:
    options["chips_per_host_bounds"] = (*piece.shape, 1)
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=str(piece), **options
    )
  except RuntimeError as error:
    if "not installed" in str(error):
      raise ValueError(
        "compiling for a TPU slice needs the libtpu wheel: pip install "
        f'"jax[tpu]=={jax.__version__}"'
      ) from error
    raise ValueError(f"TPU slice {piece}: {error}") from error
  return list(described.devices)


def plan(
  config: ml_collections.ConfigDict, piece: Slice
) -> experiment.Experiment:
  """The parts of a training on a slice, as shapes; reads nothing.

  Args:
    config: a training's config.
    piece: the slice.

  Raises:
    ValueError: the config cannot be built, libtpu is not installed, or the
      dataset is unknown.
  """
  return experiment.build(config, devices(piece), planned(config))


def planned(config: ml_collections.ConfigDict) -> inputs.Planned:
  """The size and number of a config's images, without reading one.

  The size is `config.data.image_size`, else the dataset's, else the student
  variant's.

  Args:
    config: a training's config.

  Raises:
    ValueError: the dataset is neither known nor prepared, or has no such
      split.
  """
  section = sections.split(config)
  data = sections.make(sections.Data, "data", section["data"])
  if data.name in _KNOWN:
    num_classes, splits = _KNOWN[data.name]
    info = datasets.Info(data.name, num_classes, None, splits, ())
  else:
    info = datasets.info(data.name, data.data_dir)
  placement.check(data, info)
  size = info.image_size
  if data.image_size or size is None:
    variant = section["student"].get("variant") or ""
    side = data.image_size or variants.get(variant).image_size
    size = (side, side)
  num_train = datasets.examples_in(data.train_split, info.num_examples)
  return inputs.Planned(info, size, num_train)


def compile_step(
  parts: experiment.Experiment, options: Mapping[str, Any] | None = None
) -> Any:
  """The compiled train step of a plan.

  Args:
    parts: from `plan`.
    options: compiler options.

  Raises:
    MemoryError: the step needs more memory than a chip has; the message is the
      compiler's.
  """
  lowered = parts.make_train_step().lower(*parts.step_shapes())
  try:
    return lowered.compile(compiler_options=options and dict(options))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    first = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
    raise MemoryError(first) from error


def held(parts: experiment.Experiment) -> dict[str, int]:
  """Bytes of a training that outlive a step on one device, by class."""
  state, teacher, given = parts.step_shapes()
  classes = {
    **state.params,
    "optimiser": state.opt_state,
    "moving average": state.ema,
    "teachers": teacher,
    "images" if parts.data.placement == "device" else "batch": given,
  }
  return {name: _bytes_on_one(tree) for name, tree in classes.items()}


def _bytes_on_one(tree: Any) -> int:
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def describe(parts: experiment.Experiment, compiled: Any) -> dict[str, Any]:
  """A compiled step's memory, collectives, FLOPs and cycles per device.

  Args:
    parts: the training.
    compiled: from `compile_step`.

  Returns:
    JSON's types: "memory" in bytes by class (those of `held` by count, the rest
    as the compiler allocates it), "collectives" one by one, "flops" by formula,
    "cycles" and "loops_counted_once".
  """
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  cycles, endless = hlo.cycles(text)
  counted = held(parts)
  arguments = memory.argument_size_in_bytes
  by_class = {
    **counted,
    # Arrays are padded to whole tiles.
    "padding": arguments - sum(counted.values()),
    "activations and gradients": memory.temp_size_in_bytes,
    "metrics": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
  }
  images = parts.run.batch_size // parts.mesh.size
  return {
    "devices": parts.mesh.size,
    "images_per_device": images,
    "memory": by_class,
    "memory_total": sum(by_class.values()),
    "collectives": [
      dataclasses.asdict(x) | {"arrays": len(x.arrays)}
      for x in hlo.collectives(text)
    ],
    "flops": images * flops.per_image(parts.objective)["total"],
    "cycles": cycles,
    "loops_counted_once": endless,
  }


def examine(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """Compiles a config's step for a slice and describes it.

  Args:
    config: a training's config.
    name: slice name, see `find`.

  Returns:
    As `describe`, with "slice", "chips", "hbm_gb", "batch_size", "fits" and
    "compile_seconds". For a step that does not fit, only the figures of `held`
    and "refusal", the compiler's message.

  Raises:
    ValueError: see `plan`.
  """
  piece = find(name)
  parts = plan(config, piece)
  about = {
    "slice": str(piece),
    "chips": piece.chips,
    "hbm_gb": CHIPS[piece.chip].hbm_gb,
    "batch_size": parts.run.batch_size,
    "fsdp": parts.run.fsdp,
    "terms": list(parts.objective.terms),
  }
  began = time.monotonic()
  try:
    compiled = compile_step(parts)
  except MemoryError as error:
    return about | {
      "fits": False,
      "refusal": str(error),
      "devices": parts.mesh.size,
      "images_per_device": parts.run.batch_size // parts.mesh.size,
      "memory": held(parts),
    }
  seconds = time.monotonic() - began
  return (
    about
    | describe(parts, compiled)
    | {"fits": True, "compile_seconds": round(seconds, 1)}
  )
