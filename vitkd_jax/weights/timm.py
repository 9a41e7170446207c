"""timm's names, which are also those of DeiT and (with `gamma_1`) DeiT III."""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from vitkd_jax import check
from vitkd_jax.data import preprocess
from vitkd_jax.models import variants, vit
from vitkd_jax.weights import names, processors, rules
from vitkd_jax.weights.rules import ATTENTION, BLOCK, CLASS_BLOCK, Rule

NAME = "timm"

_POOL = "MAPHead_0/MultiHeadDotProductAttention_0"


def _block(theirs: str, ours: str) -> list[Rule]:
  """The rules of a block, all but what goes into its attention."""
  attention = f"{ours}/MultiHeadDotProductAttention_0"
  return [
    *rules.norm(f"{theirs}.norm1", f"{ours}/LayerNorm_0"),
    *rules.attention_out(f"{theirs}.attn.proj", attention),
    Rule(f"{theirs}.ls1.gamma", (f"{ours}/layerscale_sa",)),
    *rules.norm(f"{theirs}.norm2", f"{ours}/LayerNorm_1"),
    *rules.affine(f"{theirs}.mlp.fc1", f"{ours}/MlpBlock_0/Dense_0"),
    *rules.affine(f"{theirs}.mlp.fc2", f"{ours}/MlpBlock_0/Dense_1"),
    Rule(f"{theirs}.ls2.gamma", (f"{ours}/layerscale_mlp",)),
  ]


_SHARED = [
  *rules.affine("patch_embed.proj", "embedding", rules.CONV),
  Rule("pos_embed", ("pos_embedding",)),
  Rule("cls_token", ("cls",)),
  *_block("blocks.{i}", BLOCK),
  *rules.attention_in(
    "blocks.{i}.attn.qkv", ATTENTION, ("query", "key", "value")
  ),
  *rules.affine("head", "head"),
]

