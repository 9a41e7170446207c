"""The table of named models: sizes, tokens, activation, normalisation.

A size (`"Ti/16"`) is big_vision's model of that name; a timm name
(`"deit3_small_patch16_224"`) is timm's, which also sets the tokens, the form
of gelu, LayerScale and the initialisation, and lists its published weights.
CaiT (`"cait_s24_224"`) is of another architecture, `cait.CaiT`. RegNetY, a
teacher in other papers, has no tokens and is not here.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import re
from typing import Any

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# width, depth, mlp_dim, num_heads. Table 2 of arXiv:2106.04560, table 1 of
# arXiv:2012.12877, later ones as in big_vision; "test" is ours, for unit tests.
SIZES = {
  "test": (32, 3, 64, 2),
  "mu": (32, 1, 128, 2),
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "M": (512, 12, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "g-opt": (1536, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
  "G-opt": (1536, 48, 8192, 16),
  "e": (1792, 56, 15360, 16),
  # The quickstart's student and teacher, for 28 px images.
  "pico": (64, 4, 256, 2),
  "nano": (96, 6, 384, 3),
}

# Fields that determine how a model is run or initialised, not its function.
RUNTIME_FIELDS = (
  "dropout",
  "drop_path",
  "dtype_mm",
  "head_zeroinit",
  "init_scheme",
  "remat_policy",
  "scan",
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A named model: its fields and the preprocessing of its images.

  Attributes:
    name: as the user gave it.
    fields: keyword arguments of the model, without num_classes.
    image_size: side in pixels.
    mean: subtracted per channel from images in [0, 1].
    std: per channel, divided by after that.
    crop_pct: side of the evaluation crop / short side after the resize.
    interpolation: of that resize.
    published: tag of timm's weights -> top-1 in % on ImageNet-1k, None for
      weights without such a head. They are `timm/NAME.TAG` on Hugging Face.
    family: "ViT" for `vit.ViT`, "CaiT" for `cait.CaiT`.
  """

  name: str
  fields: dict[str, Any]
  image_size: int = 224
  mean: tuple[float, float, float] = INCEPTION_MEAN_STD[0]
  std: tuple[float, float, float] = INCEPTION_MEAN_STD[1]
  crop_pct: float = 0.875
  interpolation: str = "bicubic"
  published: dict[str, float | None] = dataclasses.field(default_factory=dict)
  family: str = "ViT"


# Top-1 of timm's results/results-imagenet.csv at each name's own resolution;
# `tests/peers` compares normalisation and crops with timm.
_PUBLISHED: dict[str, dict[str, float | None]] = {
  "deit_tiny_patch16_224": {"fb_in1k": 72.19},
  "deit_tiny_distilled_patch16_224": {"fb_in1k": 74.538},
  "deit_small_patch16_224": {"fb_in1k": 79.856},
  "deit_small_distilled_patch16_224": {"fb_in1k": 81.204},
  "deit_base_patch16_224": {"fb_in1k": 81.98},
  "deit_base_distilled_patch16_224": {"fb_in1k": 83.384},
  "deit_base_patch16_384": {"fb_in1k": 83.108},
  "deit_base_distilled_patch16_384": {"fb_in1k": 85.438},
  "deit3_small_patch16_224": {"fb_in1k": 81.382, "fb_in22k_ft_in1k": 83.082},
  "deit3_small_patch16_384": {"fb_in1k": 83.432, "fb_in22k_ft_in1k": 84.846},
  "deit3_medium_patch16_224": {"fb_in1k": 83.09, "fb_in22k_ft_in1k": 84.55},
  "deit3_base_patch16_224": {"fb_in1k": 83.8, "fb_in22k_ft_in1k": 85.728},
  "deit3_base_patch16_384": {"fb_in1k": 85.088, "fb_in22k_ft_in1k": 86.742},
  "deit3_large_patch16_224": {"fb_in1k": 84.772, "fb_in22k_ft_in1k": 86.99},
  "deit3_large_patch16_384": {"fb_in1k": 85.82, "fb_in22k_ft_in1k": 87.736},
  "deit3_huge_patch14_224": {"fb_in1k": 85.204, "fb_in22k_ft_in1k": 87.18},
  "vit_tiny_patch16_224": {"augreg_in21k_ft_in1k": 75.452},
  "vit_tiny_patch16_384": {"augreg_in21k_ft_in1k": 78.438},
  "vit_small_patch16_224": {
    "augreg_in1k": 78.842,
    "augreg_in21k_ft_in1k": 81.402,
  },
  "vit_small_patch16_384": {
    "augreg_in1k": 81.13,
    "augreg_in21k_ft_in1k": 83.814,
  },
  "vit_small_patch32_224": {"augreg_in21k_ft_in1k": 76.01},
  "vit_small_patch32_384": {"augreg_in21k_ft_in1k": 80.476},
  "vit_small_patch8_224": {"dino": None},
  "vit_base_patch16_224": {
    "augreg_in1k": 79.154,
    "augreg_in21k_ft_in1k": 84.534,
    "augreg2_in21k_ft_in1k": 85.108,
  },
  "vit_base_patch16_384": {
    "augreg_in1k": 81.102,
    "augreg_in21k_ft_in1k": 86.01,
  },
  "vit_base_patch32_224": {
    "augreg_in1k": 74.908,
    "augreg_in21k_ft_in1k": 80.732,
  },
  "vit_base_patch32_384": {
    "augreg_in1k": 78.75,
    "augreg_in21k_ft_in1k": 83.358,
  },
  "vit_base_patch8_224": {
    "augreg_in21k_ft_in1k": 85.838,
    "augreg2_in21k_ft_in1k": 86.252,
  },
  "vit_large_patch16_224": {"augreg_in21k_ft_in1k": 85.856},
  "vit_large_patch16_384": {"augreg_in21k_ft_in1k": 87.096},
  "vit_large_patch32_224": {"orig_in21k": None},
  "vit_large_patch32_384": {"orig_in21k_ft_in1k": 81.508},
}

