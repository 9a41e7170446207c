"""A frozen backbone from a function of one's own, of any architecture."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


@dataclasses.dataclass
class Function:
  """A `protocol.Backbone` that teaches, but is not trained.

  Attributes:
    function: (params, image [B, H, W, 3], normalised) -> (logits [B, C] or
      None, maps): `depth` maps [B, rows, columns, width], from shallow to deep.
    width: D of the maps.
    patch_size: rows and columns of the pixels that make a token: the stride.
    depth: number of maps, the "blocks" of this model.
    num_classes: C; 0 without logits.
    mean: subtracted from images in [0, 1].
    std: divides them after that.
    dtype_mm: dtype of the parameters and images that the function gets.
    flops: of one image's forward pass; 0 if unknown.
  """

  function: Callable[[Any, jax.Array], tuple[Any, Sequence[jax.Array]]]
  width: int
  patch_size: tuple[int, int]
  depth: int = 1
  num_classes: int | None = 0
  mean: Colour = IMAGENET_MEAN
  std: Colour = IMAGENET_STD
  dtype_mm: Any = "float32"
  flops: float = 0.0

  places = ("+mlp", "encoded")
  has_class_token = False
  num_prefix_tokens = 0
  qkv_heads = 0

  def __post_init__(self) -> None:
    """Refuses sizes that cannot be.

    Raises:
      ValueError: one is not an integer >= 1.
    """
    sizes = [("width", self.width), ("depth", self.depth)]
    sizes += [("patch_size", side) for side in self.patch_size]
    for name, value in sizes:
      if not isinstance(value, int) or value < 1:
        raise ValueError(f"expected an integer {name} >= 1, got {value!r}")

  @property
  def end_widths(self) -> tuple[int, int]:
    """The width, twice: no map is wider than another."""
    return self.width, self.width

  def has_linear_head(self) -> bool:
    """False: what its logits come from is its own affair."""
    return False

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a map.

    Args:
      height: of the image in pixels.
      width: of the image in pixels.
    """
    return height // self.patch_size[0], width // self.patch_size[1]

  def forward_flops(self, grid: tuple[int, int]) -> tuple[float, float]:
    """(0, FLOPs of one image's forward pass).

    Args:
      grid: not used.
    """
    del grid
    return 0.0, self.flops

  def init(self, key: Any, image: Any, /) -> Any:
    """Not possible: the parameters come with the function.

    Args:
      key: not used.
      image: not used.
    """
    raise NotImplementedError("a Function has the parameters it came with")

  def apply(
    self, variables: Any, image: jax.Array, train: bool = False
  ) -> tuple[jax.Array | None, dict[str, Any]]:
    """Logits, and the maps as token maps.

    Args:
      variables: {"params": ...}.
      image: [B, H, W, 3], normalised.
      train: not used.

    Returns:
      Logits [B, C] float32 or None, and `out` as `protocol.Backbone.apply`
      has it: each map is the "+mlp" of a block, and the last one "encoded".

    Raises:
      ValueError: the function returned something else.
    """
    del train
    found = self.function(variables["params"], image.astype(self.dtype_mm))
    logits, maps = self._checked(found, image.shape)
    tokens = [einops.rearrange(x, "b h w d -> b (h w) d") for x in maps]
    blocks = {f"block{i:02d}": {"+mlp": x} for i, x in enumerate(tokens)}
    out = {
      "encoder": blocks,
      "encoded": tokens[-1],
      "head_input": jnp.mean(tokens[-1], axis=1),
    }
    return (None if logits is None else logits.astype(jnp.float32)), out

  def frozen(self, params: Any, dtype: str) -> tuple["Function", Any]:
    """The same function in another dtype.

    Args:
      params: its parameters.
      dtype: of them and of the images.

    Returns:
      The model, and its floating-point parameters in `dtype`.
    """

    def cast(leaf: Any) -> Any:
      floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
      return jnp.asarray(leaf, dtype) if floating else leaf

    model = dataclasses.replace(self, dtype_mm=dtype)
    return model, jax.tree.map(cast, params)

  def quick_to_compile(self, params: Any) -> tuple["Function", Any]:
    """The same.

    Args:
      params: parameters of this model.

    Returns:
      The model and its parameters.
    """
    return self, params

  def with_attention(self, form: str) -> "Function":
    """The same: how it computes is its own affair.

    Args:
      form: not used.
    """
    del form
    return self

  def with_qkv(self) -> "Function":
    """Not possible: it has none to show."""
    raise NotImplementedError("a Function has no query, key and value")

  def counted(self, params: Any, image_size: tuple[int, int]) -> "Function":
    """The same model with the FLOPs that XLA counts in it.

    Args:
      params: its parameters, or their shapes.
      image_size: (H, W) in pixels.

    Raises:
      ValueError: the function does not return what it should.
    """
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    lowered = jax.jit(self.apply).lower({"params": params}, image)
    costs: Any = lowered.cost_analysis() or {}
    return dataclasses.replace(self, flops=float(costs.get("flops", 0.0)))

  def _checked(self, found: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
      raise ValueError(
        "expected the teacher's function to return (logits, maps), got "
        f"{type(found).__name__}"
      )
    logits, maps = found
    batch, grid = shape[0], self.grid(*shape[1:3])
    wanted = (batch, *grid, self.width)
    shapes = [jnp.shape(x) for x in maps]
    if shapes != [wanted] * self.depth:
      raise ValueError(
        f"expected {self.depth} maps of shape {wanted} from the teacher's "
        f"function, got {', '.join(map(str, shapes)) or 'none'}"
      )
    said = None if logits is None else jnp.shape(logits)
    classes = (batch, self.num_classes) if self.num_classes else None
    if said != classes:
      raise ValueError(
        f"expected logits of shape {classes} from the teacher's function, got "
        f"{said}"
      )
    return logits, maps
