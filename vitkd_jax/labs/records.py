"""What is recorded of a run's processes, and what it tells of others."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from vitkd_jax.labs import machine, plan
from vitkd_jax.runs import reading

# Written into a run's folder.
_NAME = "lab.json"


def seconds(run: plan.Run) -> float | None:
  """Time that a finished run took, all its starts together; None if unknown.

  Args:
    run: the run.
  """
  return record(run).get("seconds") if plan.finished(run) else None


def record(run: plan.Run) -> dict[str, Any]:
  """What is known of a run's processes: "seconds", "starts" and "host".

  Args:
    run: the run.
  """
  path = epath.Path(run.workdir) / _NAME
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def add(run: plan.Run, spent: float) -> None:
  """Records that a process of a run has ended.

  Args:
    run: the run.
    spent: seconds of all its processes.
  """
  folder = epath.Path(run.workdir)
  if not folder.is_dir():  # it was refused before it made one
    return
  found = {
    "seconds": round(spent, 3),
    "starts": (record(run).get("starts") or 0) + 1,
    "host": machine.said(),
  }
  (folder / _NAME).write_text(json.dumps(found) + "\n")


def expected(
  run: plan.Run, times: Mapping[plan.Run, float | None]
) -> float | None:
  """Seconds that a run will take, by those that have ended.

  Args:
    run: the run.
    times: of the finished runs, from `seconds`.

  Returns:
    The mean of the finished runs of its arm, else of all; None without any.
  """
  known = [(r.arm, x) for r, x in times.items() if x is not None]
  own = [x for arm, x in known if arm == run.arm] or [x for _, x in known]
  return sum(own) / len(own) if own else None


def progress(run: plan.Run) -> str:
  """How far a run is, in words.

  Args:
    run: the run.
  """
  try:
    found = reading.read(run.workdir, "")
  except reading.NotARunError:
    return ": starting"
  total = found.total_steps
  return f": step {found.step}" + (f" of {total}" if total else "")
