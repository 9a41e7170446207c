"""timm's models, and the outputs of theirs that ours are held against."""

from golden import model_cases
import numpy as np
import torch


def import_timm():
  """The module timm, also beside a CPU build of PyTorch.

  timm imports torchvision for its data pipeline alone. torchvision's wheel is
  built for CUDA; with PyTorch's CPU build its compiled operators cannot load,
  and the import stops at the two that it describes to PyTorch regardless.
  Declaring these is enough to import it. No model uses them.
  """
  if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(
        f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor"
      )
    _KEEP.append(library)  # PyTorch forgets the operators with the object
  import timm

  return timm


_KEEP = []


def small(family: str) -> torch.nn.Module:
  """The small timm model of `model_cases.TIMM`, in evaluation mode."""
  import_timm()
  from timm.models import deit, vision_transformer

  build = vision_transformer.VisionTransformer
  if family == "distilled":
    build = deit.VisionTransformerDistilled
  fields = model_cases.TIMM_SIZE | model_cases.TIMM[family]
  return build(num_classes=model_cases.NUM_CLASSES, **fields).eval()


def outputs(model: torch.nn.Module, image: np.ndarray) -> dict:
  """The compared outputs of a timm model on an image [B, H, W, 3].

  Returns:
    {"block00", "block01": the residual stream after the first two blocks,
    "encoded": the last one after the final LayerNorm, all [B, T, D] with the
    prefix tokens; "logits" [B, C]}, NumPy arrays of the model's dtype.
  """
  out = {}

  def keep(name):
    def hook(module, inputs, output):
      out[name] = output.numpy()

    return hook

  taps = {"block00": model.blocks[0], "block01": model.blocks[1]}
  taps["encoded"] = model.norm
  hooks = [tap.register_forward_hook(keep(name)) for name, tap in taps.items()]
  dtype = next(model.parameters()).dtype
  with torch.no_grad():
    logits = model(torch.from_numpy(image).permute(0, 3, 1, 2).to(dtype))
  for hook in hooks:
    hook.remove()
  return {**out, "logits": logits.numpy()}
