"""Fields of a model that config.json states and no shape of a leaf tells."""

from collections.abc import Mapping
from typing import Any

from vitkd_jax.models import backbones, variants
from vitkd_jax.weights import names

_GELU = {
  "gelu": "erf",
  "gelu_new": "tanh",
  "gelu_pytorch_tanh": "tanh",
  "gelu_tanh": "tanh",
}
# Arguments of timm's VisionTransformer with the values that `vit.ViT` supports;
# most files state none of them.
_TIMM: dict[str, tuple[object, ...]] = {
  "qkv_bias": (True,),
  "qk_norm": (False,),
  "scale_attn_norm": (False,),
  "scale_mlp_norm": (False,),
  "proj_bias": (True,),
  "pre_norm": (False,),
  "final_norm": (True,),
  "pool_include_prefix": (False,),
  "pos_embed": ("learn",),
  "in_chans": (3,),
  "norm_layer": (None, "layernorm", "LayerNorm"),
  "embed_norm_layer": (None,),
  "embed_layer": (None,),
  "block_fn": (None,),
  "mlp_layer": (None,),
  "attn_layer": (None,),
}
_HUGGINGFACE: dict[str, tuple[object, ...]] = {
  "qkv_bias": (True,),
  "use_swiglu_ffn": (False,),
  "num_channels": (3,),
}


def fields(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
  """Fields of `vit.Model` that a config.json states.

  Args:
    config: of timm or transformers; any other states no fields.

  Returns:
    By field: its text in the file, such as "num_attention_heads=4", and the
    value of the field.

  Raises:
    ValueError: it states a model that `vit.ViT` does not support.
  """
  if "architecture" in config:
    said = config.get("model_args") or {}
    if not isinstance(said, dict):
      raise ValueError(
        f"config.json: expected a dict of model_args, got {_short(said)}"
      )
    keys, heads, act = _TIMM, "num_heads", "act_layer"
  elif "model_type" in config:
    said = config
    keys, heads, act = _HUGGINGFACE, "num_attention_heads", "hidden_act"
  else:
    return {}
  for key, known in keys.items():
    if key in said and not any(_same(said[key], value) for value in known):
      raise ValueError(
        names.unsupported(f"config.json states {_text(said, key)}")
      )
  out = {}
  if heads in said:
    if not isinstance(said[heads], int) or isinstance(said[heads], bool):
      raise ValueError(
        f"config.json: expected an integer {heads}, got {_short(said[heads])}"
      )
    out["num_heads"] = _text(said, heads), said[heads]
  if act in said and said[act] is not None:
    name = said[act]
    if not isinstance(name, str) or name not in _GELU:
      raise ValueError(
        names.unsupported(f"config.json states {_text(said, act)}")
      )
    out["gelu"] = _text(said, act), _GELU[name]
  if "layer_norm_eps" in said and keys is _HUGGINGFACE:
    eps = said["layer_norm_eps"]
    if not isinstance(eps, int | float) or isinstance(eps, bool):
      raise ValueError(
        f"config.json: expected a number as layer_norm_eps, got {_short(eps)}"
      )
    out["norm_eps"] = _text(said, "layer_norm_eps"), eps
  return out


def pooling(leaves: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
  """As `fields`, from the names of timm's leaves.

  MAE's classifiers have an fc_norm.

  Args:
    leaves: by timm's names.
  """
  if "fc_norm.weight" not in leaves:
    return {}
  text = "'fc_norm.weight'"
  return {
    "pool_type": (text, "gap"),
    "fc_norm": (text, True),
    "class_token": (text, "cls_token" in leaves),
  }


def settle(
  said: Mapping[str, tuple[str, Any]],
  variant: str,
  given: Mapping[str, Any],
  adopt: bool,
) -> tuple[dict[str, Any], list[str]]:
  """Fields to adopt from a file, and notes on them.

  Args:
    said: fields that the file states, from `fields` and `pooling`.
    variant: name of the model that the caller asked for.
    given: fields that the caller gave.
    adopt: whether to adopt fields that the caller did not give.

  Returns:
    (fields, notes): values by field, and a sentence for each.

  Raises:
    ValueError: the file contradicts the caller.
  """
  taken, notes = {}, []
  asked = {**variants.get(variant).fields, **given}
  defaults = backbones.module(variant).__dataclass_fields__
  for name, (text, value) in said.items():
    ours = asked.get(name, defaults[name].default)
    # None: the pooling decides.
    if ours == value or (name, ours, value) == ("class_token", None, False):
      continue
    # Too small to change a float32 variance that occurs.
    slight = name == "norm_eps" and 0 <= value <= 1e-6
    if slight and (name in given or not adopt):
      continue
    if name in given or not adopt:
      raise ValueError(
        f"the file states {text}, the model has {name}={ours!r}; give "
        f"{name}={value!r}"
      )
    taken[name] = value
    if not slight:
      notes.append(f"{name}={value!r}, as the file states {text}")
  return taken, notes


def _same(value: object, known: object) -> bool:
  return type(value) is type(known) and value == known


def _text(said: Mapping[str, Any], key: str) -> str:
  return f"{key}={_short(said[key])}"


def _short(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:60] + "..."