RULES = [
  *_SHARED,
  Rule("dist_token", ("dist",)),
  Rule("reg_token", ("reg",)),
  *rules.norm("norm", "Transformer/encoder_norm"),
  Rule("attn_pool.latent", ("MAPHead_0/probe",)),
  *rules.attention_in("attn_pool.q", _POOL, ("query",)),
  *rules.attention_in("attn_pool.kv", _POOL, ("key", "value")),
  *rules.attention_out("attn_pool.proj", _POOL),
  *rules.norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
  *rules.affine("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
  *rules.affine("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
  *rules.norm("fc_norm", "fc_norm"),
  *rules.affine("pre_logits.fc", "pre_logits"),
  *rules.affine("head_dist", "head_dist"),
]

_CLASS_BLOCK = "blocks_token_only.{i}"
_CLASS_ATTENTION = f"{CLASS_BLOCK}/MultiHeadDotProductAttention_0"

CAIT_RULES = [
  *_SHARED,
  *rules.affine("blocks.{i}.attn.proj_l", f"{ATTENTION}/mix_scores"),
  *rules.affine("blocks.{i}.attn.proj_w", f"{ATTENTION}/mix_weights"),
  *_block(_CLASS_BLOCK, CLASS_BLOCK),
  *rules.attention_in(f"{_CLASS_BLOCK}.attn.q", _CLASS_ATTENTION, ("query",)),
  *rules.attention_in(f"{_CLASS_BLOCK}.attn.k", _CLASS_ATTENTION, ("key",)),
  *rules.attention_in(f"{_CLASS_BLOCK}.attn.v", _CLASS_ATTENTION, ("value",)),
  *rules.norm("norm", "encoder_norm"),
]

# Other spellings of the same leaf: Meta's DeiT III and DINOv2.
RENAMES = (
  (r"\.gamma_([12])$", r".ls\1.gamma"),
  (r"^register_tokens$", "reg_token"),
)

# Leaves that no forward pass reads, and MAE's decoder.
UNUSED = r"^(mask_token$|decoder_)"


def matches(names: Iterable[str]) -> bool:
  """Whether names are timm's.

  Args:
    names: of a file's leaves.
  """
  return any(re.match(r"blocks\.\d+\.attn\.qkv\.", n) for n in names)


def is_cait(names: Iterable[str]) -> bool:
  """Whether timm's names are those of a CaiT.

  Args:
    names: of a file's leaves.
  """
  return any(name.startswith("blocks_token_only.") for name in names)


def write(
  leaves: Mapping[str, np.ndarray], model: vit.ViT, variant: str
) -> dict[str, np.ndarray]:
  """timm's leaves of a model, exactly those that `config` implies.

  Args:
    leaves: ours by name, with a `pos_embedding` also if it is fixed.
    model: the model of these leaves.
    variant: its name.

  Raises:
    ValueError: timm has no such model.
  """
  if model.rep_size or model.pool_type not in ("tok", "gap", "map"):
    raise ValueError(
      f"timm has no model with rep_size={model.rep_size} and "
      f"pool_type={model.pool_type!r}; use format='flat'"
    )
  check_norm(model, "timm")
  theirs = rules.to_theirs(RULES, leaves)
  prefix = model.num_prefix_tokens
  if prefix and not _tokens_after_position(model, variant):
    # The tokens' own entries are in the tokens.
    zeros = np.zeros((1, prefix, model.width), np.float32)
    theirs["pos_embed"] = np.concatenate([zeros, theirs["pos_embed"]], 1)
  return theirs


def check_norm(model: vit.ViT, library: str) -> None:
  """Refuses a LayerNorm whose epsilon a library's config cannot state.

  Args:
    model: to check.
    library: its name, for the message.

  Raises:
    ValueError: the epsilon is not that of the library's models.
  """
  if model.norm_eps != vit.ViT.norm_eps:
    raise ValueError(
      f"expected norm_eps={vit.ViT.norm_eps}, as in all models of {library}, "
      f"got {model.norm_eps}; use format='huggingface' or 'flat'"
    )


def config(
  model: vit.ViT,
  variant: variants.Variant,
  images: preprocess.Preprocess,
  class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """The config.json of a folder for `create_model("local-dir:...")`.

  Args:
    model: to describe.
    variant: of the model.
    images: preprocessing of an evaluation's images.
    class_names: in the order of the logits; None if unknown.
  """
  known = variant.name.partition(".")[0]
  if known not in variants.NAMED or not variant.published:
    tokens = "deit_tiny_distilled" if model.distilled else "vit_tiny"
    known = f"{tokens}_patch16_224"
  arguments = {
    "img_size": list(images.size),
    "patch_size": list(model.patch_size),
    "embed_dim": model.width,
    "depth": model.depth,
    "num_heads": model.num_heads,
    "mlp_ratio": _mlp_ratio(model),
    "act_layer": {ours: own for own, ours in _ACTIVATIONS.items()}[model.gelu],
    "init_values": model.layerscale_init,
    "no_embed_class": _tokens_after_position(model, variant.name),
  }
  if not model.distilled:
    arguments |= {
      "reg_tokens": model.registers,
      "class_token": model.has_class_token,
      "global_pool": {ours: own for own, ours in _POOLS.items()}[
        model.pool_type
      ],
      "fc_norm": model.fc_norm,
    }
  # timm maps names to descriptions, which our classes do not have.
  labels = {"label_names": list(class_names)} if class_names else {}
  return {
    "architecture": known,
    "num_classes": model.num_classes or 0,
    "num_features": model.width,
    **labels,
    "model_args": arguments,
    "pretrained_cfg": {
      "num_classes": model.num_classes or 0,
      "pool_size": None,
      "fixed_input_size": True,
      **processors.to_timm(images),
      "first_conv": "patch_embed.proj",
      "classifier": ["head", "head_dist"] if model.distilled else "head",
    },
  }


_ACTIVATIONS = {"gelu": "erf", "gelu_tanh": "tanh"}
_POOLS = {"token": "tok", "avg": "gap", "map": "map"}


def fields(arguments: Mapping[str, Any], family: str) -> dict[str, Any]:
  """The fields of a model that `model_args` state.

  Args:
    arguments: the `model_args` of a config.json.
    family: of the model, see `variants.Variant`.

  Raises:
    ValueError: an argument is not a number where one is expected, or states a
      CaiT whose head does not read its CLS token.
  """
  found = {
    ours: arguments[theirs]
    for theirs, ours in (
      ("embed_dim", "width"),
      ("depth", "depth"),
      ("num_heads", "num_heads"),
      ("init_values", "layerscale_init"),
      ("reg_tokens", "registers"),
      ("depth_token_only", "class_depth"),
    )
    if theirs in arguments
  }
  patch = arguments.get("patch_size")
  if patch is not None:
    found["patch_size"] = (patch,) * 2 if isinstance(patch, int) else (*patch,)
  if "mlp_ratio" in arguments and "width" in found:
    width, ratio = found["width"], arguments["mlp_ratio"]
    if not all(map(check.is_real, (width, ratio))) or not check.is_real(
      width * ratio
    ):
      raise ValueError(
        "expected finite numbers as embed_dim and mlp_ratio, got "
        f"{str(width)[:60]} and {str(ratio)[:60]}"
      )
    found["mlp_dim"] = int(width * ratio)
  for theirs, ours, known in (
    ("act_layer", "gelu", _ACTIVATIONS),
    ("global_pool", "pool_type", _POOLS),
  ):
    if arguments.get(theirs) in list(known):
      found[ours] = known[arguments[theirs]]
  if family == "CaiT" and found.pop("pool_type", "tok") != "tok":
    pool = arguments["global_pool"]
    raise ValueError(names.unsupported(f"a CaiT with global_pool={pool!r}"))
  return found


def _tokens_after_position(model: vit.ViT, variant: str) -> bool:
  return bool(model.registers) or variant.startswith("deit3_")


def _mlp_ratio(model: vit.ViT) -> float:
  hidden = model.mlp_dim or 4 * model.width
  ratio = hidden / model.width
  # timm truncates the product.
  return ratio if int(model.width * ratio) == hidden else ratio + 1e-9
