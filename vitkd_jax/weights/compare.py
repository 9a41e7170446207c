"""Compares outputs before and after a conversion, ours and other libraries'."""

from collections.abc import Callable, Iterator, Mapping
import functools
import os
from typing import Any

import jax
import numpy as np

from vitkd_jax import remote
from vitkd_jax.models import backbones, protocol
from vitkd_jax.weights import loading, saving, verify

# Of the largest output: what float32 and 16 bits may change in a program.
_MOST_CHANGED = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}


def outputs(
  params: Mapping[str, Any],
  model: protocol.Backbone,
  image_size: tuple[int, int],
) -> np.ndarray:
  """A model's logits, or features without a head, for `verify.image`.

  Args:
    params: nested parameters of the model.
    model: any.
    image_size: rows and columns in pixels.

  Returns:
    [1, C] or [1, D] float32, computed with matrix products in float32.
  """
  with jax.default_matmul_precision("highest"):
    out, _ = jax.jit(model.apply)({"params": params}, verify.image(image_size))
  return np.asarray(out)


def with_source(
  ours: np.ndarray, path: str, loaded: loading.Loaded, variant: str
) -> Iterator[str]:
  """Sentences on the difference from the library that the file is of.

  Args:
    ours: from `outputs`.
    path: that the user gave.
    loaded: the file; nothing but its names and shapes may have been changed.
    variant: name of the model.
  """
  if loaded.file is None or remote.is_remote(loaded.file):
    return
  if loaded.format == "timm" and path == loaded.file:
    yield from _difference(
      "timm on the file read",
      ours,
      functools.partial(
        verify.of_timm_file,
        loaded.file,
        variant,
        loaded.num_classes,
        loaded.image_size,
      ),
    )
  elif loaded.format in verify.LIBRARIES:
    folder = os.path.dirname(loaded.file)
    if os.path.exists(os.path.join(folder, "config.json")):
      yield from _difference(
        f"{loaded.format} on the folder read",
        ours,
        functools.partial(
          verify.of_folder, loaded.format, folder, loaded.image_size
        ),
      )


def with_written(
  ours: np.ndarray,
  written: str,
  *,
  output: str,
  format: str,
  dtype: str,
  fold: bool,
  loaded: loading.Loaded,
  variant: str,
) -> Iterator[str]:
  """Sentences on the difference from what was written.

  Args:
    ours: from `outputs`.
    written: file of the written weights.
    output: file or folder that was written.
    format: of it.
    dtype: of its floats.
    fold: whether LayerScale was folded in any case.
    loaded: the file or checkpoint that was converted.
    variant: name of the model.

  Raises:
    ValueError: a program computes something else.
  """
  size = loaded.image_size
  if format in saving.PROGRAMS:
    if format == "onnx" and remote.is_remote(output):
      yield "not compared, as onnxruntime reads local files only"
      return
    # Two images, as any number is to be taken.
    image = verify.image(size)
    images = np.concatenate([image, -image])
    yield from _difference(
      {"onnx": "onnxruntime on the file written"}.get(
        format, "the program read back"
      ),
      ours,
      lambda: verify.of_program(format, written, images)[:1],
      most=_MOST_CHANGED[dtype],
    )
    return
  if format in verify.LIBRARIES and written != output:
    if remote.is_remote(output):
      yield f"not compared, as {format} reads local folders only"
      return
    yield from _difference(
      f"{format} on the folder written",
      ours,
      functools.partial(verify.of_folder, format, output, size),
    )
    return
  fields = dict(loaded.fields)
  if format in ("big_vision", "huggingface") or fold:
    fields["layerscale_init"] = None

  def again() -> np.ndarray:
    params = loading.load(
      written,
      variant=variant,
      num_classes=loaded.num_classes,
      image_size=size,
      **fields,
    )
    model = backbones.make_model(loaded.num_classes, variant=variant, **fields)
    return outputs(params, model, size)

  yield from _difference("the file read back", ours, again)


def _difference(
  what: str,
  ours: np.ndarray,
  compute: Callable[[], np.ndarray | None],
  most: float = np.inf,
) -> Iterator[str]:
  try:
    theirs = compute()
  except verify.SilentError as reason:
    yield f"{what}: not compared, because {reason}"
    return
  if theirs is None:
    return
  found, largest = np.abs(theirs - ours).max(), np.abs(ours).max()
  yield f"{what}: max |difference| {found:.1e} (max |output| {largest:.1e})"
  if not found <= most * largest:  # a NaN, too
    raise ValueError(
      f"{what} differs from the model by {found:.1e}, expected at most "
      f"{most * largest:.1e}; do not use it"
    )
