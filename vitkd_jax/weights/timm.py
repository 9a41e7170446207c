"""timm's names, which are also DeiT's and (with `gamma_1`) DeiT III's."""

from collections.abc import Iterable
import re

from vitkd_jax.weights import rules
from vitkd_jax.weights.rules import ATTENTION, BLOCK, Rule

NAME = "timm"

RULES = [
  *rules.affine("patch_embed.proj", "embedding", rules.CONV),
  Rule("pos_embed", ("pos_embedding",)),
  Rule("cls_token", ("cls",)),
  Rule("dist_token", ("dist",)),
  Rule("reg_token", ("reg",)),
  *rules.norm("blocks.{i}.norm1", f"{BLOCK}/LayerNorm_0"),
  *rules.attention_in(
    "blocks.{i}.attn.qkv", ATTENTION, ("query", "key", "value")
  ),
  *rules.attention_out("blocks.{i}.attn.proj", ATTENTION),
  Rule("blocks.{i}.ls1.gamma", (f"{BLOCK}/layerscale_sa",)),
  *rules.norm("blocks.{i}.norm2", f"{BLOCK}/LayerNorm_1"),
  *rules.affine("blocks.{i}.mlp.fc1", f"{BLOCK}/MlpBlock_0/Dense_0"),
  *rules.affine("blocks.{i}.mlp.fc2", f"{BLOCK}/MlpBlock_0/Dense_1"),
  Rule("blocks.{i}.ls2.gamma", (f"{BLOCK}/layerscale_mlp",)),
  *rules.norm("norm", "Transformer/encoder_norm"),
  *rules.affine("pre_logits.fc", "pre_logits"),
  *rules.affine("head", "head"),
  *rules.affine("head_dist", "head_dist"),
]

# Other spellings of the same leaf: Meta's DeiT III and DINOv2.
RENAMES = (
  (r"^module\.", ""),
  (r"\.gamma_([12])$", r".ls\1.gamma"),
  (r"^register_tokens$", "reg_token"),
)

# Leaves that no forward pass reads.
UNUSED = r"^mask_token$"


def matches(names: Iterable[str]) -> bool:
  """Whether the names of a file are timm's."""
  return any(re.match(r"(module\.)?blocks\.\d+\.attn\.qkv\.", n) for n in names)
