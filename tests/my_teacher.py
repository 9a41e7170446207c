"""A convolutional teacher outside the package, as a user writes one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models.function import Function


class Net(nn.Module):
  classes: int

  @nn.compact
  def __call__(self, image):
    x = nn.relu(nn.Conv(8, (7, 7), strides=(7, 7), padding="VALID")(image))
    maps = [x, nn.relu(nn.Conv(8, (3, 3))(x))]
    return nn.Dense(self.classes)(maps[-1].mean((1, 2))), maps


def build(weights, image_size, classes=10):
  net = Net(classes)
  seed = int(np.load(weights))  # in place of a file of parameters
  image = jnp.zeros((1, *image_size, 3))
  params = net.init(jax.random.key(seed), image)["params"]

  def apply(params, image):
    return net.apply({"params": params}, image)

  return Function(apply, 8, (7, 7), depth=2, num_classes=classes), params


def bare(weights, image_size):
  return build(weights, image_size)[0]


def of_another_width(weights, image_size):
  model, params = build(weights, image_size)
  return Function(model.function, 9, (7, 7), 2, 10), params


def of_other_classes(weights, image_size):
  model, params = build(weights, image_size)
  return Function(model.function, 8, (7, 7), 2, 11), params


def raising(weights, image_size):
  raise KeyError("layer1.weight")
