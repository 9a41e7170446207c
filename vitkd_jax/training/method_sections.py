"""From a config's section `methods` to the methods of an objective."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import ml_collections

from vitkd_jax import check
from vitkd_jax.distill import methods as published
from vitkd_jax.distill import objective, terms, view
from vitkd_jax.runs import legacy
from vitkd_jax.training import lengths, outside, sections

# Of linen itself, and set from the weights.
_NOT_KEYS = ("parent", "name", "only")


@dataclasses.dataclass(frozen=True)
class Common:
  """What every section `methods.NAME` takes, beside the method's own fields.

  Attributes:
    kind: which of `methods.METHODS`; empty for the one of the section's name.
    build: "module:class" of a method of one's own, in the place of `kind`.
    teacher: name of its teacher in `config.teachers`; empty for the only one.
    ramp_epochs: epochs over which its weights rise to their values, by equal
      steps from epoch to epoch; 0 for none.
    until_epoch: epoch from which on its weights are 0; 0 for the whole run.
    cosine: multiply its weights by the cosine that falls from 1 to 0 over the
      run, as the learning rate's.
  """

  kind: str = ""
  build: str = ""
  teacher: str = ""
  ramp_epochs: float = 0.0
  until_epoch: float = 0.0
  cosine: bool = False


_COMMON = {field.name: field for field in dataclasses.fields(Common)}


def kind_of(name: str, values: Mapping[str, Any]) -> type[nn.Module]:
  """The class of a section.

  Args:
    name: of the method in the config.
    values: section `methods.NAME`.

  Raises:
    ValueError: there is no such method; the message names the nearest.
  """
  build = values.get("build")
  if build:
    return _own(f"config.methods.{name}.build", build)
  kind = terms.kind(name, values)
  if kind not in published.METHODS:
    raise ValueError(
      f"unknown method {kind!r} (config.methods.{name}); "
      f"{check.nearest(kind, published.METHODS)}; a method of your own is "
      f"named by config.methods.{name}.build"
    )
  return published.METHODS[kind]


def keys(kind: type[nn.Module]) -> dict[str, tuple[Any, Any]]:
  """{key: (default, type)} of a method's own fields.

  Args:
    kind: its class.
  """
  return {
    field.name: (
      None if field.default is dataclasses.MISSING else field.default,
      field.type,
    )
    for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    if field.name not in _NOT_KEYS
  }


def make(
  section: Mapping[str, Mapping[str, Any]],
  student: view.Side,
  teachers: Mapping[str, view.Side],
  length: lengths.Length,
) -> dict[str, objective.Method]:
  """The methods of a config whose weights are not all zero.

  Args:
    section: section `methods`.
    student: what is known of the student.
    teachers: what is known of each teacher.
    length: of the run.

  Raises:
    ValueError: an unknown method, field or teacher, a value out of its range,
      or a method that cannot work with these models.
  """
  order = list(published.METHODS)

  def place(name: str) -> tuple[int, str]:
    kind = terms.kind(name, section[name])
    return (order.index(kind) if kind in order else len(order), name)

  found = {}
  for name in sorted(section, key=place):
    values = section[name]
    chosen = {term: w for term, w in weights(name, values).items() if w}
    if chosen:
      found[name] = _make(name, values, chosen, student, teachers, length)
  return found


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with every weight of its methods written out.

  Args:
    config: of a training; older sections are replaced.

  Raises:
    ValueError: an unknown method or term, or a weight out of its range.
  """
  plain = legacy.modern(config.to_dict())
  for name, values in (plain.get("methods") or {}).items():
    values["weights"] = weights(name, values)
  return ml_collections.ConfigDict(plain)


def teacher_of(
  name: str, values: Mapping[str, Any], teachers: Iterable[str]
) -> str | None:
  """The name of a method's teacher; None where it names none and there is none.

  Args:
    name: of the method in the config.
    values: section `methods.NAME`.
    teachers: names of the teachers.

  Raises:
    ValueError: there is no such teacher, or several and none is named.
  """
  given, known = values.get("teacher") or "", list(teachers)
  if given:
    if given not in known:
      near = check.nearest(given, known) if known else "there are none"
      raise ValueError(
        f"config.methods.{name}.teacher names {given!r}, which is not in "
        f"config.teachers; {near}"
      )
    return given
  if len(known) > 1:
    raise ValueError(
      f"config.methods.{name}.teacher is missing, and there are several "
      f"teachers: {', '.join(known)}"
    )
  return known[0] if known else None


