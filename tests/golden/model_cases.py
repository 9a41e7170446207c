"""Small models, their images and parameters behind the stored outputs.

As in `cases.py`, everything but results comes from `np.random.RandomState`.
Needs NumPy alone.
"""

import numpy as np

from golden import cases

NUM_CLASSES = 10
NUM_SAMPLES = 160  # stored entries of each output
IMAGE = (2, 32, 32, 3)  # [B, H, W, 3], drawn as if normalised already

# timm's VisionTransformer at width 64, by family: its keyword arguments.
TIMM_SIZE = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2)
TIMM = {
  "deit": {},
  "distilled": {},  # of its own class, VisionTransformerDistilled
  "deit3": dict(no_embed_class=True, init_values=1e-6),
  "registers": dict(no_embed_class=True, init_values=1e-5, reg_tokens=4),
  "gap": dict(class_token=False, global_pool="avg", fc_norm=False),
}

# Keyword arguments that big_vision's Model and ours both take.
BIG_VISION_SIZE = dict(variant="mu/8", depth=3)
BIG_VISION = {
  "gap_learn": {},
  "gap_sincos2d": dict(posemb="sincos2d"),
  "tok_learn": dict(pool_type="tok"),
  "map_learn": dict(pool_type="map"),
  "map_sincos2d_rep48": dict(pool_type="map", posemb="sincos2d", rep_size=48),
  "tok_rep": dict(pool_type="tok", rep_size=True),
  "first_token": dict(pool_type="0", head_zeroinit=False),
  "gap_scan": dict(scan=True),
  "tok_sincos2d_scan": dict(pool_type="tok", posemb="sincos2d", scan=True),
  "no_mlp_dim": dict(mlp_dim=None, num_heads=4, width=64),
}


def image(shape=IMAGE) -> np.ndarray:
  """Normal [B, H, W, 3] float32."""
  return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


def fill(shapes: dict, seed: int, std: float = 0.1) -> dict:
  """A float32 array for each name, in the order given; none is left at init.

  Norm scales lie around 1; biases, tokens, position embeddings and LayerScale
  gammas are as large as a trained model's or larger, so that leaving any of
  them out is seen.

  Args:
    shapes: name -> shape; PyTorch names or big_vision paths.
    seed: of the stream.
    std: standard deviation of matrices.
  """
  random = np.random.RandomState(seed)
  arrays = {}
  for name, shape in shapes.items():
    value = random.standard_normal(shape)
    last = name.replace("/", ".").rpartition(".")[2]
    if last == "scale" or ("norm" in name and last == "weight"):
      value = 1 + 0.2 * value
    elif last in ("kernel", "weight"):
      value *= std
    else:
      value *= 0.3
    arrays[name] = value.astype(np.float32)
  return arrays


def unflatten(flat: dict) -> dict:
  """The nested dict of leaves given by path, the inverse of `cases.flatten`."""
  tree = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def sample(array) -> np.ndarray:
  """`NUM_SAMPLES` entries at fixed places, as `cases.sample`."""
  return cases.sample(array, NUM_SAMPLES)
