"""Names in PyTorch's checkpoints: what trainers wrap around a model's own."""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from vitkd_jax.weights import rules

# `torch.compile`, FSDP and checkpointed activations name themselves anywhere.
_WRAPPER = re.compile(
  r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# The first leaf of every ViT, as timm, mmpretrain and transformers have it.
_FIRST = re.compile(
  r"(?P<prefix>(?:.*?\.)??)(?:patch_embed\.proj"
  r"|backbone\.patch_embed\.projection"
  r"|(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?embeddings"
  r"\.patch_embeddings\.projection)\.weight"
)
_AVERAGES = {"ema", "ema_model", "model_ema", "module_ema", "averaged_model"}
# DINOv2 nests its blocks in chunks and goes on counting through them.
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")

# Names that only models have which no `vit.ViT` computes.
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
  """The model's own names, and notes.

  Args:
    names: of a checkpoint.
    which: "student" or "ema" where the names are of several models.

  Returns:
    The name of the checkpoint's by the model's own, without those of other
    models; and what was done, in sentences. Names that are no ViT's of
    PyTorch come back as they are.

  Raises:
    ValueError: two names become one, or it is open which model is meant.
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
      "two of the file's names differ in a wrapper alone (_orig_mod. or the "
      "like): expected one"
    )
  if prefix:
    notes.append(f"the names' prefix {prefix!r} is left off")
  if beside:
    notes.append(f"{rules.some(beside)} left out, as of another model")
  return out, notes


def _prefix(found: list[str], which) -> tuple[str, list[str]]:
  """What precedes the names of the model that is meant, and notes."""
  averages = [p for p in found if _AVERAGES & set(p.split("."))]
  plain = [p for p in found if p not in averages]
  teachers = [p for p in plain if "teacher" in p.split(".")]
  if len(plain) > len(teachers):  # DINO's average, a distiller's other model
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
      f"the file has several models, under {rules.some(meant)}: expected one"
    )
  others = [p for p in averages if p not in meant]
  notes = []
  if others and which is None:
    notes.append(f"--which ema reads the model under {others[0]!r}")
  return (meant[0] if meant else ""), notes


def check_kind(leaves: Mapping[str, np.ndarray]) -> None:
  """Refuses models of PyTorch that are ViTs of another kind.

  Args:
    leaves: by the model's own names.

  Raises:
    ValueError: the kind, and a leaf that tells it.
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
  """The sentence about a model that no `vit.ViT` computes."""
  return f"this kind of model is not supported: {what}"
