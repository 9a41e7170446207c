"""The optimisers that a config can name, built from optax's.

Each is a chain of what turns a gradient into a direction, weight decay, and the
learning rate; the decay is decoupled, as in AdamW, and so multiplied by the
learning rate. The train step relies on each: the update of a finite gradient
whose norm is finite in float32 is finite. That is what the ranges are for.
"""

from collections.abc import Callable
import inspect
import math
from typing import Any

import jax
import numpy as np
import optax

from vitkd_jax import check

Mask = Callable[[Any], Any]

# Squares of gradients are float32, whose smallest normal number is 1e-38;
# zero takes the place of anything smaller. With less than this beside them,
# 0 / 0 is near.
_LEAST_EPS = 1e-30
# Muon's iteration raises what it divides by eps to the fifth power.
_LEAST_MUON_EPS = 1e-12


def adamw(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """AdamW (arXiv:1711.05101).

  Args:
    rate: learning rate by step.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate, as in PyTorch's AdamW; >= 0.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the root of the second moment, >= 1e-30.
  """
  _check(weight_decay, eps, b1=b1, b2=b2)
  return optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def lamb(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  always_adapt: bool = True,
) -> optax.GradientTransformation:
  """LAMB (arXiv:1904.00962): AdamW whose updates have the parameters' norms.

  The norms are of a leaf, which with scan=True holds all blocks.

  Args:
    rate: learning rate by step.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate; >= 0.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the root of the second moment, >= 1e-30.
    always_adapt: scale the updates of all leaves, as in the paper and optax;
      False for those with weight decay alone, as in timm, apex and DeiT III.
  """
  _check(weight_decay, eps, b1=b1, b2=b2)
  trust = optax.scale_by_trust_ratio()
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, mask),
    trust if always_adapt else optax.masked(trust, mask),
    optax.scale_by_learning_rate(rate),
  )


def lion(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  b1: float = 0.9,
  b2: float = 0.99,
) -> optax.GradientTransformation:
  """Lion (arXiv:2302.06675): the sign of an interpolated momentum.

  Its authors take 3 to 10 times less of a learning rate than for AdamW, and as
  much more weight decay.

  Args:
    rate: learning rate by step.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate; >= 0.
    b1: share of the momentum in the update's sign, in [0, 1).
    b2: decay of the momentum, in [0, 1).
  """
  _check(weight_decay, b1=b1, b2=b2)
  return optax.lion(rate, b1, b2, weight_decay=weight_decay, mask=mask)


