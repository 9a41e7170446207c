"""From a config's sections to what a training minimises."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.distill import losses, view
from vitkd_jax.distill import objective as objectives
from vitkd_jax.distill import sides as sides_
from vitkd_jax.distill.dropping import Dropping
from vitkd_jax.models import attention, checks, variants, vit
from vitkd_jax.training import (
  fields,
  leaves,
  lengths,
  method_sections,
  sections,
  teachers,
)
from vitkd_jax.weights import adapt


def make_objective(
  section: Mapping[str, Mapping[str, Any]],
  info: datasets.Info,
  image_size: tuple[int, int],
  run: sections.Run,
  mesh: jax.sharding.Mesh,
  *,
  length: lengths.Length,
  from_file: bool,
  pinned: Mapping[str, teachers.Pin] | None = None,
) -> tuple[objectives.Objective, dict[str, teachers.Teacher]]:
  """The objective, and the teachers with their parameters on the mesh.

  Args:
    section: every section of a config, see `sections.split`.
    info: dataset description.
    image_size: (H, W) of a batch, in pixels.
    run: section `run`.
    mesh: mesh of the devices.
    length: of the run.
    from_file: read the teachers' weights; False plans with shapes alone.
    pinned: by teacher, see `teachers.load`.

  Returns:
    The objective, and the teachers by name, those that a method learns from.

  Raises:
    ValueError: the sections do not go together; one sentence says why.
  """
  student = _student(fields.model(section["student"]), info.num_classes)
  student = _attending(student, "student.dtype_mm", run)
  checks.check_patches("student", student.patch_size, *image_size)
  frozen: frozenset[str] = frozenset()
  if patterns := fields.own(section["student"]).freeze:
    shapes = adapt.shapes(student, image_size)  # traced, which takes a while
    frozen = leaves.frozen(shapes, patterns, student.depth)
  side = sides_.of(student, image_size)
  task = sections.make(sections.Task, "task", section["task"])
  if task.weight < 0:
    raise ValueError(f"expected config.task.weight >= 0, got {task.weight}")
  configs = _teachers(section)
  sizes = {
    name: (config.image_size,) * 2 if config.image_size else image_size
    for name, config in configs.items()
  }
  made = {
    name: teachers.make(
      name, config, info.num_classes, sizes[name], from_file=from_file
    )
    for name, config in configs.items()
  }
  sides = {name: sides_.of(x.model, sizes[name]) for name, x in made.items()}
  methods = method_sections.make(section["methods"], side, sides, length)
  if not methods and not task.weight:
    raise ValueError(
      "expected config.task.weight > 0 or a method with a weight > 0 in "
      "config.methods, got neither: there is nothing to learn"
    )
  dropping = _dropping(task, {x.teacher for x in methods.values()}, run)
  for name, method in methods.items():
    _check_grids(name, method, side, sides, configs)
  if any(x.needs.student.qkv for x in methods.values()):
    student = student.with_qkv()
  loaded = {}
  for name, config in configs.items():
    learners = [n for n, method in methods.items() if method.teacher == name]
    if not learners:
      continue  # of weight 0
    if from_file:
      by_logits = [n for n in learners if methods[n].taught.logits]
      pin = (pinned or {}).get(name)
      found = teachers.load(
        name, config, made[name], info, sizes[name], by_logits, pin
      )
    else:
      found = teachers.plan(config, made[name], sizes[name])
    model = _attending(found.model, f"teachers.{name}.dtype", run)
    if any(methods[x].taught.qkv for x in learners):
      model = model.with_qkv()
    where = sharding.tree(found.params, mesh, split=run.fsdp_teacher)
    params = sharding.place(found.params, where)
    loaded[name] = dataclasses.replace(found, model=model, params=params)
  named = variants.get(section["student"]["variant"])
  objective = objectives.Objective(
    student=student,
    student_stats=(named.mean, named.std),
    student_side=side,
    task_weight=task.weight,
    teachers={
      name: objectives.Teacher(
        found.model,
        found.stats,
        sides_.of(found.model, sizes[name]),
        sizes[name],
        configs[name].scale,
      )
      for name, found in loaded.items()
    },
    methods=methods,
    dropping=dropping,
    frozen=frozen,
    label_smoothing=section["augment"].get("label_smoothing", 0.0),
  )
  return objective, loaded


def _attending(model: Any, key: str, run: sections.Run) -> Any:
  """A model with the run's form of attention."""
  heads = model.qkv_heads
  if run.attention == "cudnn" and heads:
    dtype = str(jnp.dtype(model.dtype_mm))
    if reason := attention.why_not_cudnn(model.width // heads, dtype):
      raise ValueError(
        f"cuDNN cannot compute the attention of config.{key}={dtype!r} for "
        f"config.run.attention='cudnn': {reason}; use 'auto' or 'xla'"
      )
  return model.with_attention(run.attention)


def _dropping(
  task: sections.Task, names: Iterable[str | None], run: sections.Run
) -> Dropping | None:
  rate, normalisation = task.teacher_drop, task.drop_normalisation
  if not 0 <= rate < 1:
    raise ValueError(f"expected 0 <= config.task.teacher_drop < 1, got {rate}")
  check.known(
    "config.task.drop_normalisation", normalisation, losses.DROP_NORMALISATIONS
  )
  if not rate:
    return None
  if len(set(names) - {None}) < 2:
    raise ValueError(
      "expected several teachers with config.task.teacher_drop, got one: set "
      "it to 0"
    )
  if normalisation == "unic" and run.accumulate > 1:
    raise ValueError(
      "config.task.drop_normalisation='unic' sums over the batch, so that "
      f"config.run.accumulate={run.accumulate} changes it: set it to "
      "'per_image', or config.run.accumulate=1"
    )
  return Dropping(rate, normalisation)


def _teachers(
  section: Mapping[str, Mapping[str, Any]],
) -> dict[str, sections.Teacher]:
  """The section `teachers`, each of which some method names."""
  named = {
    method_sections.teacher_of(name, values, section["teachers"])
    for name, values in section["methods"].items()
  }
  for name in section["teachers"]:
    if name not in named:
      raise ValueError(
        f"no method learns from config.teachers.{name}: remove it, or name it "
        "as the teacher of one in config.methods"
      )
  found = {}
  for name, values in section["teachers"].items():
    found[name] = _teacher(f"teachers.{name}", values)
  return found


def _teacher(key: str, values: Mapping[str, Any]) -> sections.Teacher:
  found = sections.make(sections.Teacher, key, values)
  if found.build and found.variant:
    raise ValueError(
      f"expected config.{key}.variant or config.{key}.build, got both"
    )
  for name in ("weights", "variant"):
    if not found.build and not getattr(found, name):
      raise ValueError(f"config.{key}.{name} is missing")
  if not found.build:
    _check_fields(f"{key}.fields", found.fields or {})
  _check_dtype(f"{key}.dtype", found.dtype)
  check.integers(0, **{f"config.{key}.image_size": found.image_size})
  for name in ("scale", *(["std"] if found.std else [])):
    value = getattr(found, name)
    if min(value if name == "std" else (value,)) <= 0:
      raise ValueError(f"expected config.{key}.{name} > 0, got {value}")
  return found


def _check_fields(key: str, fields: Mapping[str, Any]) -> None:
  if "num_classes" in fields:
    raise ValueError(
      f"config.{key}.num_classes comes from the dataset; remove the key"
    )
  types = {"variant": str} | vit.ViT.__annotations__
  known = {name: value for name, value in fields.items() if name in types}
  sections.check_types(key, known, types)


def _check_grids(
  name: str,
  method: objectives.Method,
  student: view.Side,
  sides: Mapping[str, view.Side],
  configs: Mapping[str, sections.Teacher],
) -> None:
  """Refuses maps on different grids unless the config has them resampled."""
  teacher = method.teacher
  if teacher is None or not method.taught.maps or configs[teacher].resample:
    return
  sides_.check_grids(name, student, teacher, sides[teacher])


def _student(values: Mapping[str, Any], num_classes: int) -> vit.ViT:
  if not values.get("variant"):
    raise ValueError("config.student.variant is missing")
  _check_fields("student", values)
  _check_dtype("student.dtype_mm", values.get("dtype_mm", "float32"))
  return vit.Model(num_classes, **values)


def _check_dtype(name: str, dtype: object) -> None:
  check.known(f"config.{name}", dtype, checks.DTYPES)
