"""Outputs of other libraries for a file or folder, to verify ours.

The only module that imports timm, transformers and onnxruntime, and only when
they are used.
"""

from collections.abc import Iterator
import contextlib
import importlib
import os
from typing import Any

import numpy as np

from vitkd_jax.models import variants
from vitkd_jax.weights import onnx_graph, stablehlo

LIBRARIES = ("timm", "huggingface")


class SilentError(Exception):
  """The library cannot compute an output; the message says why."""


def image(image_size: tuple[int, int]) -> np.ndarray:
  """The fixed input, drawn from the normal distribution.

  Args:
    image_size: rows and columns in pixels.

  Returns:
    [1, H, W, 3] float32.
  """
  draw = np.random.RandomState(0).standard_normal((1, *image_size, 3))
  return draw.astype(np.float32)


def of_folder(
  format: str, folder: str, image_size: tuple[int, int]
) -> np.ndarray:
  """Logits, or features without a head, that a library computes from a folder.

  Args:
    format: "timm" or "huggingface".
    folder: with config.json and the weights.
    image_size: rows and columns in pixels.

  Returns:
    [1, C] or [1, D] float32.

  Raises:
    SilentError: the library is missing or broken, or refuses the folder.
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
  """As `of_folder`, for a file with timm's names.

  Args:
    path: of the file.
    variant: name of the model.
    num_classes: C; None or 0 for no head.
    image_size: rows and columns in pixels.

  Returns:
    [1, C] or [1, D] float32; None if timm has no such model.

  Raises:
    SilentError: timm is missing or broken, or refuses the file.
  """
  name = variant.partition(".")[0]
  if not variants.get(variant).published or os.path.isdir(path):
    return None
  with _answering("timm") as timm:
    # As pretrained weights, so that timm's own filter renames older leaves.
    model = timm.create_model(
      name,
      pretrained=True,
      pretrained_cfg_overlay={"file": path, "num_classes": num_classes or 0},
      num_classes=num_classes or 0,
      img_size=image_size,
    )
    return _run(model, image_size)


def of_program(format: str, file: str, images: np.ndarray) -> np.ndarray:
  """Outputs of a written program, on a CPU for "onnx".

  Args:
    format: "stablehlo" or "onnx".
    file: that was written; local for "onnx".
    images: [B, H, W, 3] float32, normalised.

  Returns:
    [B, C] or [B, D] float32.

  Raises:
    SilentError: onnxruntime is missing or broken, or refuses the file.
  """
  if format == "stablehlo":
    return stablehlo.outputs(file, images)
  with _answering("onnxruntime") as onnxruntime:
    session = onnxruntime.InferenceSession(
      file, providers=["CPUExecutionProvider"]
    )
    feed = {onnx_graph.INPUT: np.moveaxis(images, 3, 1)}
    return np.asarray(session.run(None, feed)[0])


@contextlib.contextmanager
def _answering(name: str) -> Iterator[Any]:
  """Context that yields a library, whose exceptions become SilentErrors.

  It may raise any type, and late: a torchvision that does not match PyTorch is
  a RuntimeError when timm is imported, and an ImportError, an AttributeError or
  a ModuleNotFoundError of another name when transformers builds a model.
  """
  try:
    yield importlib.import_module(name)
  except Exception as error:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
      raise SilentError(f"{name} is not installed") from error
    lines = str(error).strip().splitlines() or [""]
    kind = type(error).__name__
    raise SilentError(f"{name} raised {kind}: {lines[0]}") from error


def _run(model: Any, image_size: tuple[int, int]) -> np.ndarray:
  import torch

  pixels = torch.from_numpy(image(image_size)).permute(0, 3, 1, 2)
  with torch.inference_mode():
    out = model.eval()(pixels)
  if hasattr(out, "last_hidden_state"):
    out = out.last_hidden_state[:, 0]
  return getattr(out, "logits", out).numpy()
