#!/usr/bin/env python3
r"""Starts the processes of one run on this machine.

  python launch/local_processes.py 2 --devices 4 -- \
      -m vitkd_jax.train --config configs/quickstart.py --workdir runs/two
  python launch/local_processes.py 8 --gpus -- -m vitkd_jax.train ...

Python runs what follows "--" in each process, which gets an index, one GPU or
some virtual CPU devices, and the address of process 0. Signals go to all of
them; when one fails, the others are ended and its exit status is returned.
"""

import argparse
from collections.abc import Sequence
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

# Time for processes to save their state after one of them has failed.
_GRACE_SECONDS = 10


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status.

  Args:
    argv: the arguments; the process's by default.
  """
  args = _parse(argv)
  environments = [_environment(args, i) for i in range(args.processes)]
  command = [sys.executable, *args.command]
  if args.dry_run:
    for added in environments:
      words = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
      print(" ".join([*words, shlex.join(command)]))
    return 0
  children, readers, early = [], [], []
  previous = {}
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
      previous[number] = signal.signal(number, lambda n, _: early.append(n))
  try:
    for index, added in enumerate(environments):
      child = subprocess.Popen(
        command,
        env={**os.environ, **added},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A terminal's Ctrl-C comes to us alone, so that each gets it once.
        process_group=0,
      )
      children.append(child)
      reader = threading.Thread(target=_copy, args=(index, child.stdout))
      reader.start()
      readers.append(reader)
    # A signal that came while the processes were starting waits until now.
    for number in previous:
      signal.signal(number, lambda n, _: _send(children, n))
    for number in early:
      _send(children, number)
    status = _wait(children)
  finally:
    _end(children)
    for reader in readers:
      reader.join()
    for number, handler in previous.items():
      signal.signal(number, handler)
  return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("processes", type=int, help="number of processes")
  parser.add_argument(
    "--devices", type=int, default=1, help="virtual CPU devices per process"
  )
  parser.add_argument(
    "--gpus", action="store_true", help="one GPU per process, instead"
  )
  parser.add_argument(
    "--port", type=int, default=0, help="port of process 0; default: a free one"
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print the commands and run none"
  )
  parser.add_argument("command", nargs="+", help="after --, for Python")
  args = parser.parse_args(argv)
  if args.processes < 1 or args.devices < 1:
    parser.error("expected processes and --devices >= 1")
  args.port = args.port or _free_port()
  return args


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def _environment(args, index) -> dict[str, str]:
  """The variables that are added to one process's environment."""
  added = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{args.port}",
    "JAX_NUM_PROCESSES": str(args.processes),
    "JAX_PROCESS_ID": str(index),
    "PYTHONUNBUFFERED": "1",
  }
  if args.gpus:
    return {**added, "CUDA_VISIBLE_DEVICES": str(index)}
  name = "--xla_force_host_platform_device_count"
  others = [
    flag
    for flag in os.environ.get("XLA_FLAGS", "").split()
    if not flag.startswith(name)
  ]
  flags = " ".join([*others, f"{name}={args.devices}"])
  return {**added, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _copy(index, stream):
  """Copies a process's lines to our output, prefixed by its index."""
  with stream:
    for line in stream:
      text = f"[{index}] ".encode() + line.rstrip(b"\n") + b"\n"
      sys.stdout.buffer.write(text)
      sys.stdout.buffer.flush()


def _send(children, number):
  for child in children:
    if child.poll() is None:
      child.send_signal(number)


def _wait(children) -> int:
  """0 when all are done; the status of the one that failed first."""
  ended = queue.SimpleQueue()
  for (
    child
  ) in children:  # one thread each, so that the first to end comes first
    wait = lambda child=child: ended.put(child.wait())  # noqa: E731
    threading.Thread(target=wait, daemon=True).start()
  for _ in children:
    status = ended.get()
    if status:
      # As in a shell: 128 + the signal.
      return status if status > 0 else 128 - status
  return 0


def _end(children):
  """Ends what still runs, first by SIGTERM, then by SIGKILL."""
  _send(children, signal.SIGTERM)
  deadline = time.monotonic() + _GRACE_SECONDS
  for child in children:
    try:
      child.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
      child.kill()
      child.wait()


if __name__ == "__main__":
  sys.exit(main())
