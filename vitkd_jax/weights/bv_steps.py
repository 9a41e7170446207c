"""big_vision's checkpoints: folders of a step, with an array of each leaf.

`CHECKPOINT-LAST` is a text that names the latest complete step, such as
`CHECKPOINT-000000123`; `~` in the name of an array's folder stands for `/`.
Written by `save_checkpoint_ts` of big_vision's utils.py.
"""

from collections.abc import Iterable, Mapping
import hashlib
import os
import re
from typing import Any

import numpy as np

from vitkd_jax import remote
from vitkd_jax.models import variants
from vitkd_jax.weights import opening, rules

# The name in a workdir, as big_vision's train.py has it.
_IN_WORKDIR = "checkpoint.bv"
_LATEST = "-LAST"
_STEP = r"\d{9}(-tmp)?"
# Of a training state; older files have the second, and files that hold
# parameters alone neither.
PREFIXES = ("params/", "opt/target/")


def split(path: str) -> tuple[str, str | None]:
  """A path without its part, and the part of a model that it names.

  Args:
    path: such as "siglip.npz:img" or "run/checkpoint.bv:student"; a path that
      exists has no part.
  """
  found = re.fullmatch(r"(.+):(\w[\w/]*)", path)
  if found is None or (not remote.is_remote(path) and os.path.lexists(path)):
    return path, None
  return found[1], found[2]


def find(path: str) -> str | None:
  """The folder of a step that a path stands for, with the path's part, or None.

  Args:
    path: of a step, of a checkpoint with or without its "-LAST", or of a
      workdir; may be a URL.

  Raises:
    ValueError: what names the latest step is damaged, or names a missing one.
  """
  base, part = split(path)
  base = base.rstrip("/")
  suffix = f":{part}" if part else ""
  for start in base.removesuffix(_LATEST), os.path.join(base, _IN_WORKDIR):
    if not opening.exists(start + _LATEST):
      continue
    with opening.opened(start + _LATEST) as file:
      step = file.read(100).decode(errors="replace").strip()
    if not re.fullmatch(_STEP, step):
      raise ValueError(
        f"expected {start + _LATEST!r} to name a step, such as 000000123, got "
        f"{step[:40]!r}"
      )
    if not opening.is_folder(f"{start}-{step}"):
      raise ValueError(
        f"{start + _LATEST!r} names the step {step}, but there is no folder "
        f"{start}-{step}"
      )
    return f"{start}-{step}{suffix}"
  named = re.fullmatch(f".*-{_STEP}", base) and opening.is_folder(base)
  return base + suffix if named else None


def is_step(path: str) -> bool:
  """Whether a path that `find` returned is a step's folder, and not a file.

  Args:
    path: that stands for weights.
  """
  base, _ = split(path)
  return re.fullmatch(f".*-{_STEP}", base) is not None and opening.is_folder(
    base
  )


def pick(names: Iterable[str], part: str | None) -> dict[str, str]:
  """The names of a model, or of a part of it, in a training state.

  Args:
    names: of a file's leaves.
    part: name of the part; None for all parameters.

  Returns:
    {own name: the file's name}.

  Raises:
    ValueError: there is no such part.
  """
  names = list(names)
  for start in PREFIXES:
    if any(name.startswith(start) for name in names):
      break
  else:
    start = ""
  inside = {n.removeprefix(start): n for n in names if n.startswith(start)}
  if part is None:
    return inside
  below = part + "/"
  found = {
    own.removeprefix(below): name
    for own, name in inside.items()
    if own.startswith(below)
  }
  if not found:
    tops = sorted({name.partition("/")[0] for name in inside})
    raise ValueError(f"expected a part {part!r}, got {rules.some(tops)}")
  return found


def stated(path: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
  """The dtype and shape of each of a step's parameters by name.

  Args:
    path: from `find`.

  Raises:
    ValueError: the step has no parameters, or an array is damaged.
  """
  return {
    name: (array.dtype.numpy_dtype, tuple(array.shape))
    for name, array in _opened(path).items()
  }


def read(path: str) -> dict[str, np.ndarray]:
  """The parameters of a step by name.

  Args:
    path: from `find`.

  Raises:
    ValueError: the step has no parameters, or an array is damaged or does not
      fit in memory.
  """
  arrays = _opened(path)
  sizes = (a.size * a.dtype.numpy_dtype.itemsize for a in arrays.values())
  opening.check_memory(path, sum(sizes))
  return _results(path, {n: a.read() for n, a in arrays.items()})


def sha256(path: str) -> str:
  """The SHA-256 of the files of a step's parameters, names included.

  Args:
    path: from `find`.

  Returns:
    64 hexadecimal digits.
  """
  folder, _ = split(path)
  digest = hashlib.sha256()
  wanted = set(_folders(path).values())
  for key in sorted(remote.keys(folder)):
    if key.partition("/")[0] in wanted:
      with opening.opened(os.path.join(folder, key)) as file:
        content = file.read()
      digest.update(f"{key} {len(content)}\n".encode() + content)
  return digest.hexdigest()


def model(path: str) -> tuple[str | None, dict[str, Any]]:
  """The variant and fields of the ViT in the config beside a step.

  Args:
    path: from `find`.

  Returns:
    (None, {}) without a config, or with one of another kind of model.

  Raises:
    ValueError: the config is damaged.
  """
  folder, _ = split(path)
  config = opening.read_json(
    os.path.join(os.path.dirname(folder), "config.json")
  )
  given = config.get("model")
  if config.get("model_name") != "vit" or not isinstance(given, dict):
    return None, {}
  variant = given.get("variant")
  if (
    not isinstance(variant, str) or variant.split("/")[0] not in variants.SIZES
  ):
    return None, {}
  said = {name: given[name] for name in sorted(_FIELDS & given.keys())}
  return variant, {
    k: tuple(v) if isinstance(v, list) else v for k, v in said.items()
  }


# Those that change what parameters mean.
_FIELDS = {
  "width",
  "depth",
  "mlp_dim",
  "num_heads",
  "patch_size",
  "posemb",
  "rep_size",
  "pool_type",
}


def _folders(path: str) -> dict[str, str]:
  """The folder of each parameter by name."""
  folder, part = split(path)
  tops = {key.partition("/")[0] for key in remote.keys(folder)}
  named = {name.replace("~", "/"): name for name in tops}
  if not any(name.startswith(PREFIXES) for name in named):
    raise ValueError(
      f"expected a checkpoint of big_vision in {folder!r}, whose arrays' names "
      f"begin with params~, got {rules.some(sorted(tops))}"
    )
  try:
    return {own: named[name] for own, name in pick(named, part).items()}
  except ValueError as error:
    raise ValueError(f"{folder!r}: {error}") from None


def _opened(path: str) -> dict[str, Any]:
  import tensorstore as ts

  folder, _ = split(path)
  return _results(
    path,
    {
      name: ts.open(
        {
          "driver": "zarr",
          "kvstore": remote.store(os.path.join(folder, there, "")),
          "fill_missing_data_reads": False,  # else a lost file reads as zeros
        },
        open=True,
        read=True,
      )
      for name, there in _folders(path).items()
    },
  )


def _results(path: str, futures: Mapping[str, Any]) -> dict[str, Any]:
  found = {}
  for name, future in futures.items():
    try:
      found[name] = future.result()
    except MemoryError:
      raise
    except Exception as error:  # one of ten types, by the status
      raise ValueError(
        opening.truncated(path, f"checkpoint (array {name!r})")
      ) from error
  return found
