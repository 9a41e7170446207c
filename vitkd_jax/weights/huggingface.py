"""Hugging Face transformers' names of ViT, DeiT and DINOv2."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from vitkd_jax.models import variants, vit
from vitkd_jax.weights import rules
from vitkd_jax.weights.rules import ATTENTION, BLOCK, Rule

NAME = "huggingface"

_LAYER = "encoder.layer.{i}"

# The names in files of the hub, which transformers 5 still reads and writes,
# without the model's prefix ("vit.", "deit.", "dinov2.").
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

# Mask tokens, which no forward pass of a classifier reads, and MAE's decoder.
UNUSED = r"^(embeddings\.mask_token$|decoder\.)"


def matches(names: Iterable[str]) -> bool:
  """Whether names are transformers'.

  Args:
    names: of a file's leaves.
  """
  return any("embeddings.patch_embeddings.projection" in n for n in names)


def table(names: Iterable[str]) -> list[Rule]:
  """The rules for a file: those of DINOv2, or those of ViT and DeiT.

  Args:
    names: of the file's leaves.
  """
  dinov2 = any(re.search(r"\.layer_scale1\.|\.mlp\.fc1\.", n) for n in names)
  return DINOV2_RULES if dinov2 else RULES


def clean(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Leaves with both heads, for DeiT's classifier with a single head.

  `DeiTForImageClassification` has the distillation token, but its head reads
  the class token alone. Logits here are the mean of two heads, so they become
  twice that head, and zero.

  Args:
    source: a file's arrays by name; changed in place.
  """
  alone = "distillation_classifier.weight" not in source
  if "embeddings.distillation_token" in source and alone:
    for name in ("weight", "bias"):
      if f"classifier.{name}" in source:
        kept = source[f"classifier.{name}"]
        source[f"classifier.{name}"] = 2 * kept
        source[f"distillation_classifier.{name}"] = np.zeros_like(kept)
  return source


def _is_dinov2(model: vit.ViT, variant: str) -> bool:
  return bool(model.registers) or "dinov2" in variant


def write(
  leaves: Mapping[str, np.ndarray], model: vit.ViT, variant: str
) -> dict[str, np.ndarray]:
  """transformers' leaves of a model, exactly those that `config` implies.

  Args:
    leaves: ours by name, with a `pos_embedding` also if it is fixed, and with
      LayerScale folded for ViT and DeiT, which have none.
    model: the model of these leaves.
    variant: its name.

  Raises:
    ValueError: transformers has no such model.
  """
  dinov2 = _is_dinov2(model, variant)
  if model.pool_type != "tok" or model.rep_size:
    raise ValueError(
      f"transformers has no ViT with pool_type={model.pool_type!r} and "
      f"rep_size={model.rep_size}; use format='timm' or 'flat'"
    )
  if dinov2 and (model.num_classes or model.distilled):
    raise ValueError(
      "expected DINOv2 without a head and without a distillation token for "
      "format='huggingface'; use num_classes=0, or format='flat'"
    )
  theirs = rules.to_theirs(DINOV2_RULES if dinov2 else RULES, leaves)
  prefix = 1 + model.distilled  # registers have no position there
  zeros = np.zeros((1, prefix, model.width), np.float32)
  name = "embeddings.position_embeddings"
  theirs[name] = np.concatenate([zeros, theirs[name]], 1)
  if dinov2:
    theirs["embeddings.mask_token"] = zeros[0]
    return theirs
  if not model.num_classes:
    return theirs
  inside = "deit." if model.distilled else "vit."
  own = "cls_classifier" if model.distilled else "classifier"
  return {
    name.replace("classifier", own, 1)
    if name.startswith("classifier.")
    else name
    if name.startswith("distillation_classifier.")
    else inside + name: array
    for name, array in theirs.items()
  }


def config(
  model: vit.ViT,
  variant: variants.Variant,
  image_size: tuple[int, int],
  class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """The config.json of a folder for `from_pretrained`.

  Args:
    model: to describe.
    variant: of the model.
    image_size: rows and columns in pixels.
    class_names: in the order of the logits; None for "LABEL_0" and so on.

  Raises:
    ValueError: transformers' DINOv2 has no such width of the MLP.
  """
  hidden = model.mlp_dim or 4 * model.width
  out = {
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_attention_heads": model.num_heads,
    "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[model.gelu],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": model.norm_eps,
    "image_size": _side(image_size),
    "patch_size": _side(model.patch_size),
    "num_channels": 3,
    "qkv_bias": True,
  }
  if _is_dinov2(model, variant.name):
    registers = model.registers > 0
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    if hidden % model.width:
      raise ValueError(
        "expected mlp_dim to be a multiple of the width for transformers' "
        f"DINOv2, got {hidden} and {model.width}; use format='flat'"
      )
    out |= {
      "architectures": [f"{name}Model"],
      "model_type": "dinov2_with_registers" if registers else "dinov2",
      "mlp_ratio": hidden // model.width,
      "use_swiglu_ffn": False,
      "layerscale_value": 1.0,
    }
    return out | ({"num_register_tokens": model.registers} if registers else {})
  count = model.num_classes or 0
  name = "DeiT" if model.distilled else "ViT"
  task = "ForImageClassification" if count else "Model"
  teacher = "WithTeacher" if count and model.distilled else ""
  names = class_names or [f"LABEL_{i}" for i in range(count)]
  return out | {
    "architectures": [name + task + teacher],
    "model_type": name.lower(),
    "intermediate_size": hidden,
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
  }


def _side(size: tuple[int, int]) -> int | list[int]:
  return size[0] if size[0] == size[1] else list(size)
