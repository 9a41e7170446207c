"""Scalars as a run of Weights & Biases; wandb is an optional package.

Its own settings hold: WANDB_MODE=offline keeps a run on the disk for `wandb
sync`, WANDB_PROJECT and WANDB_ENTITY say where it goes.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib
import importlib.util
import os
import secrets
from typing import Any

from etils import epath

from vitkd_jax import remote

_PROJECT = "vitkd"
# In a workdir: which run of Weights & Biases it is, so that a resume goes on.
_ID = "wandb_run_id"
# Seconds that a network may hold up the start and the end of a training.
_START, _END = 60.0, 300.0


def missing() -> Sequence[str]:
  """The package, if it is not installed."""
  return () if importlib.util.find_spec("wandb") else ("wandb",)


class Run:
  """The run of a workdir, resumed if it exists.

  Args:
    workdir: an existing folder, or a URL.
    config: shown beside the run.
    tell: prints a line.
  """

  def __init__(
    self,
    workdir: str,
    config: Mapping[str, Any],
    tell: Callable[[str], None],
  ):
    wandb: Any = importlib.import_module("wandb")
    path = epath.Path(workdir) / _ID
    if not path.exists():
      path.write_text(secrets.token_hex(8))
    name = os.path.basename(os.path.normpath(remote.absolute(workdir)))
    settings = wandb.Settings(
      console="off",  # the console and train.log are our own
      silent=True,
      init_timeout=_START,
      finish_timeout=_END,
    )
    wandb.setup(settings)  # silent from now on: nobody is asked for a key
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT") or _PROJECT,
      name=os.environ.get("WANDB_NAME") or name,
      id=path.read_text().strip(),
      resume="allow",
      dir=None if remote.is_remote(workdir) else workdir,
      config=dict(config),
      allow_val_change=True,  # intervals may change from start to start
      settings=settings,
    )
    where = self._run.dir if self._run.offline else self._run.url
    tell(f"metrics also go to Weights & Biases: {where}")

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds scalars; those of steps that a resume repeats are dropped.

    Args:
      step: updates done.
      values: scalars by name.
    """
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Waits until all is sent, for minutes at most."""
    self._run.finish()
