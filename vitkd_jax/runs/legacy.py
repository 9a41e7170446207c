"""Configs from before methods and teachers had sections of their own."""

from collections.abc import Mapping
from typing import Any

from vitkd_jax.distill import terms

# Sections that `modern` replaces.
SECTIONS = ("teacher", "head", "select", "weights", "logits")
# What the one teacher of such a config is called.
TEACHER = "teacher"
# (method, its term, the key of the old section `weights`), and the keys of the
# old sections that each method took.
_TERMS = (
  ("vitkd", "mimic", "mimic"),
  ("vitkd", "generation", "generation"),
  ("nkd", "nkd", "nkd"),
  ("kl", "kl", "kl"),
  ("hard", "hard", "hard"),
)
_KEYS: dict[str, dict[str, tuple[str, ...] | None]] = {
  "vitkd": {"head": None, "select": None},
  "nkd": {"logits": ("temperature", "gamma")},
  "kl": {"logits": ("temperature",)},
  "hard": {},
}


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with the sections `task`, `teachers` and `methods`.

  One that has none of the older sections is left as it is.

  Args:
    config: sections of a config, as plain dicts.

  Raises:
    ValueError: what should be a section is a value, or older sections are
      mixed with those that replace them, or a weight is of an unknown term.
  """
  check_sections(config)
  old = [name for name in SECTIONS if name in config]
  if not old:
    return dict(config)
  mixed = [name for name in ("task", "teachers", "methods") if name in config]
  if mixed:
    raise ValueError(
      f"expected either config.{mixed[0]} or config.{old[0]}, which it "
      "replaces, got both"
    )
  found = {k: v for k, v in config.items() if k not in SECTIONS}
  teacher = config.get("teacher")
  found["teachers"] = {TEACHER: dict(teacher)} if teacher else {}
  if config.get("weights") is None:
    return found
  weights = dict(config["weights"])
  found["task"] = {"weight": weights.pop("task", 0.0)}
  known = {key for *_, key in _TERMS}
  if unknown := weights.keys() - known:
    raise ValueError(
      f"unknown key config.weights.{min(unknown)}; expected one of task, "
      + ", ".join(sorted(known))
    )
  methods: dict[str, dict[str, Any]] = {}
  for method, term, key in _TERMS:
    if key not in weights:
      continue
    if method not in methods:
      methods[method] = {**_options(config, method), "weights": {}}
    methods[method]["weights"][term] = weights[key]
  found["methods"] = {
    name: values
    for name, values in methods.items()
    if any(values["weights"].values())
  }
  if not found["methods"]:
    found["teachers"] = {}  # it was not read
  return found


def check_sections(config: Mapping[str, Any]) -> None:
  """Checks that what should be a section is one, in old and new configs.

  Args:
    config: sections of a config, as plain dicts; None for an empty one.

  Raises:
    ValueError: one is a value.
  """
  tree = {f"config.{name}": values for name, values in config.items()}
  for name in ("teachers", "methods"):
    if isinstance(section := config.get(name), Mapping):
      tree |= {f"config.{name}.{key}": v for key, v in section.items()}
  for name, values in tree.items():
    if values is not None and not isinstance(values, Mapping):
      raise ValueError(f"expected {name} to be a section, got {values!r}")


def pinned(record: Mapping[str, Any]) -> dict[str, Any]:
  """The content of config.json with "teachers", {name: {"sha256", "step"}}.

  The oldest runs did not say which weights they learned from: theirs has none.

  Args:
    record: with a config from `modern`.
  """
  old = {"sha256": "teacher_sha256", "step": "teacher_step"}
  pin = {name: record.get(key) for name, key in old.items()}
  known = "teacher_step" in record or pin["sha256"] is not None
  found = {k: v for k, v in record.items() if k not in old.values()}
  if "teachers" not in found and known:
    names = found["config"].get("teachers") or {}
    found["teachers"] = {name: pin for name in names}
  return found


def metric(name: str) -> str:
  """What a metric of an older version is called now.

  Args:
    name: as metrics.jsonl has it.
  """
  return METRICS.get(name, name)


# {name of then: name of today}.
METRICS = {"grad_norm_head": "grad_norm_methods"} | {
  old + key: new + terms.name(method, method, term)
  for method, term, key in (*_TERMS, (terms.TASK, terms.TASK, terms.TASK))
  for old, new in (("raw_", ""), ("weighted_", "weighted/"))
}


def _options(config: Mapping[str, Any], method: str) -> dict[str, Any]:
  """The keys of the older sections that were one method's."""
  options: dict[str, Any] = {}
  for section, names in _KEYS[method].items():
    values = config.get(section) or {}
    options |= {k: v for k, v in values.items() if names is None or k in names}
  return options
