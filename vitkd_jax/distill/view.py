"""What a method sees of a batch, and what it says beforehand that it needs."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vitkd_jax.distill import tokens
from vitkd_jax.distill.sides import Side


@dataclasses.dataclass(frozen=True)
class Taps:
  """Parts of a model's view.

  Attributes:
    logits: whether its logits.
    pooled: whether the features that its head reads.
    head: whether its head, see `View.head`.
    cls: (block, place) of each CLS token, as for `maps`.
    maps: (block, place) of each token map; negative blocks count from the last,
      and "encoded" is after the last block, whatever block is named.
    qkv: blocks whose query, key and value are read.
  """

  logits: bool = False
  pooled: bool = False
  head: bool = False
  cls: tuple[tuple[int, str], ...] = ()
  maps: tuple[tuple[int, str], ...] = ()
  qkv: tuple[int, ...] = ()

  def __or__(self, other: "Taps") -> "Taps":
    """The parts of both."""
    return Taps(
      logits=self.logits or other.logits,
      pooled=self.pooled or other.pooled,
      head=self.head or other.head,
      cls=tuple(dict.fromkeys((*self.cls, *other.cls))),
      maps=tuple(dict.fromkeys((*self.maps, *other.maps))),
      qkv=tuple(dict.fromkeys((*self.qkv, *other.qkv))),
    )


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a method needs of the models, before anything runs.

  Attributes:
    student: parts of the student's view.
    teacher: parts of the teacher's view; None where no teacher is needed.
  """

  student: Taps = Taps()
  teacher: Taps | None = None


@flax.struct.dataclass
class View:
  """What a model shows of a batch; only what some method needs.

  A teacher's is without gradient.

  Attributes:
    logits: [B, C]; a distilled student's are those of its distillation token.
    pooled: [B, D], what the head reads.
    head: (kernel [D, C], bias [C]) of a teacher.
    tokens: CLS tokens [B, D] by (block, place), see `cls`.
    maps: patch tokens [B, N, D] by (block, place), see `map`.
    qkv: (q, k, v) by block, each [B, T, heads, E] with prefix tokens, see
      `relations`.
    side: what is known of the model.
  """

  # None where no method reads them, which a type would make each method check.
  logits: Any
  pooled: Any
  head: Any
  tokens: dict[tuple[int, str], jax.Array]
  maps: dict[tuple[int, str], jax.Array]
  qkv: dict[int, tuple[jax.Array, ...]]
  side: Side = flax.struct.field(pytree_node=False)

  def relations(self, block: int) -> tuple[jax.Array, ...]:
    """(q, k, v) of a block, each [B, T, heads, E].

    Args:
      block: negative ones count from the last.
    """
    return self.qkv[block % self.side.depth]

  def map(self, block: int, place: str = "+mlp") -> jax.Array:
    """The patch tokens [B, N, D] at a place of a block.

    Args:
      block: negative ones count from the last.
      place: see `tokens.PLACES`.
    """
    return self.maps[_key(block, place, self.side.depth)]

  def cls(self, block: int, place: str = "+mlp") -> jax.Array:
    """The CLS token [B, D] at a place of a block.

    Args:
      block: negative ones count from the last.
      place: see `tokens.PLACES`.
    """
    return self.tokens[_key(block, place, self.side.depth)]

  def scaled(self, scale: float) -> "View":
    """The same with its token maps and CLS tokens multiplied.

    Args:
      scale: the factor.
    """
    if scale == 1:
      return self
    maps, tokens = jax.tree.map(lambda x: x * scale, (self.maps, self.tokens))
    return dataclasses.replace(self, maps=maps, tokens=tokens)


@flax.struct.dataclass
class Label:
  """What the dataset says of a batch.

  Attributes:
    target: float32 [B, C], mixed and smoothed.
    smoothing: of the labels, in [0, 1).
  """

  target: jax.Array
  smoothing: float = flax.struct.field(pytree_node=False, default=0.0)

  @property
  def mixed(self) -> jax.Array:
    """float32 [B, C], mixed but not smoothed: 0 where a class has no share.

    Raises:
      ValueError: nothing is left of the labels.
    """
    if self.smoothing >= 1:
      raise ValueError(
        f"expected a label smoothing < 1, got {self.smoothing}: nothing is "
        "left of the labels"
      )
    classes = self.target.shape[-1]
    share = self.target - self.smoothing / classes
    share /= 1 - self.smoothing
    # What smoothing added is taken away but for its rounding.
    return jnp.where(share < 1e-6, 0.0, share)

  @property
  def hard(self) -> jax.Array:
    """int32 [B], the class with the largest share."""
    return jnp.argmax(self.target, axis=-1)


