"""From separate processes to one JAX: who is there, and who is missing.

On Cloud TPU and under Slurm, Open MPI and Kubernetes JAX finds coordinator,
number and id of a process by itself; elsewhere three flags or the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say them.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import logging
import os
import socket
import time
import traceback

import jax

_log = logging.getLogger(__name__)

# JAX's own 100 s would be most of what a failure costs.
_HEARTBEAT_SECONDS = 30


# Options of JAX, by environment variable, that the programs here do not work
# with, and their values that are in the way.
_UNFIT = {
  "jax_disable_jit": (True,),
  "jax_enable_x64": (True,),
  "jax_numpy_dtype_promotion": ("strict",),
  "jax_numpy_rank_promotion": ("raise",),
  "jax_transfer_guard": ("disallow", "disallow_explicit"),
}


class MissingError(RuntimeError):
  """Not all processes came, or they do not agree on how many they are."""


@dataclasses.dataclass(frozen=True)
class Place:
  """This process among all of a run.

  Attributes:
    coordinator: "host:port" that process 0 listens on.
    count: number of processes.
    index: of this one.
    local_device_ids: of the machine's devices, those of this process; None
      for all.
  """

  coordinator: str
  count: int
  index: int
  local_device_ids: list[int] | None = None


_place: Place | None = None


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout: float = 300,
) -> None:
  """Joins this process to the others; to be called before anything of JAX.

  A single process joins itself, on this machine's loopback alone: notices of
  preemption only reach a process that has joined.

  Args:
    coordinator: "host:port" of process 0; None to find it.
    num_processes: of the run; None to find it; 1 looks for no others.
    process_id: of this one; None to find it.
    timeout: seconds to wait for the others.

  Raises:
    ValueError: only some of the three are known, or one is no such thing.
    MissingError: processes did not come; the message says which.
  """
  global _place
  if not 0 < timeout < float("inf"):
    raise ValueError(f"join_timeout={timeout}: wanted a positive number")
  place = _find(coordinator, num_processes, process_id, timeout)
  _reach_directly("localhost" if place is None else place.coordinator)
  if place is None or place.count == 1:
    # A port that is free may be taken a moment later.
    _retry(_join_alone, times=3)
    _place = Place("localhost", 1, 0)
    return
  roll_call(place, timeout)
  jax.distributed.initialize(
    place.coordinator,
    place.count,
    place.index,
    place.local_device_ids,
    cluster_detection_method="deactivate",
    initialization_timeout=round(timeout),
    heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
  )
  _place = place


def check_environment() -> None:
  """Raises ValueError for an option of JAX that these programs fail under."""
  for name, unfit in _UNFIT.items():
    value = getattr(jax.config, name)
    if value in unfit:
      raise ValueError(
        f"{name.upper()}={value} is set in the environment, which this program "
        "does not work with: unset it"
      )


def without_device(error: Exception) -> str:
  """A sentence about an error of JAX that found no device; else ""."""
  frames = traceback.extract_tb(error.__traceback__)
  if not any(frame.filename.endswith("xla_bridge.py") for frame in frames):
    return ""
  platforms = jax.config.jax_platforms
  reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
  reason = reason.rstrip(".") or "there is none of that kind"
  return (
    f"JAX found no device to compute on with JAX_PLATFORMS={platforms or ''}: "
    f"{reason}; unset it, or set it to cpu"
  )


def process_count() -> int:
  """Processes that `start` joined; 1 before it. Initialises no device."""
  return 1 if _place is None else _place.count


def _reach_directly(address: str) -> None:
  """Exempts the coordinator from the environment's proxy, which gRPC heeds."""
  if not any(map(os.environ.get, ("grpc_proxy", "https_proxy", "http_proxy"))):
    return
  hosts = [address.rpartition(":")[0] or address, "localhost", "127.0.0.1"]
  for name in ("no_grpc_proxy", "no_proxy"):
    old = os.environ.get(name)
    if old or name == "no_proxy":
      os.environ[name] = ",".join([*filter(None, [old]), *hosts])
  # JAX warns of a hang, which this has averted.
  logging.getLogger("jax._src.distributed").addFilter(
    lambda record: "proxy variable" not in record.getMessage()
  )


