"""The compiled train steps: of one training, or of several side by side."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from vitkd_jax.cluster import compiler, sharding
from vitkd_jax.training import placement, steps

if TYPE_CHECKING:
  from vitkd_jax.training.experiment import Experiment


def alone(parts: "Experiment") -> Any:
  """The jitted step of one training, (state, teacher_params, given) -> result.

  Args:
    parts: the training.
  """
  several = _several([parts])

  def step(state: Any, teacher_params: Any, given: Any) -> Any:
    (result,) = several([state], teacher_params, given)
    return result

  return _jit(step, [parts], _shardings(parts))


def packed(members: Sequence["Experiment"]) -> Any:
  """The jitted step of trainings side by side, see `steps.make_train_step`.

  Args:
    members: trainings that go together, see `packing.differ`.
  """
  return _jit(_several(members), members, [_shardings(x) for x in members])


def _shardings(parts: "Experiment") -> Any:
  """Of a step's new state and report."""
  return parts.state_shardings(), sharding.replicated(parts.mesh)


def _jit(
  step: Callable, members: Sequence["Experiment"], out_shardings: Any
) -> Any:
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=out_shardings,
    compiler_options=compiler.options(members[0].mesh),
  )


def _several(members: Sequence["Experiment"]) -> Callable:
  """The step of several trainings, to be jitted."""
  first = members[0]
  replicated = sharding.replicated(first.mesh)

  def gather(params: Any) -> Any:
    # Without this the compiler splits some products as their parameters are
    # split, and gathers the activations for them.
    return jax.lax.with_sharding_constraint(params, replicated)

  step = steps.make_train_step(
    [
      steps.Student(
        each.objective,
        each.optimizer,
        each.schedule,
        log_every=each.run.log_every,
        ema_decay=each.run.ema_decay or None,
      )
      for each in members
    ],
    augment=first.augment,
    seed=first.run.seed,
    accumulate=first.run.accumulate,
    gather=gather,
  )
  if first.data.placement == "device":
    shape, mesh = first.image_shape, first.mesh
    return placement.from_held(
      step, shape, mesh, lambda several: several[0].step
    )
  return step
