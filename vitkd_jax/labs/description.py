"""What a lab compares: its config's keys, arms and claims."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from vitkd_jax import check
from vitkd_jax.training import sections

# Keys of a lab's config.
KEYS = (
  "name",
  "question",
  "reference",
  "seeds",
  "varies",
  "arms",
  "claims",
  "chip",
  "chip_tflops",
)
_ARM_KEYS = ("says", "claim", "against")
_CLAIM_KEYS = ("says", "better", "worse")
# Names of folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One of the things that a lab compares.

  Attributes:
    name: of the arm, and of the folder of its runs.
    says: how it differs from the others, in words.
    claim: what was published about it; may be empty.
    against: the arm that it is compared with; empty for that one itself.
  """

  name: str
  says: str
  claim: str
  against: str


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement that the lab tests: one arm is better than another.

  Attributes:
    says: the statement.
    better: the arm that it says is better.
    worse: the other arm.
  """

  says: str
  better: str
  worse: str


@dataclasses.dataclass(frozen=True)
class Lab:
  """A comparison.

  Attributes:
    name: of the lab.
    question: that it answers, a sentence.
    reference: the arm that those are compared with which name no other.
    seeds: number of seeds; the k-th run of an arm has config.run.seed k.
    varies: keys, or sections, in which arms may differ.
    arms: by name.
    claims: statements about pairs of arms.
    chip: a machine whose speed is known; empty for none.
    chip_tflops: matrix products that it computes in a training step, in
      10^12 FLOP a second.
  """

  name: str
  question: str
  reference: str
  seeds: int
  varies: tuple[str, ...]
  arms: dict[str, Arm]
  claims: tuple[Claim, ...]
  chip: str = ""
  chip_tflops: float = 0.0


def make(config: Mapping[str, Any]) -> Lab:
  """A lab from its config.

  Args:
    config: with the keys `KEYS`; `claims`, `chip` and `chip_tflops` may be
      missing. `arms` is {name: {says, claim, against}}, of which the last two
      may be missing, `claims` {name: {says, better, worse}}.

  Raises:
    ValueError: a key is missing, unknown or of another kind.
  """
  if "run" in config and "arms" not in config:
    raise ValueError(
      "expected a lab's config, such as configs/labs/methods.py, got a "
      "training's, which vitkd_jax.train takes"
    )
  for key in config:
    if key not in KEYS:
      raise ValueError(
        f"unknown key config.{key} of a lab; {check.nearest(key, KEYS)}"
      )
  for key in KEYS[:6]:
    if not config.get(key):
      raise ValueError(f"expected a lab with config.{key}, got none")
  check.integers(1, **{"config.seeds": config["seeds"]})
  arms = {
    name: Arm(name, **_texts(f"arms.{name}", values, _ARM_KEYS))
    for name, values in config["arms"].items()
  }
  for name in arms:
    if not _NAME.fullmatch(name):
      raise ValueError(
        "expected names of arms of letters, digits and _ + -, as they are "
        f"folders, got {name!r}"
      )
  reference = config["reference"]
  check.known("config.reference", reference, arms)
  arms = {reference: arms[reference], **arms}  # trained first
  for name, arm in arms.items():
    if arm.against:
      check.known(f"config.arms.{name}.against", arm.against, arms)
    elif name != reference:
      arms[name] = dataclasses.replace(arm, against=reference)
  if len(arms) < 2:
    raise ValueError("expected at least two arms in config.arms, got one")
  claims = tuple(
    Claim(**_texts(f"claims.{name}", values, _CLAIM_KEYS))
    for name, values in (config.get("claims") or {}).items()
  )
  for claim in claims:
    check.known("an arm of config.claims", claim.better, arms)
    check.known("an arm of config.claims", claim.worse, arms)
  return Lab(
    name=config["name"],
    question=config["question"],
    reference=reference,
    seeds=config["seeds"],
    varies=tuple(config["varies"]),
    arms=arms,
    claims=claims,
    chip=config.get("chip") or "",
    chip_tflops=config.get("chip_tflops") or 0.0,
  )


def _texts(
  where: str, values: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, str]:
  sections.known(where, values, keys)
  return {key: str(values.get(key) or "") for key in keys}
