"""Writes any model as a StableHLO program, through jax.export."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models import protocol
from vitkd_jax.weights import files, opening

FILE = "model.stablehlo"
# One file runs on each of them.
PLATFORMS = ("cpu", "cuda", "tpu")
_LARGEST = 2**31 - 2**20  # bytes of parameters in a flatbuffer


def write(
  path: str,
  leaves: Mapping[str, np.ndarray],
  model: protocol.Backbone,
  image_size: tuple[int, int],
  facts: Mapping[str, Any],
) -> str:
  """Writes a folder of a program and its config.json.

  The program maps images [batch, H, W, 3] float32, normalised, to logits
  [batch, C] float32, or features without a head; its parameters are constants.

  Args:
    path: of the folder; may be a URL.
    leaves: parameters by our names, without LayerScale. Their dtype is that of
      matrix products, too.
    model: of the parameters, not scanned.
    image_size: H and W in pixels.
    facts: content of config.json.

  Returns:
    The path of the program.

  Raises:
    ValueError: more parameters than a program holds.
  """
  files.check_below(_LARGEST, leaves, "stablehlo", "bfloat16 (dtype)")
  params = traverse_util.unflatten_dict(dict(leaves), sep="/")
  dtype = next(iter(leaves.values())).dtype.name
  # cuDNN's kernel would tie the program to a GPU.
  model, params = model.with_attention("xla").frozen(params, dtype)
  params = jax.tree.map(jnp.asarray, params)  # NumPy's refuse a symbolic batch

  def logits(image: jax.Array) -> jax.Array:
    return model.apply({"params": params}, image, train=False)[0].astype(
      jnp.float32
    )

  (batch,) = jax.export.symbolic_shape("batch")
  image = jax.ShapeDtypeStruct((batch, *image_size, 3), np.float32)
  # Products in float32 are not to be rounded to a TPU's bfloat16.
  with jax.default_matmul_precision("highest"), _without_source_paths():
    made = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(image)
  (out,) = made.out_avals
  facts = {
    **facts,
    "input": f"[batch, {image_size[0]}, {image_size[1]}, 3] float32: "
    "(pixel / 255 - mean) / std",
    "output": f"[{', '.join(map(str, out.shape))}] float32",
    "platforms": made.platforms,
    "calling_convention_version": made.calling_convention_version,
    "jax": jax.__version__,
  }
  file = os.path.join(path, FILE)
  with files.replacing(file) as temporary, open(temporary, "wb") as opened:
    opened.write(made.serialize())
  config = json.dumps(facts, indent=2) + "\n"
  files.write_text(os.path.join(path, "config.json"), config)
  return file


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
  """Context whose programs do not hold the paths of this installation."""
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def outputs(file: str | os.PathLike, image: np.ndarray) -> np.ndarray:
  """Outputs of a program that is read back.

  Args:
    file: of the program; may be a URL.
    image: [B, H, W, 3] float32, normalised.
  """
  with opening.opened(os.fspath(file)) as opened:
    made = jax.export.deserialize(bytearray(opened.read()))
  return np.asarray(jax.jit(made.call)(image))