def sgd(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  momentum: float = 0.9,
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum and decoupled weight decay.

  PyTorch's SGD adds the decay before the momentum, which multiplies it by
  1 / (1 - momentum) in the long run.

  Args:
    rate: learning rate by step.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate; >= 0.
    momentum: decay of the sum of gradients, in [0, 1); 0 for none.
    nesterov: look ahead by one step of the momentum.
  """
  _check(weight_decay, momentum=momentum)
  if nesterov and not momentum:
    raise ValueError(
      "expected optimizer momentum > 0 with nesterov=True, got 0"
    )
  trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
  return _decayed(trace, rate, mask, weight_decay)


def adafactor(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  decay_rate: float = 0.8,
  clipping_threshold: float = 1.0,
  min_dim_size_to_factor: int = 128,
  multiply_by_parameter_scale: bool = True,
  momentum: float = 0.0,
  eps: float = 1e-30,
) -> optax.GradientTransformation:
  """Adafactor (arXiv:1804.04235): second moments by rows and columns.

  Root mean squares are of a leaf, which with scan=True holds all blocks. Unlike
  in optax, the weight decay is multiplied by the learning rate, and the
  momentum is of updates before that.

  Args:
    rate: learning rate by step.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate; >= 0.
    decay_rate: c in (0, 1) of the second moment's decay 1 - step^-c.
    clipping_threshold: largest root mean square of an update, >= 1; 0 for no
      clipping.
    min_dim_size_to_factor: leaves with two axes of at least this size have
      their second moments factored; >= 1.
    multiply_by_parameter_scale: the learning rate is relative to the root mean
      square of each leaf.
    momentum: decay of an average of updates, in [0, 1); 0 for none.
    eps: added to squared gradients, >= 1e-30.
  """
  _check(weight_decay, eps, momentum=momentum)
  if not 0 < np.float32(decay_rate) < 1:
    raise ValueError(f"expected 0 < optimizer decay_rate < 1, got {decay_rate}")
  if clipping_threshold and not 1 <= clipping_threshold < math.inf:
    raise ValueError(
      "expected optimizer clipping_threshold >= 1, or 0 for none, got "
      f"{clipping_threshold}"
    )
  check.integers(1, min_dim_size_to_factor=min_dim_size_to_factor)
  direction = optax.adafactor(
    learning_rate=None,
    min_dim_size_to_factor=min_dim_size_to_factor,
    decay_rate=decay_rate,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
    clipping_threshold=clipping_threshold or None,
    momentum=momentum or None,
    eps=eps,
  )
  upwards = optax.chain(direction, optax.scale(-1))
  return _decayed(upwards, rate, mask, weight_decay)


def muon(
  rate: optax.Schedule,
  mask: Mask,
  *,
  weight_decay: float,
  beta: float = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float = 0.2,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Muon: orthogonalised momentum for matrices, AdamW for all other leaves.

  The matrices are the kernels of dense layers, see `matrices`; what is not one
  of them (patch embedding, convolutions, classification heads, tokens,
  position embeddings, biases, norms) takes AdamW, with the same learning rate
  and Nesterov's form of it as in optax. From kellerjordan.github.io/posts/muon.

  Args:
    rate: learning rate by step, of both.
    mask: from parameters to True at each leaf that decays.
    weight_decay: multiplied by the learning rate; >= 0.
    beta: decay of the matrices' momentum, in [0, 1).
    ns_steps: Newton-Schulz iterations of a step, in [1, 20].
    nesterov: look ahead by one step of the momentum.
    consistent_rms: root mean square of a matrix's update before the learning
      rate; 0.2 suits learning rates of AdamW (arXiv:2502.16982); 0 for
      an orthogonal matrix times sqrt(max(1, outputs / inputs)) instead.
    b1: decay of AdamW's first moment, in [0, 1).
    b2: decay of AdamW's second moment, in [0, 1).
    eps: added to norms and to the root of the second moment, >= 1e-12.
  """
  _check(weight_decay, eps, _LEAST_MUON_EPS, beta=beta, b1=b1, b2=b2)
  if not 1 <= ns_steps <= 20:
    raise ValueError(f"expected 1 <= optimizer ns_steps <= 20, got {ns_steps}")
  check.reals(consistent_rms=consistent_rms)
  direction = optax.contrib.muon(
    1.0,
    ns_steps=ns_steps,
    beta=beta,
    eps=eps,
    nesterov=nesterov,
    adam_b1=b1,
    adam_b2=b2,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=consistent_rms or None,
  )
  upwards = optax.chain(direction, optax.scale(-1))
  return _decayed(upwards, rate, mask, weight_decay)


def matrices(params: Any) -> Any:
  """Rows and columns of each leaf that Muon takes for a matrix; None elsewhere.

  Query, key and value are [D, (H E)] and attention's output [(H E), D]. The
  blocks of a scanned encoder are matrices of their own.

  Args:
    params: {"student": ..., "methods": ...}, or a part of it.
  """

  def dimensions(path: tuple[Any, ...], leaf: Any) -> Any:
    names = [part.key for part in path]
    start = int("encoderblock" in names)
    axes = tuple(range(start, leaf.ndim))
    if names[-1] != "kernel" or not {"head", "head_dist"}.isdisjoint(names):
      return None
    if len(axes) == 3 and names[-2] == "out":
      return optax.contrib.MuonDimensionNumbers(axes[:2], axes[2:])
    if len(axes) in (2, 3):
      return optax.contrib.MuonDimensionNumbers(axes[:1], axes[1:])
    return None

  return jax.tree_util.tree_map_with_path(dimensions, params)


# By the name in a config.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adamw": adamw,
  "lamb": lamb,
  "lion": lion,
  "sgd": sgd,
  "adafactor": adafactor,
  "muon": muon,
}


def keys(name: str) -> dict[str, inspect.Parameter]:
  """An optimiser's own keys.

  Args:
    name: of the optimiser.

  Raises:
    ValueError: there is no such optimiser; the message names the nearest.
  """
  check.known("config.optimizer.name", name, OPTIMIZERS)
  parameters = inspect.signature(OPTIMIZERS[name]).parameters
  return {
    key: parameter
    for key, parameter in parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }


def _decayed(
  direction: optax.GradientTransformation,
  rate: optax.Schedule,
  mask: Mask,
  weight_decay: float,
) -> optax.GradientTransformation:
  return optax.chain(
    direction,
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(rate),
  )


def _check(
  weight_decay: float,
  eps: float | None = None,
  least_eps: float = _LEAST_EPS,
  **decays: float,
) -> None:
  for name, decay in decays.items():
    # Rounded as it will be: with a decay of 1, Adam divides by zero.
    if not 0 <= np.float32(decay) < 1:
      raise ValueError(f"expected 0 <= optimizer {name} < 1, got {decay}")
  if eps is not None and not least_eps <= eps < math.inf:
    wanted = f">= {least_eps:g}" if eps > 0 else "> 0"
    raise ValueError(f"expected a finite optimizer eps {wanted}, got {eps}")
  check.reals(weight_decay=weight_decay)
