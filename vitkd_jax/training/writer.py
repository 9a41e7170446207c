"""Metrics of a run: metrics.jsonl, TensorBoard, and lines on the console."""

from collections.abc import Mapping
import contextlib
import datetime
import json
import os
import sys

from etils import epath
import rich.console
import rich.progress

# tensorboardX imports PyTorch where it is installed, and can do without.
_LOADED = sys.modules.setdefault("torch", None)
import tensorboardX  # noqa: E402

if _LOADED is None:
  del sys.modules["torch"]

from vitkd_jax.data import printable  # noqa: E402


class Writer:
  """Writes scalars by step; use it as a context.

  A resumed run drops what was written beyond its first step, so that its
  metrics.jsonl equals an unbroken run's.

  Args:
    workdir: where metrics.jsonl and the events go; made if it is not there.
    first_step: updates done before this start.
    total_steps: of the whole run, for the progress line.
    quiet: writes nothing (all processes but the first).
  """

  def __init__(
    self, workdir: str, *, first_step: int, total_steps: int, quiet=False
  ):
    self._path = epath.Path(workdir) / "metrics.jsonl"
    self._total = total_steps
    self._quiet = quiet
    self._progress = self._events = None
    self._written = set()
    if quiet:
      return
    self._keep_until(first_step)
    self._events = tensorboardX.SummaryWriter(
      os.fspath(workdir), purge_step=first_step + 1
    )
    self._console = rich.console.Console(stderr=False, highlight=False)
    if self._console.is_terminal:
      self._progress = rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.completed}/{task.total}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[text]}"),
        console=self._console,
        transient=True,
      )
      self._bar = self._progress.add_task(
        "", total=total_steps, completed=first_step, text=""
      )

  def __enter__(self):
    if self._progress:
      self._progress.start()
    return self

  def __exit__(self, *_):
    if self._progress:
      self._progress.stop()
    if self._events:
      # What filled the disk has been told, and hides nothing else here.
      with contextlib.suppress(OSError):
        self._events.close()

  def _keep_until(self, step: int) -> None:
    if not self._path.exists():
      return
    content, kept = self._path.read_bytes(), []
    for line in content.splitlines():
      try:
        values = json.loads(line)
        if values["step"] <= step:
          kept.append(line + b"\n")
          self._written.add((values["step"], frozenset(values)))
      except (ValueError, KeyError, TypeError):
        continue  # the last line of a killed run may be half written
    if b"".join(kept) != content:  # through another file: a kill loses nothing
      temporary = self._path.with_suffix(".tmp")
      temporary.write_bytes(b"".join(kept))
      temporary.replace(self._path)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line of metrics and the events of the same step, once."""
    known = (step, frozenset(values) | {"step"})
    if self._quiet or known in self._written:
      return
    line = json.dumps({"step": step, **values})
    if "://" not in os.fspath(self._path):
      with open(self._path, "a") as file:
        file.write(line + "\n")
    else:  # object stores cannot append
      old = self._path.read_text() if self._path.exists() else ""
      self._path.write_text(old + line + "\n")
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def line(self, text: str) -> None:
    """Prints a line that stays."""
    if not self._quiet:
      text = printable.printable(text)
      self._console.print(text, markup=False, emoji=False, soft_wrap=True)

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Moves the bar on a terminal; prints a line into a log."""
    if self._quiet:
      return
    text = progress_text(values)
    if self._progress:
      self._progress.update(self._bar, completed=step, text=text)
    else:
      width = len(str(self._total))
      self.line(f"step {step:{width}}/{self._total}  {text}")
      sys.stdout.flush()


def progress_text(values: Mapping[str, float]) -> str:
  """One line of what a person watches: loss by term, speed, time left."""
  terms = "  ".join(
    f"{name.removeprefix('weighted_')} {value:.3f}"
    for name, value in values.items()
    if name.startswith("weighted_")
  )
  eta = datetime.timedelta(seconds=round(values["eta_seconds"]))
  return (
    f"loss {values['loss']:.3f} ({terms})  acc {values['accuracy']:.1%}  "
    f"lr {values['learning_rate']:.1e}  {values['images_per_second']:.0f} img/s"
    f"  wait {values['data_wait']:.0%}  eta {eta}"
  )
