"""From a config's sections to what a training minimises."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from vitkd_jax import check
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.distill import view
from vitkd_jax.models import checks, protocol, variants, vit
from vitkd_jax.runs import students
from vitkd_jax.training import lengths, method_sections, sections, teachers
from vitkd_jax.training import objective as objectives


def _stats(variant: str, weights: str | None = None) -> objectives.Stats:
  """Mean and std of the images: stated beside the weights, else the variant's.

  A teacher in another library's folder may have been trained with its own.
  """
  said = students.stated(weights).preprocess if weights else None
  source = said or variants.get(variant)
  return source.mean, source.std


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
  student = _student(section["student"], info.num_classes)
  checks.check_patches("student", student.patch_size, *image_size)
  side = _side(student, image_size)
  task = sections.make(sections.Task, "task", section["task"])
  if task.weight < 0:
    raise ValueError(f"expected config.task.weight >= 0, got {task.weight}")
  configs = _teachers(section)
  sides = {
    name: _side(
      teachers.make_model(name, config, info.num_classes, image_size),
      image_size,
    )
    for name, config in configs.items()
  }
  methods = method_sections.make(section["methods"], side, sides, length)
  if not methods and not task.weight:
    raise ValueError(
      "expected config.task.weight > 0 or a method with a weight > 0 in "
      "config.methods, got neither: there is nothing to learn"
    )
  for name, method in methods.items():
    _check_grids(name, method, side, sides, configs)
  loaded = {}
  for name, config in configs.items():
    learners = [n for n, method in methods.items() if method.teacher == name]
    if not learners:
      continue  # of weight 0
    if from_file:
      by_logits = [n for n in learners if methods[n].taught.logits]
      pin = (pinned or {}).get(name)
      found = teachers.load(name, config, info, image_size, by_logits, pin)
    else:
      found = teachers.plan(name, config, info, image_size)
    where = sharding.tree(found.params, mesh, split=run.fsdp_teacher)
    params = sharding.place(found.params, where)
    loaded[name] = dataclasses.replace(found, params=params)
  objective = objectives.Objective(
    student=student,
    student_stats=_stats(section["student"]["variant"]),
    student_side=side,
    task_weight=task.weight,
    teachers={
      name: objectives.Teacher(
        found.model,
        _stats(
          configs[name].variant, configs[name].weights if from_file else None
        ),
        _side(found.model, image_size),
      )
      for name, found in loaded.items()
    },
    methods=methods,
    label_smoothing=section["augment"].get("label_smoothing", 0.0),
  )
  return objective, loaded


def _side(model: protocol.Backbone, image_size: tuple[int, int]) -> view.Side:
  return view.Side(
    width=model.width,
    depth=model.depth,
    grid=model.grid(*image_size),
    num_prefix_tokens=model.num_prefix_tokens,
    num_classes=model.num_classes,
    dtype_mm=model.dtype_mm,
    has_class_token=model.has_class_token,
    has_head=model.has_linear_head(),
  )


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
    key = f"teachers.{name}"
    found[name] = sections.make(sections.Teacher, key, values)
    _check_dtype(f"{key}.dtype", found[name].dtype)
  return found


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
  grid = sides[teacher].grid
  if grid != student.grid:
    raise ValueError(
      f"expected the token grid of config.teachers.{teacher} to be the "
      f"student's {student.grid[0]}x{student.grid[1]} for config.methods."
      f"{name}, got {grid[0]}x{grid[1]}; set config.teachers.{teacher}."
      "resample=True to resample its maps"
    )


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
