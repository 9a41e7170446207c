"""From a config's sections to what a training minimises.

All that does not fit together is a ValueError of one sentence.
"""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any

from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.distill import heads, losses, terms, tokens
from vitkd_jax.models import checks, variants, vit
from vitkd_jax.runs import students
from vitkd_jax.training import objective as objectives
from vitkd_jax.training import sections, teachers


def _stats(variant, weights=None) -> objectives.Stats:
  """The variant's mean and standard deviation, or what weights say is theirs.

  A teacher in another library's folder may have been trained with others.
  """
  said = students.stated(weights).preprocess if weights else None
  source = said or variants.get(variant)
  return source.mean, source.std


def _loss_weights(values, num_classes) -> dict[str, float]:
  sections.known("weights", values, terms.TERMS)
  sections.check_types("weights", values, dict.fromkeys(terms.TERMS, float))
  for term, weight in values.items():
    if weight < 0:
      raise ValueError(f"config.weights.{term}={weight}: wanted at least 0")
  weights_by_term = {term: w for term, w in values.items() if w}
  if not weights_by_term:
    raise ValueError("every weight in config.weights is 0: nothing to learn")
  if "nkd" in weights_by_term and num_classes < 3:
    raise ValueError(
      f"nkd needs at least 3 classes, the data set has {num_classes}: its "
      "softmax over the other classes is constant; use config.weights.kl"
    )
  return weights_by_term


def make_objective(
  section: Mapping[str, Mapping[str, Any]],
  info: datasets.Info,
  image_size: tuple[int, int],
  run: sections.Run,
  mesh: Any,
  *,
  from_file: bool,
  pinned: teachers.Pin | None = None,
) -> tuple[objectives.Objective, teachers.Teacher | None]:
  """The objective, and the teacher with its parameters on the mesh.

  Args:
    section: all of a config, see `sections.split`.
    info: of the dataset.
    image_size: rows and columns of a batch, in pixels.
    run: section `run`.
    mesh: of the devices.
    from_file: read the teacher's weights; False makes shapes alone.
    pinned: see `teachers.load`.

  Raises:
    ValueError: anything that does not fit.
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
      f"the loss terms {', '.join(taught)} need a teacher: fill in "
      "config.teacher, or set their weights to 0"
    )
  config = sections.make(sections.Teacher, "teacher", section["teacher"])
  _check_dtype("teacher.dtype", config.dtype)
  load = teachers.load if from_file else teachers.plan
  logit_terms = [t for t in objective.terms if t in terms.LOGIT_TERMS]
  loaded = load(config, info, image_size, logit_terms, pinned)
  teacher = loaded.model
  grid = teacher.grid(*image_size)
  if grid != objective.student_grid and not config.resample:
    raise ValueError(
      f"the teacher's token grid is {grid[0]}x{grid[1]}, the student's "
      f"{objective.student_grid[0]}x{objective.student_grid[1]}; set "
      "config.teacher.resample=True to bring its maps to the student's grid"
    )
  head = _head(objective, teacher, section["head"])
  select = _select(section["select"])
  if head is not None:
    _check_blocks(select, min(teacher.depth, student.depth))
  objective = dataclasses.replace(
    objective,
    teacher=teacher,
    teacher_stats=_stats(config.variant, from_file and config.weights),
    teacher_grid=grid,
    head=head,
    select=select,
    **_logits(section["logits"]),
  )
  where = sharding.tree(loaded.params, mesh, split=run.fsdp_teacher)
  params = sharding.place(loaded.params, where)
  return objective, dataclasses.replace(loaded, params=params)


def _student(fields, num_classes) -> vit.ViT:
  if not fields.get("variant"):
    raise ValueError("config.student.variant is missing")
  if "num_classes" in fields:
    raise ValueError("config.student.num_classes comes from the data set")
  types = {"variant": str} | vit.ViT.__annotations__
  known = {name: value for name, value in fields.items() if name in types}
  sections.check_types("student", known, types)
  _check_dtype("student.dtype_mm", fields.get("dtype_mm", "float32"))
  return vit.Model(num_classes, **fields)


def _check_dtype(name, dtype) -> None:
  if dtype not in checks.DTYPES:
    raise ValueError(
      f"config.{name}={dtype!r}: wanted one of " + ", ".join(checks.DTYPES)
    )


def _head(objective, teacher, values):
  config = sections.make(sections.Head, "head", values)
  if not 0 <= config.mask_ratio < 1:
    raise ValueError(
      f"config.head.mask_ratio={config.mask_ratio}: not in [0, 1)"
    )
  if config.reduction not in losses.REDUCTIONS:
    raise ValueError(
      f"config.head.reduction={config.reduction!r}: wanted one of "
      + ", ".join(losses.REDUCTIONS)
    )
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


def _logits(values) -> dict[str, float]:
  config = sections.make(sections.Logits, "logits", values)
  if config.temperature <= 0 or config.gamma < 0:
    raise ValueError(
      f"config.logits.temperature={config.temperature} and gamma="
      f"{config.gamma}: wanted a positive and no negative number"
    )
  return dataclasses.asdict(config)


def _select(values) -> dict[str, Any]:
  """All keywords of `tokens.select` but the prefix."""
  given = ("num_prefix_tokens",)
  sections.check_keywords(tokens.select, "select", values, given)
  known = inspect.signature(tokens.select).parameters
  defaults = {
    name: known[name].default
    for name in known
    if known[name].kind is inspect.Parameter.KEYWORD_ONLY and name not in given
  }
  values = defaults | values
  for name in ("low_place", "high_place"):
    tokens.check_place(values[name])
  return values


def _check_blocks(select, depth) -> None:
  """Refuses maps that the shallower model does not have."""
  if select["low_place"] == "encoded":
    raise ValueError(
      "config.select.low_place='encoded' is after the last block: expected a "
      "place in a block, such as '+mlp'"
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