def _find(coordinator, num_processes, process_id, timeout) -> Place | None:
  """What is given, then what the environment says; None for one process."""
  if num_processes == 1:
    return None
  env = os.environ.get
  coordinator = coordinator or env("JAX_COORDINATOR_ADDRESS")
  if num_processes is None:
    num_processes = _number("JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number("JAX_PROCESS_ID")
  found = (coordinator, num_processes, process_id)
  if None not in found:
    return _checked(Place(*found))
  place = _detect(*found, timeout)
  if place is None and any(value is not None for value in found):
    raise ValueError(
      f"coordinator={coordinator}, num_processes={num_processes}, process_id="
      f"{process_id}: give all three, for no cluster was found that tells the "
      "rest"
    )
  return place


def _number(variable: str) -> int | None:
  """The whole number in an environment variable; None where it is unset."""
  text = os.environ.get(variable)
  try:
    return int(text) if text else None
  except ValueError:
    raise ValueError(f"{variable}={text!r}: wanted a whole number") from None


def _detect(coordinator, num_processes, process_id, timeout) -> Place | None:
  # JAX has no public name for what it finds; where this one moves, it is
  # asked to do all by itself, and no missing process is named.
  from jax._src import clusters

  try:
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      coordinator, num_processes, process_id, None, None, round(timeout)
    )
  # Such as a pod without a token or a job: whatever the clients raise.
  except Exception as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    _log.warning(
      "no cluster that tells of other processes (%s): this one runs alone; "
      "for several, give --coordinator, --num-processes and --process-id",
      reason,
    )
    return None
  if None in found[:3]:
    return None
  return _checked(Place(*found[:3], local_device_ids=found[3]))


def _checked(place: Place) -> Place:
  host, _, port = place.coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(
      f"coordinator={place.coordinator!r}: wanted host:port, the port from 1 to"
      " 65535"
    )
  if place.count < 1:
    raise ValueError(f"num_processes={place.count}: wanted at least 1")
  if not 0 <= place.index < place.count:
    raise ValueError(
      f"process_id={place.index}: wanted 0 to {place.count - 1}, for "
      f"num_processes={place.count}"
    )
  return place


def _join_alone() -> None:
  # Within one process the CPU's devices meet without Gloo's sockets.
  jax.config.update("jax_cpu_collectives_implementation", None)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  jax.distributed.initialize(
    address,
    num_processes=1,
    process_id=0,
    cluster_detection_method="deactivate",
    coordinator_bind_address=address,
    heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
  )


def _retry(function: Callable[[], None], times: int) -> None:
  for left in reversed(range(times)):
    try:
      return function()
    except RuntimeError:
      if not left:
        raise


def roll_call(place: Place, timeout: float) -> None:
  """Returns when all processes are there; says which ones are not.

  JAX's own start aborts where one is missing, and names none. Process 0
  listens where JAX's coordinator will; each other one connects and says who
  it is.

  Raises:
    MissingError: after `timeout` seconds, or when two disagree.
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
        "take another port, or end what uses it"
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


def _register(place, peer, there) -> str:
  """Enters one that called; returns what is wrong with it, or nothing."""
  peer.settimeout(5)
  try:
    words = peer.makefile("r").readline().split()
    index, count = (int(word) for word in words)
  except (OSError, ValueError):
    _log.warning("someone else called at %s", place.coordinator)
    return ""
  if index in there:  # it was started again, or there are two of it
    there.pop(index).close()
  there[index] = peer
  if count != place.count or not 0 < index < count:
    return (
      f"process {index} was started for {count} processes, process 0 for "
      f"{place.count}: start all with the same number"
    )
  return ""


def _missing(place, there, timeout) -> str:
  absent = [i for i in range(1, place.count) if i not in there]
  named = ", ".join(map(str, absent[:20])) + (", ..." if absent[20:] else "")
  return (
    f"{len(absent)} of {place.count} processes did not come to "
    f"{place.coordinator} within {timeout:g} s: {named}; see their logs, and "
    "whether they reach this address"
  )


def _answer(place, deadline, timeout) -> None:
  """One that is not process 0: calls until it is heard, then waits."""
  host, _, port = place.coordinator.rpartition(":")
  while True:
    try:
      with socket.create_connection((host, int(port)), timeout=5) as peer:
        peer.sendall(f"{place.index} {place.count}\n".encode())
        # Process 0 knows who is missing and says so a moment after us.
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
        f"process 0 did not answer process {place.index} at "
        f"{place.coordinator} within {timeout:g} s; see its log, and whether "
        "this machine reaches that address"
      )
    time.sleep(0.2)