def make(
  side: Side,
  taps: Taps,
  logits: jax.Array,
  out: Mapping[str, Any],
  head: Mapping[str, jax.Array] | None = None,
) -> View:
  """The view of a model, from what it returns.

  Args:
    side: what is known of the model.
    taps: the parts to show.
    logits: [B, C], first output of the model.
    out: its second output, see `models.protocol.Backbone`.
    head: {"kernel", "bias"} of its head; None without one.

  Raises:
    ValueError: a map has not one token for each place of the grid.
  """

  def patches(block: int, place: str) -> jax.Array:
    found = tokens.patches(out, block, place, side.num_prefix_tokens)
    if found.shape[1] != side.num_tokens:
      rows, columns = side.grid
      raise ValueError(
        f"expected {rows}x{columns} patch tokens after {side.num_prefix_tokens}"
        f" others, got {found.shape[1]}: the grid or the number of prefix "
        "tokens is not the model's"
      )
    return found

  return View(
    logits=out.get("logits_dist", logits) if taps.logits else None,
    pooled=out["head_input"] if taps.pooled else None,
    head=(head["kernel"], head["bias"]) if head and taps.head else None,
    tokens={
      _key(block, place, side.depth): tokens.patches(out, block, place, 0)[:, 0]
      for block, place in taps.cls
    },
    maps={
      _key(block, place, side.depth): patches(block, place)
      for block, place in taps.maps
    },
    qkv={
      block: out["encoder"][f"block{block:02d}"]["qkv"]
      for block in (x % side.depth for x in taps.qkv)
    },
    side=side,
  )


def zeros(side: Side, taps: Taps, batch: int = 1) -> View:
  """A view of zeros, for the shapes of a method's parameters.

  Args:
    side: what is known of the model.
    taps: the parts to show.
    batch: B.
  """
  heads = max(side.qkv_heads, 1)
  length = side.num_prefix_tokens + side.num_tokens

  def qkv(block: int) -> jax.Array:
    return jnp.zeros((batch, length, heads, side.width_of(block) // heads))

  return View(
    logits=jnp.zeros((batch, side.num_classes or 0)) if taps.logits else None,
    pooled=jnp.zeros((batch, side.pooled_width)) if taps.pooled else None,
    head=(
      jnp.zeros((side.pooled_width, side.num_classes or 0)),
      jnp.zeros(side.num_classes or 0),
    )
    if taps.head
    else None,
    tokens={
      _key(block, place, side.depth): jnp.zeros(
        (batch, side.width_of(block, place))
      )
      for block, place in taps.cls
    },
    maps={
      _key(block, place, side.depth): jnp.zeros(
        (batch, side.num_tokens, side.width_of(block, place))
      )
      for block, place in taps.maps
    },
    qkv={x % side.depth: (qkv(x),) * 3 for x in taps.qkv},
    side=side,
  )


def check_pooled(side: Side, who: str) -> None:
  """Checks that a model has one feature that its head reads.

  Args:
    side: the model.
    who: "student" or "teacher".

  Raises:
    ValueError: it has none, or several.
  """
  if not side.has_head:
    raise ValueError(
      f"expected a {who} with one linear head on its pooled features, got one "
      "without a head, or with two (distilled), or with a layer between"
    )


def check_maps(side: Side, maps: tuple[tuple[int, str], ...]) -> None:
  """Checks that a model has the token maps that a method compares.

  Args:
    side: the model.
    maps: (block, place) of each.

  Raises:
    ValueError: a place is unknown, or there is no such block.
  """
  for block, place in maps:
    tokens.check_place(place)
    if place not in side.places:
      raise ValueError(
        f"names the place {place!r}, but a model shows "
        f"{' and '.join(side.places)} alone"
      )
    if place != "encoded" and not -side.depth <= block < side.depth:
      raise ValueError(
        f"names block {block}, but a model has {side.depth} block"
        + "s" * (side.depth > 1)
      )


def _key(block: int, place: str, depth: int) -> tuple[int, str]:
  return (depth - 1, place) if place == "encoded" else (block % depth, place)
