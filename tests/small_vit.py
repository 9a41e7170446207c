"""A small ViT, its parameters and outputs by path."""

import functools

from flax import traverse_util
import jax
import numpy as np

from vitkd_jax.models import vit

DEPTH = 2
SMALL = dict(width=16, depth=DEPTH, mlp_dim=24, num_heads=2, patch_size=(4, 4))
C = 5


def image(height=8, width=12, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((batch, height, width, 3), np.float32)


def small(**fields):
  return vit.Model(**dict(num_classes=C) | SMALL | fields)


@functools.cache
def shapes(model, height=8, width=12):
  """{path: ShapeDtypeStruct} of the parameters; nothing is computed."""
  tree = jax.eval_shape(model.init, jax.random.key(0), image(height, width, 1))
  return flat(tree["params"])


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves):
  return traverse_util.unflatten_dict(leaves, sep="/")


@functools.cache
def filled(model, height=8, width=12):
  """Parameters by path, none of them at its start."""
  rng = np.random.default_rng(0)
  return {
    path: rng.normal(path.endswith("scale"), 0.3, leaf.shape).astype(np.float32)
    for path, leaf in shapes(model, height, width).items()
  }


@functools.cache
def compiled(model):
  return jax.jit(lambda params, image: model.apply({"params": params}, image))


def outputs(model, leaves=None, images=None):
  leaves = filled(model) if leaves is None else leaves
  images = image() if images is None else images
  logits, out = compiled(model)(nested(leaves), images)
  return logits, flat(out)


DISTILLED = dict(
  pool_type="tok", distilled=True, registers=3, gelu="erf", layerscale_init=0.1
)
