"""Source lines and fusions of a compiled step, from its text and traces."""

import collections
import dataclasses
import glob
import os
import re

import jax


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an instruction comes from.

  Attributes:
    scope: JAX's path of names, e.g. "jit(step)/.../dot_general".
    stack: calls within the package, innermost first, as
      "models/layers.py:12"; the innermost call of all where there is none.
  """

  scope: str
  stack: tuple[str, ...]

  @property
  def line(self) -> str:
    """The innermost call."""
    return self.stack[0]


NOWHERE = Place("?", ("?",))


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{(.*?)\}")


def places(text: str, root: str = "vitkd_jax") -> dict[str, Place]:
  """{instruction: where it comes from} of a compiled module's text.

  Args:
    text: from `compiled.as_text()`.
    root: folder whose lines count.
  """
  tables = _tables(text)
  found = {}
  for line in text.splitlines():
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    name, metadata = match.groups()
    scope = re.search(r'op_name="([^"]*)"', metadata)
    frame = re.search(r"stack_frame_id=(\d+)", metadata)
    stack = _stack(int(frame[1]), tables, root) if frame else ("?",)
    found[name] = Place(scope[1] if scope else "?", stack)
  return found


def _tables(text):
  """The module's tables of files, locations and stack frames."""
  tables, current = collections.defaultdict(dict), None
  for line in text.splitlines():
    if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
      current = line
    elif current and (match := re.match(r"(\d+) (.*)", line)):
      tables[current][int(match[1])] = match[2]
    elif line.startswith(("%", "ENTRY")):
      break
  return tables


def _stack(frame, tables, root):
  everything, inside = [], []
  while frame:
    fields = _numbers(tables["StackFrames"].get(frame, ""))
    location = _numbers(
      tables["FileLocations"].get(fields.get("file_location_id"), "")
    )
    file = tables["FileNames"].get(location.get("file_name_id"), "?").strip('"')
    line = location.get("line", "?")
    everything.append(f"{os.path.basename(file)}:{line}")
    if f"/{root}/" in file:
      inside.append(f"{file.rpartition(f'/{root}/')[2]}:{line}")
    frame = fields.get("parent_frame_id", 1) - 1  # printed one too high
  return tuple(inside or everything[:1] or "?")


def _numbers(text):
  return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}


def profile(ours, folder: str, steps: int = 3, count: int = 10) -> None:
  """Writes a trace of some steps and prints the most expensive fusions.

  Args:
    ours: with `step`, `wait` and `compiled`.
    folder: for the trace, to be opened with TensorBoard or Perfetto.
    steps: how many are traced.
    count: how many lines are printed.
  """
  ours.step()
  ours.wait()
  with jax.profiler.trace(folder):
    for _ in range(steps):
      ours.step()
    ours.wait()
  files = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
  spent = times(max(files, key=os.path.getmtime))
  text = ours.compiled.as_text()
  with open(os.path.join(folder, "step.hlo.txt"), "w") as file:
    file.write(text)
  where = places(text)
  total = sum(spent.values())
  by_line = collections.Counter()
  for name, nanoseconds in spent.items():
    by_line[where.get(name, NOWHERE).line] += nanoseconds
  print(f"busy {total / steps / 1e6:.1f} ms a step on all threads together")
  print(f"{'ms a step':>10} {'share':>6}  fusion, line, scope")
  for name, nanoseconds in spent.most_common(count):
    place = where.get(name, NOWHERE)
    print(
      f"{nanoseconds / steps / 1e6:10.2f} {nanoseconds / total:6.1%}  "
      f"{name}, {place.line}, {place.scope[-90:]}"
    )
  print(f"{'ms a step':>10} {'share':>6}  line, all its fusions")
  for line, nanoseconds in by_line.most_common(count):
    print(
      f"{nanoseconds / steps / 1e6:10.2f} {nanoseconds / total:6.1%}  {line}"
    )


def times(file: str) -> collections.Counter:
  """{instruction: nanoseconds} of a trace, over all devices and steps.

  Args:
    file: path of an .xplane.pb.
  """
  spent = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(file).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats and not event.name.startswith("end: "):
          spent[stats["hlo_op"]] += event.duration_ns
  return spent
