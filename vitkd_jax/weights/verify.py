"""What the libraries themselves compute with a file, to compare ours with.

The only place that imports timm and transformers, and only when asked.
"""

import contextlib
import importlib
import os

import numpy as np

from vitkd_jax.models import variants

LIBRARIES = ("timm", "huggingface")


class SilentError(Exception):
  """The library says nothing of the file; the message is why."""


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
    SilentError: the library is missing, broken, or refuses the folder.
  """
  if format == "timm":
    with _answering("timm") as timm:
      model = timm.create_model(f"local-dir:{folder}", pretrained=True)
      return _run(model, image_size)
  with _answering("transformers") as transformers:
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    return _run(model_class.from_pretrained(folder), image_size)


def of_timm_file(
  path: str, variant: str, num_classes: int | None, image_size: tuple[int, int]
) -> np.ndarray | None:
  """As `of_folder`, of a file under timm's names; None if timm has no such.

  Raises:
    SilentError: timm is missing, broken, or refuses the file.
  """
  name = variant.partition(".")[0]
  if not variants.get(variant).published or os.path.isdir(path):
    return None
  with _answering("timm") as timm:
    # As pretrained weights, so that timm's own filter mends older names.
    model = timm.create_model(
      name,
      pretrained=True,
      pretrained_cfg_overlay={"file": path, "num_classes": num_classes or 0},
      num_classes=num_classes or 0,
      img_size=image_size,
    )
    return _run(model, image_size)


@contextlib.contextmanager
def _answering(name):
  """The library; whatever it raises becomes a SilentError.

  It may raise anything and late: a torchvision that does not fit PyTorch is a
  RuntimeError at the import of timm, and an ImportError, an AttributeError or
  a ModuleNotFoundError of another name once transformers builds a model.
  """
  try:
    yield importlib.import_module(name)
  except Exception as error:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
      raise SilentError(f"{name} is not installed") from error
    lines = str(error).strip().splitlines() or [""]
    kind = type(error).__name__
    raise SilentError(f"{name} raised {kind}: {lines[0]}") from error


def _run(model, image_size) -> np.ndarray:
  import torch

  pixels = torch.from_numpy(image(image_size)).permute(0, 3, 1, 2)
  with torch.inference_mode():
    out = model.eval()(pixels)
  if hasattr(out, "last_hidden_state"):
    out = out.last_hidden_state[:, 0]
  return getattr(out, "logits", out).numpy()
