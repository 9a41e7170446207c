"""Command lines in processes of their own that need not import it all again.

A server has imported the package and computed nothing; each command is a fork
of it, with its own arguments, folder, environment, streams and status. What
depends on the environment at import (JAX's own settings) needs a real start.
"""

import atexit
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = ("train", "doctor", "evaluate", "report", "convert", "prepare")


class Server:
  """Runs commands until `close`."""

  def __init__(self):
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      cwd=ROOT,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run(self, module, *args, cwd=ROOT, env=None):
    """What `subprocess.run` returns of `python -m vitkd_jax.MODULE ARGS`."""
    with tempfile.TemporaryDirectory() as folder:
      paths = [os.path.join(folder, name) for name in ("out", "err")]
      name = f"vitkd_jax.{module}"
      request = [name, args, str(cwd), dict(env or os.environ), paths]
      print(json.dumps(request), file=self._process.stdin, flush=True)
      status = int(self._process.stdout.readline())
      out, err = (pathlib.Path(path).read_text() for path in paths)
    return subprocess.CompletedProcess([name, *args], status, out, err)

  def close(self):
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


def _serve():
  for name in COMMANDS:
    runpy.run_module(f"vitkd_jax.{name}", run_name="imported")
  requests, answers = os.dup(0), os.dup(1)
  with open(requests) as lines:
    for line in lines:
      if not (child := os.fork()):
        os.close(answers)
        _become(*json.loads(line))
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      os.write(answers, f"{status}\n".encode())


def _become(name, args, cwd, environment, paths):
  """This process is the command from here on; its end is the process's."""
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environment)
  for number, path in ((0, os.devnull), *zip((1, 2), paths, strict=True)):
    flags = os.O_RDWR | os.O_CREAT if number else os.O_RDONLY
    file = os.open(path, flags)
    os.dup2(file, number)
    os.close(file)
  sys.argv = [name, *args]
  sys.path[0] = cwd
  status = 1
  try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    status = 0
  except SystemExit as end:
    status = int(end.code or 0)
  except BaseException:
    traceback.print_exc()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  # To take down all that was imported would last a second.
  os._exit(status)


if __name__ == "__main__":
  _serve()
