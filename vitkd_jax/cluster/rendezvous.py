"""The roll call of processes before JAX starts.

JAX's own start aborts where a process is missing, and does not name it.
"""

import contextlib
import dataclasses
import logging
import socket
import time

_log = logging.getLogger(__name__)


class MissingError(RuntimeError):
  """Processes are missing, or disagree on how many they are."""


@dataclasses.dataclass(frozen=True)
class Place:
  """This process among all processes of a run.

  Attributes:
    coordinator: "host:port" that process 0 listens on.
    count: number of processes.
    index: of this process, in [0, count).
    local_device_ids: devices of the machine that belong to this process; None
      for all.
  """

  coordinator: str
  count: int
  index: int
  local_device_ids: list[int] | None = None


def roll_call(place: Place, timeout: float) -> None:
  """Returns when all processes are there.

  Process 0 listens where JAX's coordinator will; every other process connects
  and sends its index.

  Args:
    place: this process.
    timeout: seconds to wait for the others.

  Raises:
    MissingError: processes are missing after `timeout` seconds, which the
      message names, or two disagree on the number of processes.
  """
  deadline = time.monotonic() + timeout
  if place.index:
    return _answer(place, deadline, timeout)
  host, _, port = place.coordinator.rpartition(":")
  local = host in ("localhost", "127.0.0.1")
  there: dict[int, socket.socket] = {}
  problem = ""
  with contextlib.ExitStack() as stack:
    try:
      listener = socket.create_server(
        (host if local else "", int(port)), backlog=place.count
      )
    except OSError as error:
      raise MissingError(
        f"process 0 cannot listen at {place.coordinator} ({error.strerror}): "
        "choose another port, or stop the program that uses it"
      ) from None
    stack.enter_context(listener)
    while len(there) < place.count - 1 and not problem:
      listener.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        peer, _ = listener.accept()
      except TimeoutError:
        problem = _missing(place, there, timeout)
        break
      stack.enter_context(peer)
      problem = _register(place, peer, there)
    for peer in there.values():
      with contextlib.suppress(OSError):
        peer.sendall((problem or "go").encode() + b"\n")
    for peer in there.values():  # they close first: the port stays free
      with contextlib.suppress(OSError):
        peer.settimeout(1)
        peer.recv(1)
  if problem:
    raise MissingError(problem)


def _register(
  place: Place, peer: socket.socket, there: dict[int, socket.socket]
) -> str:
  """Adds a process that connected; returns what is wrong with it, or ""."""
  peer.settimeout(5)
  try:
    words = peer.makefile("r").readline().split()
    index, count = (int(word) for word in words)
  except (OSError, ValueError):
    _log.warning(
      "ignored a connection to %s that is not from this run", place.coordinator
    )
    return ""
  if index in there:  # it was restarted, or started twice
    there.pop(index).close()
  there[index] = peer
  if count != place.count or not 0 < index < count:
    return (
      f"process {index} was started with num_processes={count}, process 0 with "
      f"{place.count}: start all processes with the same number"
    )
  return ""


def _missing(
  place: Place, there: dict[int, socket.socket], timeout: float
) -> str:
  absent = [i for i in range(1, place.count) if i not in there]
  named = ", ".join(map(str, absent[:20])) + (", ..." if absent[20:] else "")
  return (
    f"timed out after {timeout:g} s at {place.coordinator} waiting for "
    f"{len(absent)} of {place.count} processes: {named}; read their logs, and "
    "check that they can reach this address"
  )


def _answer(place: Place, deadline: float, timeout: float) -> None:
  """Connects to process 0, and waits for its answer."""
  host, _, port = place.coordinator.rpartition(":")
  while True:
    try:
      with socket.create_connection((host, int(port)), timeout=5) as peer:
        peer.sendall(f"{place.index} {place.count}\n".encode())
        # Process 0 knows who is missing, and answers after our own deadline.
        peer.settimeout(max(deadline - time.monotonic(), 0.01) + timeout + 5)
        said = peer.makefile("r").readline().strip()
    except OSError:
      said = ""
    if said == "go":
      return
    if said:
      raise MissingError(said)
    if time.monotonic() > deadline:
      raise MissingError(
        f"process {place.index} timed out after {timeout:g} s waiting for "
        f"process 0 at {place.coordinator}; read its log, and check that this "
        "machine can reach that address"
      )
    time.sleep(0.2)
