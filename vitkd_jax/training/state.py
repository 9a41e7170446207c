"""The train state: created already sharded, saved whole."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """Everything that a run needs to resume, and nothing else.

  Attributes:
    step: int32 scalar, number of updates done; also the position in the data.
    params: {"student": ..., "methods": {name: ...}} float32; what belongs to
      the methods trains beside the student and is dropped at export.
    opt_state: the optimiser's state.
    ema: moving average of the student's parameters; None without one.
    metrics: {name: float32 [2]}, (sum, count) since the last log.
    skipped: int32 [2], updates skipped as non-finite: in total, and
      consecutively up to now.
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
) -> Callable[..., TrainState]:
  """A function (key, start=None) -> the initial TrainState, to be jitted.

  `start` has parameters of the student that take the place of drawn ones.

  Args:
    init_params: from a PRNG key to {"student", "methods"}.
    optimizer: optimises both.
    metric_names: metrics that a step accumulates.
    with_ema: keep a moving average of the student.
  """

  def init(key: jax.Array, start: dict[str, Any] | None = None) -> TrainState:
    params = init_params(key)
    params["student"] = {**params["student"], **(start or {})}
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.copy, params["student"]) if with_ema else None,
      metrics={name: jnp.zeros(2, jnp.float32) for name in metric_names},
      skipped=jnp.zeros(2, jnp.int32),
    )

  return init
