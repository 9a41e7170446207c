"""Small models of every family that is read, and the weights to fill them.

The peers' own leaf names and shapes are in `peers.json`, their outputs in
`peers.npz`; `make_golden.py` wrote both. Needs NumPy alone.
"""

import dataclasses
import json
import pathlib
from typing import Any
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
SIZE = 28
NUM_CLASSES = 5
SMALL = dict(width=8, depth=2, num_heads=2, mlp_dim=32, patch_size=(7, 7))


@dataclasses.dataclass(frozen=True)
class Family:
  """A peer's model and ours.

  Attributes:
    peer: who computes it: "timm", or the name of a class of transformers.
    format: what the names are in.
    variant: our model's name; its size is overridden by `SMALL`.
    fields: what our model needs beyond that.
    arguments: the peer's, beyond its size.
    headless: the peer returns features alone.
  """

  peer: str
  format: str
  variant: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  headless: bool = False

  @property
  def model(self) -> dict[str, Any]:
    """Keyword arguments of `vit.Model`, less num_classes."""
    return dict(variant=self.variant, **SMALL, **self.fields)

  @property
  def num_classes(self) -> int | None:
    return None if self.headless else NUM_CLASSES


_DEIT3 = dict(no_embed_class=True, init_values=1e-6)
_NO_CLASS = dict(class_token=False)
_TANH = dict(gelu="tanh")

FAMILIES = {
  "timm_deit": Family("timm", "timm", "deit_tiny_patch16_224"),
  "timm_distilled": Family(
    "timm_distilled", "timm", "deit_tiny_distilled_patch16_224"
  ),
  "timm_deit3": Family(
    "timm", "timm", "deit3_small_patch16_224", arguments=_DEIT3
  ),
  "timm_augreg_pre_logits": Family(
    "timm_pre_logits", "timm", "vit_tiny_patch16_224", dict(rep_size=True)
  ),
  "timm_gap_tanh": Family(
    "timm",
    "timm",
    "Ti/16",
    arguments=_NO_CLASS
    | dict(global_pool="avg", fc_norm=False, act_layer="gelu_tanh"),
  ),
  "timm_map": Family(
    "timm",
    "timm",
    "vit_tiny_patch16_224",
    dict(pool_type="map"),
    _NO_CLASS | dict(global_pool="map"),
  ),
  "timm_dinov2": Family(
    "timm",
    "timm",
    "vit_small_patch14_dinov2",
    arguments=dict(init_values=1e-5),
    headless=True,
  ),
  "timm_dinov2_registers": Family(
    "timm",
    "timm",
    "vit_small_patch14_reg4_dinov2",
    arguments=_DEIT3 | dict(reg_tokens=4),
    headless=True,
  ),
  "meta_deit3": Family(
    "timm", "meta", "deit3_small_patch16_224", arguments=_DEIT3
  ),
  "mmpretrain_deit": Family("timm", "mmpretrain", "deit_tiny_patch16_224"),
  "mmpretrain_distilled": Family(
    "timm_distilled", "mmpretrain", "deit_tiny_distilled_patch16_224"
  ),
  "mmpretrain_deit3": Family(
    "timm", "mmpretrain", "deit3_small_patch16_224", arguments=_DEIT3
  ),
  "distiller_deit": Family("timm", "distiller", "deit_tiny_patch16_224"),
  "hf_vit": Family(
    "ViTForImageClassification", "huggingface", "vit_tiny_patch16_224"
  ),
  "hf_vit_tanh": Family(
    "ViTForImageClassification",
    "huggingface",
    "vit_tiny_patch16_224",
    _TANH,
    dict(hidden_act="gelu_pytorch_tanh"),
  ),
  "hf_vit_model": Family(
    "ViTModel", "huggingface", "vit_tiny_patch16_224", headless=True
  ),
  "hf_deit": Family(
    "DeiTForImageClassificationWithTeacher",
    "huggingface",
    "deit_tiny_distilled_patch16_224",
  ),
  "hf_deit_one_head": Family(
    "DeiTForImageClassification",
    "huggingface",
    "deit_tiny_distilled_patch16_224",
  ),
  "hf_dinov2": Family(
    "Dinov2Model", "huggingface", "vit_small_patch14_dinov2", headless=True
  ),
  "hf_dinov2_registers": Family(
    "Dinov2WithRegistersModel",
    "huggingface",
    "vit_small_patch14_reg4_dinov2",
    headless=True,
  ),
}


def image() -> np.ndarray:
  """[2, 28, 28, 3] float32, as if normalised already."""
  draw = np.random.RandomState(0).standard_normal((2, SIZE, SIZE, 3))
  return draw.astype(np.float32)


def fill(name: str, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Every leaf of a family drawn anew: norms, gammas and tokens too."""
  random = np.random.RandomState(zlib.crc32(name.encode()))
  return {
    leaf: (0.4 * random.standard_normal(shape)).astype(np.float32)
    for leaf, shape in shapes.items()
  }


def shapes() -> dict[str, dict[str, list[int]]]:
  """The peers' leaf names and shapes by family."""
  table = json.loads((FOLDER / "peers.json").read_text())
  return {name: table[name] for name in FAMILIES}


def expected() -> dict[str, np.ndarray]:
  """The peers' outputs: FAMILY/tokens [2, T, D], FAMILY/logits [2, C]."""
  with np.load(FOLDER / "peers.npz") as file:
    return dict(file)
