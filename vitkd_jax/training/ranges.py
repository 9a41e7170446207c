"""Ranges of the numbers in the section `run`."""

from vitkd_jax import check as checks
from vitkd_jax.models import attention
from vitkd_jax.runs import trackers
from vitkd_jax.training import sections

# Far beyond any training; the step is counted in int32.
_MOST_EPOCHS = 1e6

# Smallest valid value of each number in the section `run`.
_LEAST = {
  "batch_size": 1,
  "accumulate": 1,
  "fsdp": 1,
  "log_every": 1,
  "eval_every": 0,
  "inspect_every": 0,
  "checkpoint_every": 0,
  "checkpoint_minutes": 0,
  "keep": 1,
  "max_bad_steps": 1,
  "step_timeout": 0,
  "profile_at": 0,
  "seed": 0,
}


def check(run: sections.Run) -> None:
  """Checks the ranges of a section `run`.

  Args:
    run: the section.

  Raises:
    ValueError: a number out of its range.
  """
  for name, least in _LEAST.items():
    value = getattr(run, name)
    if value < least:
      raise ValueError(f"expected config.run.{name} >= {least}, got {value}")
  if not 0 < run.epochs <= _MOST_EPOCHS:
    raise ValueError(
      f"expected 0 < config.run.epochs <= {_MOST_EPOCHS:.0f}, got {run.epochs}"
    )
  if run.seed >= 2**63:
    raise ValueError(f"expected config.run.seed < 2**63, got {run.seed}")
  checks.known("config.run.attention", run.attention, attention.FORMS)
  checks.known("config.run.tracker", run.tracker, trackers.NAMES)
  for package in trackers.missing(run.tracker):
    raise ValueError(
      f"config.run.tracker={run.tracker!r} needs {package}: pip install "
      f"'vitkd-jax[{run.tracker}]'"
    )
  if not 0 <= run.ema_decay < 1:
    raise ValueError(
      f"expected 0 <= config.run.ema_decay < 1, got {run.ema_decay}"
    )
