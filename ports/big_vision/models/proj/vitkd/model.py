"""ViT, DeiT, distilled DeiT and DeiT III as a model of big_vision.

`config.model_name = "proj.vitkd.model"`, `config.model = dict(variant=...)`
with big_vision's variants ("S/16") or DeiT's ("deit3_small_patch16_224"), and
the fields of `vitkd_jax.models.vit.ViT`.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

from flax import traverse_util
import jax

from vitkd_jax.models import fitting, vit

Model = vit.Model

_BLOCKS = "Transformer/encoderblock/"  # of a scan


def load(
  init_params: Any,
  init_file: str,
  model_cfg: Mapping[str, Any] | None,
  dont_load: Sequence[str] = (),
  grid: tuple[int, int] | None = None,
) -> Any:
  """Parameters from a file of big_vision's, as `big_vision.models.vit.load`.

  Args:
    init_params: of the model, with the shapes that are wanted.
    init_file: npz or tensorstore checkpoint, "FILE:img" for a part of one; or
      one of big_vision's names of published files.
    model_cfg: fields of the model, which `init_params` tells as well.
    dont_load: patterns of names of leaves that keep their initial values.
    grid: rows and columns of patch tokens; None for a square. Of
      `config.model_load`.

  Raises:
    ValueError: the leaves are not the model's; one sentence says which.
  """
  del model_cfg
  from big_vision import utils
  from big_vision.models import vit as theirs

  name = theirs.VANITY_NAMES.get(init_file, init_file)
  params = theirs.fix_old_checkpoints(utils.load_params(name))
  try:
    return adapt(params, init_params, dont_load, grid)
  except ValueError as error:
    raise ValueError(f"{init_file}: {error}") from None


def adapt(
  params: Any,
  init_params: Any,
  dont_load: Sequence[str] = (),
  grid: tuple[int, int] | None = None,
) -> Any:
  """Parameters of another size of image, or with or without a scan.

  Position embeddings are resized by anti-aliased bicubic, as timm does;
  big_vision resamples them linearly. Entries of the embedding that belong to
  prefix tokens are added to those.

  Args:
    params: as they are in the file.
    init_params: see `load`.
    dont_load: see `load`.
    grid: see `load`.

  Raises:
    ValueError: see `load`.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  wanted = traverse_util.flatten_dict(init_params, sep="/")
  patterns = [re.compile(pattern) for pattern in dont_load]
  kept = {n for n in wanted if any(p.fullmatch(n) for p in patterns)}
  stacked = any(name.startswith(_BLOCKS) for name in wanted)
  leaves = fitting.stack(leaves) if stacked else fitting.unstack(leaves)
  leaves = {
    n: x for n, x in leaves.items() if not any(p.fullmatch(n) for p in patterns)
  }
  if "pos_embedding" in leaves and "pos_embedding" in wanted:
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    count = wanted["pos_embedding"].shape[1]
    with jax.transfer_guard("allow"):
      fitting.position(leaves, shapes, _grid(count, grid))
  missing = sorted(wanted.keys() - leaves.keys() - kept)
  unknown = sorted(leaves.keys() - wanted.keys())
  if missing or unknown:
    raise ValueError(
      f"expected the model's leaves, got {len(unknown)} others"
      f"{_some(unknown)}, and {len(missing)} are missing{_some(missing)}; name "
      "what to leave as it is in model_load.dont_load"
    )
  for name, leaf in leaves.items():
    if leaf.shape != wanted[name].shape:
      raise ValueError(
        f"expected {name} of shape {wanted[name].shape}, got {leaf.shape}; for "
        "a head of other classes, model_load=dict(dont_load=['head/.*'])"
      )
  found = {n: wanted[n] if n in kept else leaves[n] for n in wanted}
  return traverse_util.unflatten_dict(found, sep="/")


def _some(names: Sequence[str]) -> str:
  return f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" * bool(names)


def _grid(count: int, grid: tuple[int, int] | None) -> tuple[int, int]:
  """Rows and columns of `count` patch tokens."""
  side = math.isqrt(count)
  rows, columns = grid or (side, side)
  if rows * columns != count:
    raise ValueError(
      f"expected a grid of the model's {count} patch tokens, got {rows}x"
      f"{columns}; set model_load.grid=(rows, columns)"
    )
  return rows, columns
