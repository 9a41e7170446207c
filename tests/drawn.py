"""Random parameters, of which none keeps its initial value, and states."""

from flax import traverse_util
import jax
import numpy as np

from vitkd_jax.cluster import sharding
from vitkd_jax.models import backbones, vit
from vitkd_jax.training import state as states
from vitkd_jax.weights import adapt


def params(num_classes=5, seed=0, *, image_size=28, deviation=0.3, **fields):
  """Of the model of these fields, as NumPy; nothing is compiled."""
  build = backbones.make_model if "variant" in fields else vit.Model
  model = build(num_classes, **fields)
  height, width = np.broadcast_to(image_size, 2).tolist()  # or a pair
  shapes = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in adapt.shapes(model, (height, width)).items()
  }
  return _draw(traverse_util.unflatten_dict(shapes, sep="/"), seed, deviation)


def state(parts):
  """A state in the place of `Experiment.create_state`'s.

  Its parameters are drawn by NumPy: a program that draws them as the models do
  takes longer to compile than a train step of the small models here.
  """
  shapes = parts.state_shapes().params
  params = _draw(shapes, parts.run.seed, deviation=0.05)
  if parts.start is not None:
    params["student"] = {**params["student"], **parts.start.params()}
  where = parts.state_shardings()
  init = states.make_init(
    init_params=lambda params: params,
    optimizer=parts.optimizer,
    metric_names=parts.objective.metric_names,
    with_ema=bool(parts.run.ema_decay),
  )
  return jax.jit(init, out_shardings=where)(
    sharding.place(params, where.params)
  )


def _draw(shapes, seed, deviation):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    mean = float(path[-1].key == "scale")
    return rng.normal(mean, deviation, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)
