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
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder, "out.json")
    done = subprocess.run(
      [sys.executable, "-m", "fuzz.runner", target]
      + [str(cases), str(seed), str(patience), folder],
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(
          [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]
        ),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL,
      text=True,
      errors="replace",
    )
    found = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode or "read" not in found:
      last = pathlib.Path(folder, "case")
      case = last.read_text() if last.exists() else "none"
      found = {"read": 0, "refused": 0} | found
      found["failed"] = [
        *found.get("failed", []),
        f"the process ended with {done.returncode} at case {case}:\n"
        + done.stdout[-5000:],
      ]
    return found


def _main(name: str, cases: int, seed: int, patience: float, folder) -> None:
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
  found = {"read": 0, "refused": 0, "failed": []}
  for i in range(cases):
    (folder / "case").write_text(str(i))
    faulthandler.dump_traceback_later(patience, exit=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
      rng = random.Random(f"{name}/{seed}/{i}")
      outcome, sentence = _outcome(target, rng, pathlib.Path(place))
    if outcome == "failed":
      found["failed"].append(f"case {i}: {sentence}")
    else:
      found[outcome] += 1
  faulthandler.cancel_dump_traceback_later()
  (folder / "out.json").write_text(json.dumps(found))


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
  name, cases, seed, patience, folder = sys.argv[1:]
  _main(name, int(cases), int(seed), float(patience), pathlib.Path(folder))
