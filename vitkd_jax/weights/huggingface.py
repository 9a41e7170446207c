"""Hugging Face transformers' names of ViT, DeiT and DINOv2."""

from collections.abc import Iterable
import re

from vitkd_jax.weights import rules
from vitkd_jax.weights.rules import ATTENTION, BLOCK, Rule

NAME = "huggingface"

_LAYER = "encoder.layer.{i}"

# The names of the hub's files, which transformers 5 still reads and writes,
# less the model's own prefix ("vit.", "deit.", "dinov2.").
_EMBEDDINGS = [
  *rules.affine(
    "embeddings.patch_embeddings.projection", "embedding", rules.CONV
  ),
  Rule("embeddings.position_embeddings", ("pos_embedding",)),
  Rule("embeddings.cls_token", ("cls",)),
  Rule("embeddings.distillation_token", ("dist",)),
  Rule("embeddings.register_tokens", ("reg",)),
]
_ATTENTION = [
  *(
    rule
    for name in ("query", "key", "value")
    for rule in rules.attention_in(
      f"{_LAYER}.attention.attention.{name}", ATTENTION, (name,)
    )
  ),
  *rules.attention_out(f"{_LAYER}.attention.output.dense", ATTENTION),
]
_HEAD = [
  *rules.norm("layernorm", "Transformer/encoder_norm"),
  *rules.affine("pooler.dense", "pre_logits"),
  *rules.affine("classifier", "head"),
  *rules.affine("distillation_classifier", "head_dist"),
]

RULES = [
  *_EMBEDDINGS,
  *_ATTENTION,
  *rules.norm(f"{_LAYER}.layernorm_before", f"{BLOCK}/LayerNorm_0"),
  *rules.norm(f"{_LAYER}.layernorm_after", f"{BLOCK}/LayerNorm_1"),
  *rules.affine(f"{_LAYER}.intermediate.dense", f"{BLOCK}/MlpBlock_0/Dense_0"),
  *rules.affine(f"{_LAYER}.output.dense", f"{BLOCK}/MlpBlock_0/Dense_1"),
  *_HEAD,
]

DINOV2_RULES = [
  *_EMBEDDINGS,
  *_ATTENTION,
  *rules.norm(f"{_LAYER}.norm1", f"{BLOCK}/LayerNorm_0"),
  *rules.norm(f"{_LAYER}.norm2", f"{BLOCK}/LayerNorm_1"),
  Rule(f"{_LAYER}.layer_scale1.lambda1", (f"{BLOCK}/layerscale_sa",)),
  *rules.affine(f"{_LAYER}.mlp.fc1", f"{BLOCK}/MlpBlock_0/Dense_0"),
  *rules.affine(f"{_LAYER}.mlp.fc2", f"{BLOCK}/MlpBlock_0/Dense_1"),
  Rule(f"{_LAYER}.layer_scale2.lambda1", (f"{BLOCK}/layerscale_mlp",)),
  *_HEAD,
]

RENAMES = (
  (r"^(vit|deit|dinov2|dinov2_with_registers)\.", ""),
  (r"^cls_classifier\.", "classifier."),  # DeiT with a teacher
)

# Read by no forward pass: masked-image tokens.
UNUSED = r"^embeddings\.mask_token$"


def matches(names: Iterable[str]) -> bool:
  """Whether the names of a file are transformers'."""
  return any("embeddings.patch_embeddings.projection" in n for n in names)


def table(names: Iterable[str]) -> list[Rule]:
  """The rules for a file with these names: DINOv2 spells its blocks its way."""
  dinov2 = any(re.search(r"\.layer_scale1\.|\.mlp\.fc1\.", n) for n in names)
  return DINOV2_RULES if dinov2 else RULES
