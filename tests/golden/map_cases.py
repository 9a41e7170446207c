"""Inputs behind the stored losses of maps and relations, in NumPy's stream.

As `cases.py`: whoever reads a golden draws its inputs again, here. Needs NumPy
alone; `make_maps.py` (PyTorch) and the tests (JAX) both import it. Arrays have
this package's layout: token maps [B, N, D], kernels [in, out].
"""

import dataclasses

import numpy as np

from golden import cases


@dataclasses.dataclass(frozen=True)
class MapCase:
  """One comparison.

  Attributes:
    kind: the loss, a function of `make_maps.py` and of `test_golden_maps.py`.
    student_width: D_s, of the student's features as the loss gets them.
    teacher_width: D_t.
    grid: (rows, columns); None for pooled features [B, D].
    batch: B.
    seed: of the inputs.
    options: what else the loss takes.
  """

  kind: str
  student_width: int
  teacher_width: int
  grid: tuple[int, int] | None = (4, 5)
  batch: int = 3
  seed: int = 0
  options: tuple[tuple[str, object], ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the features but for their width."""
    if self.grid is None:
      return (self.batch,)
    return (self.batch, self.grid[0] * self.grid[1])

  @property
  def option(self) -> dict:
    return dict(self.options)


def _case(*args, grid=(4, 5), batch=3, seed=0, **options) -> MapCase:
  return MapCase(*args, grid, batch, seed, tuple(options.items()))


# The widths that a loss between two widths is tried on.
WIDTHS = {"narrow": (12, 20), "equal": (16, 16), "wide": (20, 12)}

MAPS: dict[str, MapCase] = {}
for _name, _widths in WIDTHS.items():
  for _kind in (
    "manifold_patch",
    "manifold_sample",
    "token_similarity",
    "cka",
  ):
    MAPS[f"{_kind}_{_name}"] = _case(_kind, *_widths)
  MAPS[f"manifold_rand_{_name}"] = _case(
    "manifold_rand", *_widths, num_tokens=7
  )
  MAPS[f"fitnets_{_name}"] = _case("fitnets", *_widths)
  for _heads in (1, 2, 4):
    MAPS[f"relation_{_name}_heads{_heads}"] = _case(
      "relation", *_widths, heads=_heads
    )
MAPS["manifold_rand_all"] = _case("manifold_rand", 12, 20, num_tokens=192)
for _kind in ("manifold_patch", "token_similarity", "cka", "spectral"):
  MAPS[f"{_kind}_192_384_196"] = _case(
    _kind, 192, 384, grid=(14, 14), batch=2, seed=1
  )
for _name, _grid in {
  "even": (4, 4),
  "odd": (5, 5),
  "tall": (6, 3),
  "broad": (3, 4),
  "row": (1, 6),
  "column": (6, 1),
}.items():
  MAPS[f"spectral_{_name}"] = _case("spectral", 12, 20, grid=_grid)
MAPS["spectral_multiple"] = _case("spectral", 8, 24)
MAPS["spectral_equal"] = _case("spectral", 16, 16)
for _side in (4, 5):
  # The authors' transform takes square maps alone.
  for _kind in ("scalekd_spatial", "scalekd_frequency"):
    MAPS[f"{_kind}_{_side}"] = _case(_kind, 16, 16, grid=(_side, _side))
for _kind in ("proteus_token", "unic"):
  MAPS[f"{_kind}_pooled"] = _case(_kind, 16, 16, grid=None)
for _kind in ("proteus_map", "unic", "unic_cosine", "unic_smooth_l1"):
  MAPS[_kind] = _case(_kind, 16, 16)
MAPS["vkd"] = _case("vkd", 12, 20)
MAPS["vkd_equal"] = _case("vkd", 16, 16)
MAPS["orthogonal_narrow"] = _case("orthogonal", 12, 20, grid=None)
MAPS["orthogonal_wide"] = _case("orthogonal", 20, 12, grid=None)
for _classes in (2, 10):
  for _kind in ("srrl_feature", "srrl_logit"):
    MAPS[f"{_kind}_{_classes}"] = _case(
      _kind, 16, 16, grid=None, classes=_classes
    )
MAPS["mgd"] = _case("mgd", 8, 8)
MAPS["mgd_narrow"] = _case("mgd", 6, 8)
MAPS["teacher_drop_2"] = _case("teacher_drop", 2, 2, grid=None, batch=8)
MAPS["teacher_drop_4"] = _case("teacher_drop", 4, 4, grid=None, batch=8)
MAPS["phi_s_16"] = _case("phi_s", 16, 16, batch=8)
MAPS["phi_s_12"] = _case("phi_s", 24, 24, batch=3, seed=1)

# Whose batch is one number in the authors' code, as its images mix.
MIXING = {
  "fitnets",
  "manifold_sample",
  "manifold_rand",
  "phi_s",
  "teacher_drop",
}
# What a gradient is stored of, where that is not the student's features alone.
GRADIENTS = {"vkd": ("student", "kernel"), "orthogonal": ("kernel",)}


def map_inputs(case: MapCase) -> dict:
  """The inputs of a case, float64 holding float32 numbers.

  Returns:
    student [B, N, D_s] or [B, D_s], teacher [B, N, D_t] or [B, D_t]; with
    correlated channels and means other than 0, as real features have. Beside
    them, as the kind needs: kernel [D_s, D_t] and bias [D_t]; head_kernel
    [D_t, C], head_bias [C] and logits [B, C]; generator_0 and generator_1
    [3, 3, D_t, D_t] with bias_0 and bias_1; mask [B, D_t] bool, True where a
    channel is zeroed; scores [B, N]. Of "relation" student and teacher are q,
    k, v [3, B, N, D]; of "teacher_drop" student is [T, B], with keep [T, B]
    bool.
  """
  random = np.random.RandomState(case.seed)
  batch, width_s, width_t = case.batch, case.student_width, case.teacher_width

  def features(width, shape=case.shape):
    mixing = random.standard_normal((width, width)) / np.sqrt(width)
    return random.standard_normal((*shape, width)) @ mixing + (
      0.5 * random.standard_normal(width)
    )

  inputs = {"student": features(width_s), "teacher": features(width_t)}
  if case.kind in ("fitnets", "vkd", "orthogonal", "mgd"):
    inputs["kernel"] = random.standard_normal((width_s, width_t)) / np.sqrt(
      width_s
    )
    inputs["bias"] = 0.1 * random.standard_normal(width_t)
  if case.kind.startswith("srrl"):
    classes = case.option["classes"]
    inputs["head_kernel"] = random.standard_normal((width_t, classes))
    inputs["head_bias"] = random.standard_normal(classes)
    inputs["logits"] = 3 * random.standard_normal((batch, classes))
  if case.kind == "relation":
    shape = (3, *case.shape)
    inputs["student"] = features(width_s, shape)
    inputs["teacher"] = features(width_t, shape)
  if case.kind == "mgd":
    for i in range(2):
      kernel = random.standard_normal((3, 3, width_t, width_t))
      inputs[f"generator_{i}"] = kernel / np.sqrt(9 * width_t)
      inputs[f"bias_{i}"] = 0.1 * random.standard_normal(width_t)
  if case.kind == "manifold_rand":
    inputs["scores"] = random.uniform(size=case.shape)
  if case.kind == "teacher_drop":
    inputs["student"] = random.uniform(0.1, 2, (width_s, batch))
  inputs = cases.round_to_float32(inputs)
  if case.kind == "mgd":
    inputs["mask"] = random.uniform(size=(batch, width_t)) < 0.3
  if case.kind == "teacher_drop":
    inputs["keep"] = random.uniform(size=(width_s, batch)) < 0.5
  return inputs
