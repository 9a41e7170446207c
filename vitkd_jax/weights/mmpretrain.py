"""Names of mmpretrain and mmcls, and of the authors' distillers."""

from collections.abc import Iterable
import re

from vitkd_jax.weights import rules
from vitkd_jax.weights.rules import ATTENTION, BLOCK, Rule

NAME = "mmpretrain"

_LAYER = "backbone.layers.{i}"

RULES = [
  *rules.affine("backbone.patch_embed.projection", "embedding", rules.CONV),
  Rule("backbone.pos_embed", ("pos_embedding",)),
  Rule("backbone.cls_token", ("cls",)),
  Rule("backbone.dist_token", ("dist",)),
  *rules.norm(f"{_LAYER}.ln1", f"{BLOCK}/LayerNorm_0"),
  *rules.attention_in(
    f"{_LAYER}.attn.qkv", ATTENTION, ("query", "key", "value")
  ),
  *rules.attention_out(f"{_LAYER}.attn.proj", ATTENTION),
  Rule(f"{_LAYER}.attn.gamma1.weight", (f"{BLOCK}/layerscale_sa",)),
  *rules.norm(f"{_LAYER}.ln2", f"{BLOCK}/LayerNorm_1"),
  *rules.affine(f"{_LAYER}.ffn.layers.0.0", f"{BLOCK}/MlpBlock_0/Dense_0"),
  *rules.affine(f"{_LAYER}.ffn.layers.1", f"{BLOCK}/MlpBlock_0/Dense_1"),
  Rule(f"{_LAYER}.ffn.gamma2.weight", (f"{BLOCK}/layerscale_mlp",)),
  *rules.norm("backbone.ln1", "Transformer/encoder_norm"),
  *rules.affine("head.layers.pre_logits", "pre_logits"),
  *rules.affine("head.layers.head", "head"),
  *rules.affine("head.layers.head_dist", "head_dist"),
]

RENAMES = (
  (r"\.norm([12])\.", r".ln\1."),
  # LayerScale beside the branches, as in the ViTKD reference.
  (r"(layers\.\d+)\.gamma_?1(\.weight)?$", r"\1.attn.gamma1.weight"),
  (r"(layers\.\d+)\.gamma_?2(\.weight)?$", r"\1.ffn.gamma2.weight"),
)

# A distiller's checkpoint also has the teacher and helper layers.
UNUSED = (
  r"^(teacher\.|align|mask_token|generation|distill|data_preprocessor\.|ema_)"
)


def matches(names: Iterable[str]) -> bool:
  """Whether names are mmpretrain's.

  Args:
    names: of a file's leaves.
  """
  return any(re.match(r"backbone\.layers\.\d+\.attn\.qkv", n) for n in names)
