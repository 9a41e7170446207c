"""From a config's sections to what a training minimises."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.distill import heads, losses, terms, tokens
from vitkd_jax.models import checks, protocol, variants, vit
from vitkd_jax.runs import students
from vitkd_jax.training import objective as objectives
from vitkd_jax.training import sections, teachers


def _stats(variant: str, weights: str | None = None) -> objectives.Stats:
  """Mean and std of the images: stated beside the weights, else the variant's.

  A teacher in another library's folder may have been trained with its own.
  """
  said = students.stated(weights).preprocess if weights else None
  source = said or variants.get(variant)
  return source.mean, source.std


def _loss_weights(
  values: Mapping[str, Any], num_classes: int
) -> dict[str, float]:
  sections.known("weights", values, terms.TERMS)
  sections.check_types("weights", values, dict.fromkeys(terms.TERMS, float))
  for term, weight in values.items():
    if weight < 0:
      raise ValueError(f"expected config.weights.{term} >= 0, got {weight}")
  weights_by_term = {term: w for term, w in values.items() if w}
  if not weights_by_term:
    raise ValueError(
      "expected at least one weight > 0 in config.weights, got only zeros"
    )
  if "nkd" in weights_by_term and num_classes < 3:
    raise ValueError(
      f"expected at least 3 classes for nkd, got a dataset of {num_classes}: "
      "its softmax over a single non-target class is constant; use "
      "config.weights.kl"
    )
  return weights_by_term


def make_objective(
  section: Mapping[str, Mapping[str, Any]],
  info: datasets.Info,
  image_size: tuple[int, int],
  run: sections.Run,
  mesh: jax.sharding.Mesh,
  *,
  from_file: bool,
  pinned: teachers.Pin | None = None,
) -> tuple[objectives.Objective, teachers.Teacher | None]:
  """The objective, and the teacher with its parameters on the mesh.

  Args:
    section: every section of a config, see `sections.split`.
    info: dataset description.
    image_size: (H, W) of a batch, in pixels.
    run: section `run`.
    mesh: mesh of the devices.
    from_file: read the teacher's weights; False plans with shapes alone.
    pinned: see `teachers.load`.

  Returns:
    The objective, and the teacher; None where no loss term needs one.

  Raises:
    ValueError: the sections do not go together; one sentence says why.
  """
  student = _student(section["student"], info.num_classes)
  checks.check_patches("student", student.patch_size, *image_size)
  objective = objectives.Objective(
    student=student,
    student_stats=_stats(section["student"]["variant"]),
    loss_weights=_loss_weights(section["weights"], info.num_classes),
    student_grid=student.grid(*image_size),
  )
  taught = [term for term in objective.terms if term != "task"]
  if not taught:
    return objective, None
  if not section["teacher"]:
    raise ValueError(
      f"the loss terms {', '.join(taught)} need a teacher; set "
      "config.teacher, or set their weights to 0"
    )
  config = sections.make(sections.Teacher, "teacher", section["teacher"])
  _check_dtype("teacher.dtype", config.dtype)
  if from_file:
    logit_terms = [t for t in objective.terms if t in terms.LOGIT_TERMS]
    loaded = teachers.load(config, info, image_size, logit_terms, pinned)
  else:
    loaded = teachers.plan(config, info, image_size)
  teacher = loaded.model
  grid = teacher.grid(*image_size)
  if grid != objective.student_grid and not config.resample:
    raise ValueError(
      "expected the teacher's token grid to be the student's "
      f"{objective.student_grid[0]}x{objective.student_grid[1]}, got "
      f"{grid[0]}x{grid[1]}; set config.teacher.resample=True to resample its "
      "maps"
    )
  head = _head(objective, teacher, section["head"])
  select = _select(section["select"])
  if head is not None:
    _check_blocks(select, min(teacher.depth, student.depth))
  logits = _logits(section["logits"])
  objective = dataclasses.replace(
    objective,
    teacher=teacher,
    teacher_stats=_stats(config.variant, config.weights if from_file else None),
    teacher_grid=grid,
    head=head,
    select=select,
    temperature=logits.temperature,
    gamma=logits.gamma,
  )
  where = sharding.tree(loaded.params, mesh, split=run.fsdp_teacher)
  params = sharding.place(loaded.params, where)
  return objective, dataclasses.replace(loaded, params=params)


def _student(fields: Mapping[str, Any], num_classes: int) -> vit.ViT:
  if not fields.get("variant"):
    raise ValueError("config.student.variant is missing")
  if "num_classes" in fields:
    raise ValueError(
      "config.student.num_classes comes from the dataset; remove the key"
    )
  types = {"variant": str} | vit.ViT.__annotations__
  known = {name: value for name, value in fields.items() if name in types}
  sections.check_types("student", known, types)
  _check_dtype("student.dtype_mm", fields.get("dtype_mm", "float32"))
  return vit.Model(num_classes, **fields)


def _check_dtype(name: str, dtype: object) -> None:
  check.known(f"config.{name}", dtype, checks.DTYPES)


def _head(
  objective: objectives.Objective,
  teacher: protocol.Backbone,
  values: Mapping[str, Any],
) -> heads.ViTKD | None:
  config = sections.make(sections.Head, "head", values)
  if not 0 <= config.mask_ratio < 1:
    raise ValueError(
      f"expected 0 <= config.head.mask_ratio < 1, got {config.mask_ratio}"
    )
  check.known("config.head.reduction", config.reduction, losses.REDUCTIONS)
  terms = tuple(t for t in heads.TERMS if t in objective.loss_weights)
  if not terms:
    return None
  return heads.ViTKD(
    teacher.width,
    terms=terms,
    grid=objective.student_grid,
    dtype_mm=objective.student.dtype_mm,
    **dataclasses.asdict(config),
  )


def _logits(values: Mapping[str, Any]) -> sections.Logits:
  config = sections.make(sections.Logits, "logits", values)
  if config.temperature <= 0 or config.gamma < 0:
    raise ValueError(
      "expected config.logits.temperature > 0 and gamma >= 0, got "
      f"{config.temperature} and {config.gamma}"
    )
  return config


def _select(values: Mapping[str, Any]) -> dict[str, Any]:
  """Every keyword of `tokens.select` except the prefix."""
  keywords = sections.check_keywords(
    tokens.select, "select", values, given=("num_prefix_tokens",)
  )
  defaults = {name: keyword.default for name, keyword in keywords.items()}
  values = {**defaults, **values}
  for name in ("low_place", "high_place"):
    tokens.check_place(values[name])
  return values


def _check_blocks(select: Mapping[str, Any], depth: int) -> None:
  """Checks that the shallower model has every block that is compared."""
  if select["low_place"] == "encoded":
    raise ValueError(
      "expected config.select.low_place in a block, such as '+mlp', got "
      "'encoded', which is after the last block"
    )
  blocks = [*select["low_blocks"]]
  if select["high_place"] != "encoded":
    blocks.append(select["high_block"])
  for block in blocks:
    if not -depth <= block < depth:
      raise ValueError(
        f"config.select names block {block} (low_blocks="
        f"{tuple(select['low_blocks'])}, high_block={select['high_block']}), "
        f"but the shallower model has {depth} block" + "s" * (depth > 1)
      )
