"""Strips what trainers add to the names in PyTorch's checkpoints."""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from vitkd_jax.weights import rules

# `torch.compile`, FSDP and activation checkpointing insert names anywhere.
_WRAPPER = re.compile(
  r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# The first leaf of every ViT of timm, mmpretrain and transformers.
_FIRST = re.compile(
  r"(?P<prefix>(?:.*?\.)??)(?:patch_embed\.proj"
  r"|backbone\.patch_embed\.projection"
  r"|(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?embeddings"
  r"\.patch_embeddings\.projection)\.weight"
)
_AVERAGES = {"ema", "ema_model", "model_ema", "module_ema", "averaged_model"}
# DINOv2 nests its blocks in chunks, with one numbering over all chunks.
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")

# Names that only models have that `vit.ViT` does not support.
_UNSUPPORTED = (
  (r"\.(q_norm|k_norm)\.", "its attention normalises queries and keys"),
  (r"(^|\.)norm_pre\.", "a LayerNorm precedes its blocks, as in CLIP"),
  (r"blocks\.\d+\.(attns|ffns)\.\d+\.", "its blocks have parallel branches"),
  (r"blocks\.\d+\.in_proj\.", "its blocks have parallel branches"),
  (r"\.(w12|w1|w3|fc1_g|fc1_x|weights_in)\.(weight|bias)$", "SwiGLU"),
  (r"\.(q_bias|v_bias)$|relative_position|rel_pos", "BEiT's attention"),
  (r"\.(attn|mlp)\.norm\.", "its branches have norms of their own"),
  (r"(^|\.)patch_embed\.(backbone|proj\.\d|conv\d)", "its stem is a CNN"),
)
_ATTENTION_IN = re.compile(r"\.(qkv|attention\.(query|key|value))\.weight$")


def strip(
  names: Sequence[str], which: str | None
) -> tuple[dict[str, str], list[str]]:
  """The names of a model in a checkpoint, without wrappers and prefixes.

  Args:
    names: in the checkpoint.
    which: "student" or "ema" if the checkpoint has several models.

  Returns:
    (names, notes): the checkpoint's name by the model's own name, without
    those of other models, and sentences on what was dropped. Names of no ViT
    of PyTorch are unchanged.

  Raises:
    ValueError: two names become equal, or several models fit.
  """
  clean = {_WRAPPER.sub("", name): name for name in names}
  found = [m["prefix"] for name in clean if (m := _FIRST.fullmatch(name))]
  prefix, notes = _prefix(sorted(found), which)
  others = tuple(p for p in found if p != prefix and p.startswith(prefix))
  out, beside = {}, []
  for name, original in clean.items():
    if not name.startswith(prefix) or name.startswith(others):
      beside.append(original)
      continue
    out[_CHUNK.sub(r"blocks.\1.", name.removeprefix(prefix))] = original
  if len(out) + len(beside) < len(names):
    raise ValueError(
      "expected one name per leaf, got two that differ only in a wrapper, such "
      "as _orig_mod."
    )
  if prefix:
    notes.append(f"dropped the prefix {prefix!r} of the names")
  if beside:
    notes.append(f"ignored, as part of another model: {rules.some(beside)}")
  return out, notes


def _prefix(found: list[str], which: str | None) -> tuple[str, list[str]]:
  """The prefix of the chosen model's names, and notes."""
  averages = [p for p in found if _AVERAGES & set(p.split("."))]
  plain = [p for p in found if p not in averages]
  teachers = [p for p in plain if "teacher" in p.split(".")]
  if len(plain) > len(teachers):  # DINO's average, or a distiller's teacher
    averages = averages + teachers
    plain = [p for p in plain if p not in teachers]
  meant = (averages if which == "ema" else plain) or (
    averages if which is None else []
  )
  if which == "ema" and not averages:
    raise ValueError(
      "which='ema' needs a workdir with checkpoints, or a file with a moving "
      "average beside the student"
    )
  if len(meant) > 1:
    raise ValueError(
      f"expected one model in the file, got several, under {rules.some(meant)}"
    )
  others = [p for p in averages if p not in meant]
  notes = []
  if others and which is None:
    notes.append(f"--which ema reads the model under {others[0]!r}")
  return (meant[0] if meant else ""), notes


def check_kind(leaves: Mapping[str, np.ndarray]) -> None:
  """Refuses kinds of ViT that `vit.ViT` does not support.

  Args:
    leaves: by the model's own names.

  Raises:
    ValueError: with the kind, and a leaf that shows it.
  """
  for pattern, kind in _UNSUPPORTED:
    name = next((n for n in leaves if re.search(pattern, n)), None)
    if name is not None:
      raise ValueError(unsupported(f"{kind} ({name!r})"))
  for name in filter(_ATTENTION_IN.search, leaves):
    if name.removesuffix("weight") + "bias" not in leaves:
      raise ValueError(
        unsupported(f"queries, keys and values have no bias ({name!r})")
      )
    break
  first, second = (
    leaves.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2")
  )
  if first is None or second is None or not first.ndim == second.ndim == 2:
    return
  if len(first) == 2 * second.shape[1]:
    raise ValueError(unsupported("SwiGLU ('blocks.0.mlp.fc1.weight')"))


def unsupported(what: str) -> str:
  """The sentence about a model that `vit.ViT` does not support.

  Args:
    what: the difference.
  """
  return f"this kind of model is not supported: {what}"
