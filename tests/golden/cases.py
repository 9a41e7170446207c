"""Inputs and weights behind the stored losses, in NumPy's frozen stream.

`np.random.RandomState` never changes its numbers (NumPy's NEP 19), so only
results are stored: whoever reads a golden makes its inputs again, here. Needs
NumPy alone; `make_losses.py` (PyTorch) and the tests (JAX) both import it.
Arrays and parameter trees have this package's layout: token maps [B, N, D],
dense kernels [in, out], convolution kernels [3, 3, in, out].
"""

import dataclasses

import numpy as np

NUM_SAMPLES = 2048  # stored entries of each gradient


@dataclasses.dataclass(frozen=True)
class ViTKDCase:
  """Sizes of one comparison; `ratio` is lambda, `grid` is (rows, columns)."""

  student_width: int
  teacher_width: int
  grid: tuple[int, int]
  batch: int = 2
  ratio: float = 0.5
  seed: int = 0
  always_align: bool = False  # aligners also between equal widths

  @property
  def num_tokens(self) -> int:
    return self.grid[0] * self.grid[1]


# Seeds 0, 1, 2, ... were tried in turn until no activation before the ReLU lay
# within 2e-6 of zero in float64: there float32 rounding picks the other side,
# and one such element alone can move a gradient by 1e-3 of its norm.
VITKD = {
  "192_384_196": ViTKDCase(192, 384, (14, 14)),
  "384_768_196": ViTKDCase(384, 768, (14, 14), seed=1),
  "64_64_49": ViTKDCase(64, 64, (7, 7), batch=3),
  "64_64_49_ratio25": ViTKDCase(64, 64, (7, 7), batch=3, ratio=0.25),
  "32_64_49_ratio75": ViTKDCase(32, 64, (7, 7), batch=3, ratio=0.75),
}


def vitkd_params(random, case: ViTKDCase) -> dict:
  """A float64 parameter tree of the head, every leaf (mask token too) drawn."""
  width_s, width_t = case.student_width, case.teacher_width

  def layer(*shape):
    kernel = random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    return {"kernel": kernel, "bias": 0.1 * random.standard_normal(shape[-1])}

  params = {"mask_token": random.standard_normal((1, 1, width_t))}
  if width_s != width_t or case.always_align:
    for name in ("align_low_0", "align_low_1", "align_high"):
      params[name] = layer(width_s, width_t)
  for name in ("generator_0", "generator_1"):
    params[name] = layer(3, 3, width_t, width_t)
  return params


def vitkd_inputs(case: ViTKDCase) -> tuple[dict, dict, np.ndarray]:
  """The (params, maps, mask) of a case.

  Values are float64 holding float32 numbers, so that a float32 computation
  and a float64 one start from the very same inputs.

  Args:
    case: one of `VITKD`, or any other sizes.

  Returns:
    params as from `vitkd_params`; maps {"student_low" [B, 2, N, D_s],
    "student_high" [B, N, D_s], "teacher_low" [B, 2, N, D_t], "teacher_high"
    [B, N, D_t]}; mask bool [B, N], True where a token is replaced, exactly
    N - int(N (1 - ratio)) in each row.
  """
  random = np.random.RandomState(case.seed)
  low, high = (case.batch, 2, case.num_tokens), (case.batch, case.num_tokens)
  maps = {
    "student_low": random.standard_normal((*low, case.student_width)),
    "student_high": random.standard_normal((*high, case.student_width)),
    "teacher_low": random.standard_normal((*low, case.teacher_width)),
    "teacher_high": random.standard_normal((*high, case.teacher_width)),
  }
  params = vitkd_params(random, case)
  num_kept = int(case.num_tokens * (1 - case.ratio))
  mask = np.ones(high, bool)
  for row in mask:
    row[random.permutation(case.num_tokens)[:num_kept]] = False
  return round_to_float32(params), round_to_float32(maps), mask


@dataclasses.dataclass(frozen=True)
class NKDCase:
  """Options of one NKD comparison; `mixed` labels are [B, C], hard ones [B]."""

  num_classes: int
  mixed: bool
  temperature: float
  gamma: float
  batch: int = 3


NKD = {
  f"{c}_{'mixed' if mixed else 'hard'}_tau{tau:g}_gamma{gamma:g}": NKDCase(
    c, mixed, tau, gamma
  )
  for c in (3, 10, 1000)
  for mixed in (False, True)
  for tau in (1.0, 2.0)
  for gamma in (1.0, 1.5)
}


def nkd_inputs(case: NKDCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Student and teacher logits [B, C] float64, target int64 [B] or [B, C].

  A mixed target is what Mixup and smoothing by 0.1 make of two labels.
  """
  random = np.random.RandomState(case.num_classes)
  shape = (case.batch, case.num_classes)
  student = 2 * random.standard_normal(shape)
  teacher = 3 * random.standard_normal(shape)
  first, second = random.randint(case.num_classes, size=(2, case.batch))
  share = random.uniform(0.55, 0.95, size=(case.batch, 1))
  one_hot = np.eye(case.num_classes)
  mixed = share * one_hot[first] + (1 - share) * one_hot[second]
  mixed = 0.9 * mixed + 0.1 / case.num_classes
  return *round_to_float32((student, teacher)), mixed if case.mixed else first


def round_to_float32(tree):
  """The same nested arrays as float64 holding float32 numbers."""
  if isinstance(tree, dict):
    return {key: round_to_float32(value) for key, value in tree.items()}
  if isinstance(tree, tuple):
    return tuple(round_to_float32(value) for value in tree)
  return tree.astype(np.float32).astype(np.float64)


def flatten(tree: dict, prefix: str = "") -> dict:
  """A nested dict's leaves by their path, joined with "/"."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}/")
    else:
      flat[prefix + key] = value
  return flat


def sample(array, count: int = NUM_SAMPLES) -> np.ndarray:
  """`count` entries at places fixed by the size; all if there are fewer."""
  flat = np.asarray(array).reshape(-1)
  if flat.size <= count:
    return flat
  return flat[np.random.RandomState(flat.size).randint(flat.size, size=count)]


def relative_l2(array, samples, norm) -> float:
  """How far an array is from one known by its samples and its L2 norm.

  The larger of two estimates of ||array - reference|| / ||reference||: the
  samples' difference scaled up to all entries, and the difference of norms.
  """
  array = np.asarray(array, np.float64)
  error = np.linalg.norm(sample(array) - samples)
  error *= np.sqrt(array.size / samples.size)
  return max(error, abs(np.linalg.norm(array) - norm)) / float(norm)
