"""Evaluator: how near the student is to a teacher.

  config.evals.near = dict(type="proj.vitkd.compare", pred="compare_NAME",
                           data=..., pp_fn=..., log_steps=...)

NAME is of `config.teachers`. Measured: `agreement`, the share of images to
which both give the same class; `kl`, the divergence of the student's
distribution from the teacher's in nats; and `cka/block_NN` of the student's
blocks with the teacher's at the same relative depth, linear and without bias,
over batches without padding.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

from big_vision.evaluators import common
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.diagnostics import similarity
from vitkd_jax.distill import tokens

API = "jit"


@functools.cache
def _sums(predict: Callable) -> Callable:
  """Of a batch: sums over its images, and the alignment's three moments."""

  @jax.jit
  def sums(train_state: Any, batch: Mapping[str, jax.Array]) -> Any:
    mask = batch["_mask"]
    ((own, shown), side), ((theirs, seen), other) = predict(train_state, batch)
    logs = (jax.nn.log_softmax(jnp.float32(x)) for x in (own, theirs))
    log_own, log_theirs = logs
    kl = jnp.sum(jnp.exp(log_theirs) * (log_theirs - log_own), axis=-1)
    same = jnp.argmax(own, -1) == jnp.argmax(theirs, -1)
    found = {"agreement": same * mask, "kl": kl * mask, "count": mask}
    found = {name: jnp.sum(value) for name, value in found.items()}
    whole = jnp.all(mask > 0)
    maps = [
      tokens.after_blocks(out, x.depth, x.num_prefix_tokens)
      for out, x in ((shown, side), (seen, other))
    ]
    for taught, block in similarity.pairs(other.depth, side.depth):
      a, b = (
        similarity.kernel(x.reshape(1, len(x), -1))
        for x in (maps[0][block], maps[1][taught])
      )
      moments = jnp.stack(
        [
          similarity.hsic(a, b)[0, 0],
          similarity.own_hsic(a)[0],
          similarity.own_hsic(b)[0],
        ]
      )
      found[f"cka/block_{block:02d}"] = jnp.where(whole, moments, 0.0)
    return found

  return sums


class Evaluator:
  """Compares the student with a teacher."""

  def __init__(self, predict_fn: Callable, **options: Any):
    self.batches, self.steps = common.eval_input_pipeline(**options)
    self.sums = _sums(predict_fn)

  def run(self, train_state: Any) -> Iterator[tuple[str, Any]]:
    """Yields every measure's name and value.

    Args:
      train_state: with `params` and `teachers`.
    """
    parts = [
      self.sums(train_state, batch)
      for _, batch in zip(range(self.steps), self.batches(), strict=False)
    ]
    total = jax.tree.map(lambda *x: np.sum(x, axis=0), *jax.device_get(parts))
    count = total.pop("count")
    for name, value in total.items():
      if not name.startswith("cka/"):
        yield name, value / count
      elif np.any(value):
        yield name, similarity.cka(*(x[None, None] for x in value)).item()
