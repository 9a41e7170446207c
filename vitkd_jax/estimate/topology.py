"""The real train step, compiled for a TPU slice that is not here.

The `libtpu` wheel brings the TPU's compiler, which needs no TPU: it says how
much memory the step takes, what the chips send each other and, by its own cost
model, how many cycles it lasts. Nothing is read but the config: parameters,
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
from vitkd_jax.training import experiment, sections

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU generation.

  Attributes:
    hbm_gb: memory of a chip as advertised, 10^9 or 2^30 bytes alike; what the
      compiler may use is a little less.
    peak: bfloat16 FLOPs a second and chip.
    clock: cycles a second: `peak` over the products and sums of a cycle, 2 x
      128^2 x matrix units. v4: 8 units, v5e 4, v5p 8. v6e: by the compiler's
      model, which does more than two units of 256^2 could; four are assumed.
    sides: of the grids of a slice: 2 for a plane, 3 for a cube.
    cores: that a name like v4-32 counts per chip.

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

# What is not prepared here but can be planned for: classes and examples.
# ILSVRC 2012, arXiv:1409.0575.
_KNOWN = {"imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000})}

# There is no metadata server to ask, and no need: libtpu complains otherwise.
_OFF_CLOUD = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Or a second compilation on the same machine would be refused.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice: `chip` in CHIPS, and the chips along each side."""

  chip: str
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  def __str__(self):
    return f"{self.chip}:{'x'.join(map(str, self.shape))}"


def find(name: str) -> Slice:
  """The slice of a topology (`v5e:4x8`) or an accelerator type (`v4-32`).

  The number of a v4 or v5p type counts tensor cores, two a chip; that of a
  v5e (also `v5litepod-`) or v6e type counts chips.

  Raises:
    ValueError: no such slice.
  """
  match = re.fullmatch(r"(\w+?)(?::([\dx]+)|-(\d+))", name)
  kind = match and {"v5litepod": "v5e"}.get(match[1], match[1])
  if kind not in CHIPS:
    raise ValueError(
      f"unknown TPU slice {name!r}: wanted a topology such as v5e:4x8 or "
      f"v4:2x2x4, or a type such as v5e-32, of {', '.join(CHIPS)}"
    )
  chip = CHIPS[kind]
  if match[3]:
    return Slice(kind, _default_shape(name, int(match[3]), chip))
  shape = tuple(int(n) for n in match[2].split("x") if n)
  if len(shape) != chip.sides or 0 in shape:
    raise ValueError(
      f"TPU slice {name!r}: a {kind} slice has {chip.sides} sides"
    )
  return Slice(kind, shape)


def _default_shape(name, count, chip) -> tuple[int, ...]:
  """The most cube-like grid of powers of two, its longest side last."""
  chips, rest = divmod(count, chip.cores)
  power = max(chips, 1).bit_length() - 1
  least = 1 if chip.sides == 2 else 4
  if rest or chips != 2**power or chips < least:
    raise ValueError(
      f"TPU slice {name!r}: wanted a power of two, from {least * chip.cores}"
    )
  sides = [2 ** ((power + i) // chip.sides) for i in range(chip.sides)]
  # A host's four chips are a square of the first two sides.
  return (2, 2, 1) if sides == [1, 2, 2] else tuple(sides)


def devices(piece: Slice) -> list[jax.Device]:
  """The described chips of a slice, to build a mesh of and compile for.

  Raises:
    ValueError: libtpu is not installed, or refuses the shape.
  """
  for name, value in _OFF_CLOUD.items():
    os.environ.setdefault(name, value)
  options: dict[str, Any] = {}
  if piece.chip == "v4":
    # By default each of a v4 chip's two cores is a device; training uses one.
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

  Raises:
    ValueError: the config cannot be built, libtpu is not installed, or nothing
      is known of the data set.
  """
  return experiment.build(config, devices(piece), planned(config))


def planned(config: ml_collections.ConfigDict) -> experiment.Planned:
  """What is known of a config's images without reading one.

  Their size is `config.data.image_size`, else the data set's, else that of the
  student's variant.

  Raises:
    ValueError: the data set is neither known nor prepared, or has no such
      split.
  """
  section = sections.split(config)
  data = sections.make(sections.Data, "data", section["data"])
  if data.name in _KNOWN:
    num_classes, splits = _KNOWN[data.name]
    info = datasets.Info(data.name, num_classes, None, splits, ())
  else:
    info = datasets.info(data.name, data.data_dir)
  side = data.image_size
  if not side and info.image_size is None:
    side = variants.get(section["student"].get("variant") or "").image_size
  size = (side, side) if side else info.image_size
  # Of a part of a split only the schedule would know.
  num_train = info.num_examples.get(data.train_split.partition("[")[0])
  if not num_train:
    raise ValueError(f"data set {data.name} has no split {data.train_split!r}")
  return experiment.Planned(info, size, num_train)


def compile_step(
  parts: experiment.Experiment, options: Mapping[str, Any] | None = None
) -> Any:
  """The compiled train step of a plan.

  Args:
    parts: from `plan`.
    options: of the compiler.

  Raises:
    MemoryError: the step does not fit the chips; the compiler's sentence.
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
  """Bytes on one device of all that outlives a step, by class."""
  state, teacher, batch = parts.step_shapes()
  student, head = state.params["student"], state.params["head"]
  classes = {
    "student": student,
    "head": head,
    "optimiser": state.opt_state,
    "moving average": state.ema,
    "teacher": teacher,
    "batch": batch,
  }
  return {name: _bytes_on_one(tree) for name, tree in classes.items()}


def _bytes_on_one(tree) -> int:
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def describe(parts: experiment.Experiment, compiled: Any) -> dict[str, Any]:
  """What the compiler says of a step, per device; bytes, FLOPs and cycles.

  Returns:
    JSON's types: "memory" by class (those of `held` as they are counted, the
    rest as the compiler laid it out), "collectives" one by one, "flops" by
    formula, "cycles" and "loops_counted_once".
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

  Returns:
    As `describe`, with "slice", "chips", "hbm_gb", "batch_size", "fits" and
    "compile_seconds". Of a step that does not fit: no figures but `held`'s,
    and "refusal", the compiler's sentence.

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
