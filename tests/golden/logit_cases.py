"""Inputs behind the stored losses of logits, in NumPy's frozen stream.

Read like `cases.py`: only results are stored, inputs are drawn again here.
"""

import dataclasses

import numpy as np

from golden import cases

NUM_SAMPLES = 256  # stored entries of each gradient


@dataclasses.dataclass(frozen=True)
class LogitCase:
  """One comparison.

  Attributes:
    loss: name in `vitkd_jax.distill.losses`, or "uskd/TERM".
    num_classes: C.
    options: keywords of the loss.
    labels: None, "hard" (int [B]) or "mixed" (two classes, [B, C], smoothed
      for no loss).
    extreme: logits close to 100 and -100, in the place of normal ones.
    batch: B.
  """

  loss: str
  num_classes: int
  options: dict
  labels: str | None = None
  extreme: bool = False
  batch: int = 4

  @property
  def name(self) -> str:
    options = [f"{key}{value:g}" for key, value in self.options.items()]
    parts = [self.loss, str(self.num_classes), self.labels, *options]
    return "_".join([p for p in parts if p] + ["extreme"] * self.extreme)


# Of each loss the options that are compared, and the labels that the authors'
# code takes.
OPTIONS = {
  "kl": [
    {"temperature": tau, "standardise": on}
    for tau in (1.0, 2.0)
    for on in (False, True)
  ],
  "deit_soft": [{"temperature": 1.0}, {"temperature": 3.0}],
  "ttm": [{"gamma": 0.8}, {"gamma": 0.2}, {"gamma": 1.0}],
  "wttm": [{"gamma": 0.8}, {"gamma": 0.2}, {"gamma": 1.0}],
  "dkd": [
    {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "standardise": False},
    {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "standardise": False},
    {"alpha": 1.0, "beta": 0.0, "temperature": 2.0, "standardise": False},
    {"alpha": 1.0, "beta": 8.0, "temperature": 2.0, "standardise": True},
  ],
  "wsld": [{"temperature": 2.0}, {"temperature": 4.0}],
  "dist": [
    {"beta": 1.0, "gamma": 0.0, "temperature": 1.0},
    {"beta": 0.0, "gamma": 1.0, "temperature": 1.0},
    {"beta": 2.0, "gamma": 1.0, "temperature": 4.0},
  ],
  "uskd/target": [{}],
  "uskd/non_target": [{}],
  "uskd/weak": [{}],
}
LABELS = {"dkd": ("hard",), "wsld": ("hard",)} | {
  f"uskd/{term}": ("hard", "mixed") for term in ("target", "non_target", "weak")
}
CASES = {
  case.name: case
  for loss, options in OPTIONS.items()
  for classes, extreme in ((3, False), (10, False), (1000, False), (10, True))
  for labels in LABELS.get(loss, (None,))
  for option in options
  # Two labels of three classes leave one other, and nothing to learn.
  if not (labels == "mixed" and classes == 3)
  for case in [LogitCase(loss, classes, option, labels, extreme)]
}


def inputs(case: LogitCase) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Student and teacher (or weak) logits [B, C] float64, and the target.

  Values are float64 holding float32 numbers. Two rows of a mixed target never
  have one label alone, where the authors' choice of a second is arbitrary.
  """
  random = np.random.RandomState(case.num_classes + 7 * case.extreme)
  shape = (case.batch, case.num_classes)
  student = 2 * random.standard_normal(shape)
  teacher = 3 * random.standard_normal(shape)
  if case.extreme:
    student += 100 * random.choice((-1, 1), size=shape)
    teacher += 100 * random.choice((-1, 1), size=shape)
  first = random.randint(case.num_classes, size=case.batch)
  second = first + random.randint(1, case.num_classes, size=case.batch)
  share = random.uniform(0.55, 0.95, size=(case.batch, 1))
  one_hot = np.eye(case.num_classes)
  mixed = share * one_hot[first]
  mixed += (1 - share) * one_hot[second % case.num_classes]
  target = {None: None, "hard": first, "mixed": cases.round_to_float32(mixed)}
  student, teacher = cases.round_to_float32((student, teacher))
  return student, teacher, target[case.labels]
