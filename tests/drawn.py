"""Random parameters, of which none keeps its initial value."""

import jax
import numpy as np

from vitkd_jax.models import backbones, vit


def params(num_classes=5, seed=0, *, image_size=28, deviation=0.3, **fields):
  """Of the model of these fields, as NumPy; nothing is compiled."""
  build = backbones.make_model if "variant" in fields else vit.Model
  model = build(num_classes, **fields)
  height, width = np.broadcast_to(image_size, 2).tolist()  # or a pair
  image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    mean = float(path[-1].key == "scale")
    return rng.normal(mean, deviation, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)