# width, depth, heads, initial LayerScale: timm's models/cait.py, and table 3 of
# arXiv:2103.17239. By image size, top-1 as above.
_CAIT: dict[str, tuple[tuple[int, int, int, float], dict[int, float]]] = {
  "xxs24": ((192, 24, 4, 1e-5), {224: 78.4, 384: 80.954}),
  "xxs36": ((192, 36, 4, 1e-5), {224: 79.75, 384: 82.204}),
  "xs24": ((288, 24, 6, 1e-5), {384: 84.064}),
  "s24": ((384, 24, 8, 1e-5), {224: 83.484, 384: 85.048}),
  "s36": ((384, 36, 8, 1e-6), {384: 85.458}),
  "m36": ((768, 36, 16, 1e-6), {384: 86.06}),
  "m48": ((768, 48, 16, 1e-6), {448: 86.48}),
}

_DEIT: dict[str, Any] = dict(
  pool_type="tok", gelu="erf", head_zeroinit=False, init_scheme="deit"
)
_DEIT3: dict[str, Any] = dict(_DEIT, layerscale_init=1e-6)


def _size_fields(size: str, patch: int | None = None) -> dict[str, Any]:
  names = ("width", "depth", "mlp_dim", "num_heads")
  fields: dict[str, Any] = dict(zip(names, SIZES[size], strict=True))
  if patch is not None:
    fields["patch_size"] = (patch, patch)
  return fields


