"""Feeds mutated files to a reader, in a process with limits of its own.

A reader may read a case or refuse it with its own error, in one sentence.
Anything else fails: another exception, an end of the process, a case that
takes minutes, or memory far beyond what the intact file takes.
"""

from collections.abc import Callable
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings

_TESTS = pathlib.Path(__file__).parents[1]
# Seconds of a case, which takes milliseconds; a reader that waits for bytes
# that never come takes no processor time, so that only the clock tells.
_PATIENCE = 300
# Processes that may end before the rest of the cases is given up.
_DEATHS = 20
# Bytes beyond those of the intact case; threads of JAX reserve gigabytes of
# addresses that they do not use.
_MEMORY = 4 << 30
# Messages of Python and NumPy, which a reader should not pass on as its own.
_FOREIGN = re.compile(
  r"invalid literal|could not (convert|broadcast)|cannot reshape"
  r"|not enough values|too many values|is not in list|embedded null"
  r"|operands|axes don't match|not supported between|out of bounds"
)


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader to try.

  Attributes:
    case: (rng, folder) -> None: writes a mutated file there and reads it.
    errors: what the reader may raise.
    intact: (folder) -> None: reads the file as it should be.
  """

  case: Callable[[random.Random, pathlib.Path], None]
  errors: type[Exception] | tuple[type[Exception], ...]
  intact: Callable[[pathlib.Path], None]


def check(target: str, cases: int, seed: int = 0) -> dict[str, int]:
  """Runs the cases; counts of those "read" and those "refused".

  Args:
    target: "module:function" below tests/; the function makes the `Target`.
    cases: their number.
    seed: of the mutations.

  Raises:
    AssertionError: at least one case failed; the message has them all.
  """
  found = run(target, cases, seed)
  assert not found["failed"], (
    f"{len(found['failed'])} of {cases} cases of {target} failed:\n"
    + "\n".join(found["failed"])
  )
  assert found["read"] + found["refused"] == cases
  return {name: found[name] for name in ("read", "refused")}


def run(
  target: str, cases: int, seed: int = 0, patience: float = _PATIENCE
) -> dict:
  """As `check`, with the failures in a list, "failed".

  Args:
    target: as `check` takes it, and the next two.
    cases: likewise.
    seed: likewise.
    patience: seconds that a case may take.
  """
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(
      [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]
    ),
  }
  found = {"read": 0, "refused": 0, "failed": []}
  first = deaths = 0
  while first < cases:
    with tempfile.TemporaryDirectory() as folder:
      done = subprocess.run(
        [sys.executable, "-m", "fuzz.runner", target]
        + [str(x) for x in (first, cases, seed, patience, folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
      )
      out = pathlib.Path(folder, "outcomes")
      lines = out.read_text().splitlines() if out.exists() else []
    for line in lines:
      outcome, sentence = json.loads(line)
      if outcome == "failed":
        found["failed"].append(f"case {first}: {sentence}")
      else:
        found[outcome] += 1
      first += 1
    if first < cases:
      end = f"the process ended with {done.returncode} at case {first}"
      found["failed"].append(f"{end}:\n{done.stdout[-3000:]}")
      deaths += 1
      if not lines or deaths == _DEATHS:
        break
      first += 1
  return found


def _main(name, first, cases, seed, patience, folder) -> None:
  module, _, function = name.partition(":")
  target = getattr(importlib.import_module(module), function)()
  warnings.simplefilter("error")
  intact = folder / "intact"
  intact.mkdir()
  target.intact(intact)  # also loads what JAX loads once
  with open("/proc/self/statm") as file:
    pages = int(file.read().split()[0])
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  held = pages * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, hard))
  with open(folder / "outcomes", "w") as file:
    for i in range(first, cases):
      faulthandler.dump_traceback_later(patience, exit=True)
      with tempfile.TemporaryDirectory(dir=folder) as place:
        rng = random.Random(f"{name}/{seed}/{i}")
        outcome = _outcome(target, rng, pathlib.Path(place))
      file.write(json.dumps(outcome) + "\n")
      file.flush()
  faulthandler.cancel_dump_traceback_later()


def _outcome(target, rng, place) -> tuple[str, str]:
  try:
    target.case(rng, place)
  except target.errors as error:
    sentence = str(error)
    if not sentence.strip() or "\n" in sentence.strip():
      return "failed", f"not one sentence: {sentence!r}"
    if len(sentence) > 2000:
      return "failed", f"{len(sentence)} characters: {sentence[:200]!r}..."
    if _FOREIGN.search(sentence):
      return "failed", f"another's words: {sentence!r}"
    return "refused", sentence
  except Exception as error:
    at = traceback.extract_tb(error.__traceback__)[-4:]
    where = " > ".join(
      f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in at
    )
    return "failed", f"{type(error).__name__}: {str(error)[:300]} ({where})"
  return "read", ""


if __name__ == "__main__":
  name, first, cases, seed, patience, folder = sys.argv[1:]
  _main(
    name,
    int(first),
    int(cases),
    int(seed),
    float(patience),
    pathlib.Path(folder),
  )