def weights(name: str, values: Mapping[str, Any]) -> dict[str, float]:
  """{term: weight} of a section, the published ones where it has none.

  Args:
    name: of the method in the config.
    values: section `methods.NAME`.

  Raises:
    ValueError: an unknown method or term, or a weight out of its range.
  """
  published_weights: dict[str, float] = _terms(name, kind_of(name, values))
  given = values.get("weights")
  if given is None:
    return published_weights
  key = f"methods.{name}.weights"
  if not isinstance(given, Mapping):
    raise ValueError(
      f"expected config.{key} to be weights by term "
      f"({', '.join(published_weights)}), got {given!r}"
    )
  sections.known(key, given, published_weights)
  sections.check_types(key, given, dict.fromkeys(given, float))
  for term, weight in given.items():
    if weight < 0:
      raise ValueError(f"expected config.{key}.{term} >= 0, got {weight}")
  return published_weights | dict(given)


def _make(
  name: str,
  values: Mapping[str, Any],
  chosen: Mapping[str, float],
  student: view.Side,
  teachers: Mapping[str, view.Side],
  length: lengths.Length,
) -> objective.Method:
  kind = kind_of(name, values)
  known = keys(kind)
  key = f"methods.{name}"
  own = {k: v for k, v in values.items() if k != "weights"}
  sections.known(key, own, (*known, *_COMMON, "weights"))
  types = {k: annotation for k, (_, annotation) in known.items()}
  types |= {k: field.type for k, field in _COMMON.items()}
  sections.check_types(key, own, types)
  common = Common(**{k: v for k, v in own.items() if k in _COMMON})
  fields = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in own.items()
    if k in known
  }
  if "only" in {field.name for field in dataclasses.fields(kind)}:  # type: ignore[arg-type]
    fields["only"] = tuple(chosen)
  teacher = teacher_of(name, values, teachers)
  if teacher is None and not getattr(kind, "learns_alone", False):
    raise ValueError(
      f"config.{key} needs a teacher; set one in config.teachers, or set its "
      "weights to 0"
    )
  for bound in ("ramp_epochs", "until_epoch"):
    if getattr(common, bound) < 0:
      raise ValueError(
        f"expected config.{key}.{bound} >= 0, got {getattr(common, bound)}"
      )
  over = {
    term: lengths.weight_over(
      weight,
      length,
      ramp_epochs=common.ramp_epochs,
      until_epoch=common.until_epoch,
      cosine=common.cosine,
    )
    for term, weight in chosen.items()
  }
  try:
    module = kind(**fields)
    made = objective.Method.make(
      name,
      module,
      over,
      student,
      (teacher, teachers[teacher]) if teacher else None,
      terms.kind(name, values),
    )
  except Exception as error:  # a class of one's own raises what it likes
    where = "" if isinstance(error, ValueError) else f"{kind.__name__}.needs: "
    raise ValueError(f"config.{key}: {where}{outside.said(error)}") from None
  lengths.check_group(f"config.{key}", module, length)
  return made


def _terms(name: str, kind: type[nn.Module]) -> dict[str, float]:
  found = getattr(kind, "terms", None)
  if not isinstance(found, Mapping) or not found:
    raise ValueError(
      f"config.methods.{name}: expected the class {kind.__name__} to have "
      "`terms`, its loss terms with their weights"
    )
  return dict(found)


def _own(key: str, path: str) -> type[nn.Module]:
  """A user's class, by "module:class"."""
  found = outside.find(key, path)
  if not (isinstance(found, type) and issubclass(found, nn.Module)):
    raise ValueError(
      f"expected {key} to name a class of flax.linen.Module, got {found!r}"
    )
  missing = [x for x in ("terms", "needs") if not hasattr(found, x)]
  if missing:
    name = found.__name__
    raise ValueError(f"{key}: the class {name} lacks {' and '.join(missing)}")
  return found