def _named() -> dict[str, Variant]:
  table = {}

  def add(
    name: str,
    size: str,
    patch: int,
    image_size: int,
    stats: tuple[Any, Any] = IMAGENET_MEAN_STD,
    **fields: Any,
  ) -> None:
    table[name] = Variant(
      name,
      _size_fields(size, patch) | fields,
      image_size,
      *stats,
      crop_pct=0.9 if image_size == 224 else 1.0,
      published=_PUBLISHED.get(name, {"lvd142m": None} if patch == 14 else {}),
    )

  sizes = {"tiny": "Ti", "small": "S", "base": "B"}
  for word, size in sizes.items():
    add(f"deit_{word}_patch16_224", size, 16, 224, **_DEIT)
    add(
      f"deit_{word}_distilled_patch16_224",
      size,
      16,
      224,
      **_DEIT,
      distilled=True,
    )
  add("deit_base_patch16_384", "B", 16, 384, **_DEIT)
  add("deit_base_distilled_patch16_384", "B", 16, 384, **_DEIT, distilled=True)
  for word, size in {**sizes, "medium": "M", "large": "L"}.items():
    if word != "tiny":
      add(f"deit3_{word}_patch16_224", size, 16, 224, **_DEIT3)
    if word not in ("tiny", "medium"):
      add(f"deit3_{word}_patch16_384", size, 16, 384, **_DEIT3)
  add("deit3_huge_patch14_224", "H", 14, 224, **_DEIT3)
  # ViT (augreg): DeiT's architecture with images in [-1, 1].
  for word, size in {**sizes, "large": "L"}.items():
    for patch, image_size in (
      (16, 224),
      (16, 384),
      (32, 224),
      (32, 384),
      (8, 224),
    ):
      if (word, patch) in (("tiny", 32), ("tiny", 8), ("large", 8)):
        continue
      add(
        f"vit_{word}_patch{patch}_{image_size}",
        size,
        patch,
        image_size,
        # The only weights with this name are DINO's.
        IMAGENET_MEAN_STD
        if (word, patch) == ("small", 8)
        else INCEPTION_MEAN_STD,
        **_DEIT,
      )
  # DINOv2: features without a head.
  for word, size in (("small", "S"), ("base", "B"), ("large", "L")):
    for infix, registers in (("", 0), ("_reg4", 4)):
      add(
        f"vit_{word}_patch14{infix}_dinov2",
        size,
        14,
        518,
        **dict(_DEIT, layerscale_init=1e-5, registers=registers),
      )
  for size, (numbers, top1) in _CAIT.items():
    names = ("width", "depth", "num_heads", "layerscale_init")
    for image_size, score in top1.items():
      name = f"cait_{size}_{image_size}"
      table[name] = Variant(
        name,
        dict(zip(names, numbers, strict=True), patch_size=(16, 16)),
        image_size,
        *IMAGENET_MEAN_STD,
        crop_pct=1.0,
        published={"fb_dist_in1k": score},
        family="CaiT",
      )
  # The quickstart's pair: a DeiT, and big_vision's plain ViT.
  add("deit_pico_patch4_28", "pico", 4, 28, INCEPTION_MEAN_STD, **_DEIT)
  add("deit3_pico_patch4_28", "pico", 4, 28, INCEPTION_MEAN_STD, **_DEIT3)
  plain: dict[str, Any] = dict(posemb="sincos2d")
  add("vit_nano_patch4_28", "nano", 4, 28, INCEPTION_MEAN_STD, **plain)
  return table


NAMED = _named()


def get(variant: str) -> Variant:
  """Looks up a variant by name.

  Args:
    variant: a size such as `"Ti/16"` or `"B"` (patch 16, big_vision's default),
      or a timm name such as `"deit_tiny_patch16_224"`; with timm's tag
      (`".fb_in1k"`), the preprocessing is that of those weights.

  Raises:
    ValueError: the name is unknown; the message lists the nearest ones.
  """
  if variant in NAMED:
    return NAMED[variant]
  size, slash, patch = variant.partition("/")
  if size in SIZES and (not slash or re.fullmatch(r"[1-9]\d*", patch)):
    return Variant(variant, _size_fields(size, int(patch) if slash else None))
  untagged, _, tag = variant.partition(".")
  if untagged in NAMED:
    return _tagged(NAMED[untagged], tag)
  variant = variant[:100]  # may come from a damaged file
  near = difflib.get_close_matches(variant, [*NAMED, *SIZES], n=3, cutoff=0.4)
  raise ValueError(
    f"unknown variant {variant!r}: expected a size such as 'S/16' or a timm "
    "name" + (f"; the nearest are {', '.join(near)}" if near else "")
  )


def arguments(
  family: str,
  known: Sequence[str],
  variant: str | None,
  given: Mapping[str, Any],
) -> dict[str, Any]:
  """Keyword arguments of a model: those given, else the variant's.

  Args:
    family: of the model, see `Variant`.
    known: names of its fields.
    variant: name; None for the model's defaults.
    given: fields by name.

  Raises:
    ValueError: an unknown field, or a variant that is unknown or of another
      family.
  """
  for name in given:
    if name not in known and name != "name":
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
      raise ValueError(
        f"unknown model field {name!r}; "
        + (
          f"the nearest is {near[0]!r}"
          if near
          else f"the valid ones are {', '.join(known)}"
        )
      )
  fields = dict(given)
  if variant is not None:
    found = get(variant)
    if found.family != family:
      raise ValueError(
        f"expected a variant of {family}, got {variant!r}, a {found.family}"
        + "; a CaiT can be a teacher and be evaluated, but not be trained"
        * (found.family == "CaiT")
      )
    fields = found.fields | fields
  if isinstance(fields.get("patch_size"), list):  # JSON's; not hashable
    fields["patch_size"] = tuple(fields["patch_size"])
  return fields


def _tagged(variant: Variant, tag: str) -> Variant:
  changes: dict[str, Any] = {"name": f"{variant.name}.{tag}"}
  if tag == "fb_in22k_ft_in1k":
    changes["crop_pct"] = 1.0
  if tag in ("dino", "mae"):  # ViT's names with DeiT's normalisation
    changes["mean"], changes["std"] = IMAGENET_MEAN_STD
  return dataclasses.replace(variant, **changes)
