"""The train state: created already sharded, saved whole."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """Everything that a run needs to go on, and nothing else.

  Attributes:
    step: int32 scalar, updates done; it is the position in the data, too.
    params: {"student": ..., "head": ...} float32; the head trains beside the
      student and is dropped at export ({} without feature losses).
    opt_state: the optimiser's.
    ema: moving average of the student's parameters, or None.
    metrics: {name: float32 [2]} (sum, count) since the last log.
    skipped: int32 [2], updates left out because something was not finite: in
      all, and in a row up to now.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: Any
  ema: Any
  metrics: dict[str, jax.Array]
  skipped: jax.Array


def make_init(
  *,
  init_params: Callable[[jax.Array], dict[str, Any]],
  optimizer: optax.GradientTransformation,
  metric_names: tuple[str, ...],
  with_ema: bool,
) -> Callable[[jax.Array], TrainState]:
  """A function from a PRNG key to the first TrainState, to be jitted."""

  def init(key):
    params = init_params(key)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.copy, params["student"]) if with_ema else None,
      metrics={name: jnp.zeros(2, jnp.float32) for name in metric_names},
      skipped=jnp.zeros(2, jnp.int32),
    )

  return init
