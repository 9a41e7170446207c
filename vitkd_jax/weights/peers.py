"""What the libraries themselves compute with a file, to compare ours with.

The only place that imports timm and transformers, and only when asked.
"""

import os

import numpy as np

from vitkd_jax.models import variants

LIBRARIES = ("timm", "huggingface")


class AbsentError(ImportError):
  """The library is not installed; the message is its name."""


def image(image_size: tuple[int, int]) -> np.ndarray:
  """The fixed input: [1, H, W, 3] float32, normal."""
  draw = np.random.RandomState(0).standard_normal((1, *image_size, 3))
  return draw.astype(np.float32)


def of_folder(
  format: str, folder: str, image_size: tuple[int, int]
) -> np.ndarray:
  """Logits (features without a head) of a folder through its library.

  Args:
    format: "timm" or "huggingface".
    folder: with config.json and the weights.
    image_size: rows and columns in pixels.

  Returns:
    [1, C] or [1, D] float32.

  Raises:
    AbsentError: the library is not installed.
  """
  if format == "timm":
    timm = _import("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return _run(model, image_size)
  transformers = _import("transformers")
  config = transformers.AutoConfig.from_pretrained(folder)
  model_class = getattr(transformers, config.architectures[0])
  return _run(model_class.from_pretrained(folder), image_size)


def of_timm_file(
  path: str, variant: str, num_classes: int | None, image_size: tuple[int, int]
) -> np.ndarray | None:
  """As `of_folder`, of a file under timm's names; None if timm has no such.

  Raises:
    AbsentError: timm is not installed.
  """
  name = variant.partition(".")[0]
  if not variants.get(variant).published or os.path.isdir(path):
    return None
  timm = _import("timm")
  # As pretrained weights, so that timm's own filter mends older names.
  model = timm.create_model(
    name,
    pretrained=True,
    pretrained_cfg_overlay={"file": path, "num_classes": num_classes or 0},
    num_classes=num_classes or 0,
    img_size=image_size,
  )
  return _run(model, image_size)


def _import(name):
  import importlib

  try:
    return importlib.import_module(name)
  except (ImportError, RuntimeError) as error:  # a broken torchvision is both
    raise AbsentError(name) from error


def _run(model, image_size) -> np.ndarray:
  import torch

  pixels = torch.from_numpy(image(image_size)).permute(0, 3, 1, 2)
  with torch.inference_mode():
    out = model.eval()(pixels)
  if hasattr(out, "last_hidden_state"):
    out = out.last_hidden_state[:, 0]
  return getattr(out, "logits", out).numpy()
