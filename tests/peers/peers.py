"""Builds the peers' models. Needs PyTorch, timm and transformers."""

import re

import numpy as np
import torch

from peers import families

# torchvision's wheel is built for CUDA. Beside PyTorch's CPU build it stops at
# the import; that these two operators exist is all that it asks.
if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
  LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
  for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")

import timm
from timm.models import deit, vision_transformer
import transformers

VERSIONS = {m.__name__: m.__version__ for m in (torch, timm, transformers)}

# timm's names as mmpretrain 1.2 and mmcls have them, by hand from its models.
_MMPRETRAIN = (
  (r"^(cls_token|dist_token|pos_embed)$", r"backbone.\1"),
  (r"^patch_embed\.proj\.", "backbone.patch_embed.projection."),
  (r"^blocks\.", "backbone.layers."),
  (r"\.norm([12])\.", r".ln\1."),
  (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
  (r"\.mlp\.fc2\.", ".ffn.layers.1."),
  (r"\.ls1\.gamma$", ".attn.gamma1.weight"),
  (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
  (r"^norm\.", "backbone.ln1."),
  (r"^(head|head_dist)\.", r"head.layers.\1."),
)
_NAMES = {
  "timm": ((r"^fc_norm\.0\.", "pre_logits.fc."),),
  "meta": ((r"\.ls([12])\.gamma$", r".gamma_\1"),),
  "mmpretrain": _MMPRETRAIN,
  "distiller": (*_MMPRETRAIN, (r"^", "student.")),
  # transformers 5 renames what it holds, not what it writes.
  "huggingface": (),
}


def build(name: str) -> torch.nn.Module:
  """The peer's model of a family, in evaluation mode."""
  family = families.FAMILIES[name]
  if family.peer.startswith("timm"):
    fields = dict(
      img_size=families.SIZE,
      patch_size=7,
      embed_dim=8,
      depth=2,
      num_heads=2,
      num_classes=family.num_classes or 0,
      **family.arguments,
    )
    if family.peer == "timm_distilled":
      return deit.VisionTransformerDistilled(**fields).eval()
    model = vision_transformer.VisionTransformer(**fields)
    if family.peer == "timm_pre_logits":  # timm before 0.9
      model.fc_norm = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.Tanh()
      )
    return model.eval()
  kind = family.peer.partition("For")[0].removesuffix("Model")
  sizes = dict(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=families.SIZE,
    patch_size=7,
    num_labels=families.NUM_CLASSES,
  )
  config = getattr(transformers, f"{kind}Config")(**sizes | family.arguments)
  return getattr(transformers, family.peer)(config).eval()


def state(name: str, model: torch.nn.Module, folder) -> dict[str, np.ndarray]:
  """What the peer writes to a file, under the family's names."""
  family = families.FAMILIES[name]
  if family.format == "huggingface":
    model.save_pretrained(folder)
    from safetensors import numpy as safetensors_numpy

    return safetensors_numpy.load_file(folder / "model.safetensors")
  return {
    renamed(family.format, leaf): tensor.numpy()
    for leaf, tensor in model.state_dict().items()
  }


def renamed(format: str, leaf: str) -> str:
  """The name in a format's files of a leaf of the peer's model."""
  for pattern, new in _NAMES[format]:
    leaf = re.sub(pattern, new, leaf)
  return leaf


def randomise(name: str, model: torch.nn.Module) -> None:
  """Fills every parameter with draws that depend on the name alone."""
  tensors = model.state_dict()
  filled = families.fill(name, {k: v.shape for k, v in tensors.items()})
  model.load_state_dict({k: torch.from_numpy(v) for k, v in filled.items()})


def outputs(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """tokens [2, T, D] after the final LayerNorm, logits [2, C] if any."""
  image = torch.from_numpy(families.image()).permute(0, 3, 1, 2)
  with torch.no_grad():
    if hasattr(model, "forward_features"):
      out = {"tokens": model.forward_features(image)}
      logits = model(image) if model.num_classes else None
    else:
      base = getattr(model, model.base_model_prefix, model)
      out = {"tokens": base(image).last_hidden_state}
      logits = getattr(model(image), "logits", None)
  if logits is not None:
    out["logits"] = logits
  return {key: value.numpy() for key, value in out.items()}
