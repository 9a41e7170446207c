"""Joins the processes of a run into one JAX.

On Cloud TPU and under Slurm, Open MPI and Kubernetes JAX finds the coordinator,
the number of processes and the index of each by itself. Elsewhere three flags,
or the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
give them.
"""

import logging
import os
import traceback
from typing import Any

import jax

from vitkd_jax.cluster import rendezvous

_log = logging.getLogger(__name__)

# JAX's default, 100 s, would be most of what a failure costs.
_HEARTBEAT_SECONDS = 30
# Far beyond any compilation. A process that died ends the others sooner, by its
# missing heartbeat.
_MOST_SKEW_SECONDS = 3600


# Values of JAX's options under which the programs here fail; users set them
# through environment variables.
_UNFIT = {
  "jax_disable_jit": (True,),
  "jax_enable_x64": (True,),
  "jax_numpy_dtype_promotion": ("strict",),
  "jax_numpy_rank_promotion": ("raise",),
  "jax_transfer_guard": ("disallow", "disallow_explicit"),
}


_place: rendezvous.Place | None = None


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout: float = 300,
) -> None:
  """Joins this process to the others; call it before anything else of JAX.

  A single process joins nobody: JAX's heartbeat is measured by the wall clock,
  whose jump would end it.

  Args:
    coordinator: "host:port" of process 0; None detects it.
    num_processes: of the run; None detects it; 1 looks for no others.
    process_id: index of this process; None detects it.
    timeout: seconds to wait for the other processes.

  Raises:
    ValueError: only some of the three are known, or one is invalid.
    rendezvous.MissingError: processes are missing; the message names them.
  """
  global _place
  if not 0 < timeout < float("inf"):
    raise ValueError(f"expected a finite join_timeout > 0, got {timeout}")
  place = _find(coordinator, num_processes, process_id, timeout)
  if place is None or place.count == 1:
    return
  _reach_directly(place.coordinator)
  rendezvous.roll_call(place, timeout)
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
  """Refuses options of JAX under which the programs here fail.

  Raises:
    ValueError: one is set; the message names its environment variable.
  """
  for name, unfit in _UNFIT.items():
    value = _option(name)
    if value in unfit:
      raise ValueError(
        f"{name.upper()}={value} is set in the environment, which is not "
        "supported: unset it"
      )


def without_device(error: Exception) -> str:
  """A sentence for users where JAX found no device, else "".

  Args:
    error: that JAX raised, with its traceback.
  """
  frames = traceback.extract_tb(error.__traceback__)
  if not any(frame.filename.endswith("xla_bridge.py") for frame in frames):
    return ""
  platforms = _option("jax_platforms")
  reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
  reason = reason.rstrip(".") or "there is none of that kind"
  return (
    f"JAX found no device to compute on with JAX_PLATFORMS={platforms or ''}: "
    f"{reason}; unset it, or set it to cpu"
  )


def _option(name: str) -> Any:
  """The value of an option of JAX, whose types do not list them."""
  return getattr(jax.config, name)


def process_count() -> int:
  """Number of processes; 1 before `start`. Initialises no device."""
  return 1 if _place is None else _place.count


def meet(place: str) -> None:
  """Waits until every process has come to the same place in the program.

  Before the first collective between some devices: JAX's collectives on CPU
  fail where one process comes to it 30 s after another, for which a compilation
  on shared cores is enough.

  Args:
    place: a name, used once in the run of a process.
  """
  if process_count() > 1:
    # JAX has a public barrier only in the form of a collective.
    from jax._src import distributed

    client: Any = distributed.global_state.client
    client.wait_at_barrier(f"vitkd_jax/{place}", _MOST_SKEW_SECONDS * 1000)


def _reach_directly(address: str) -> None:
  """Exempts the coordinator from the environment's proxy, which gRPC heeds."""
  if not any(map(os.environ.get, ("grpc_proxy", "https_proxy", "http_proxy"))):
    return
  hosts = [address.rpartition(":")[0] or address, "localhost", "127.0.0.1"]
  for name in ("no_grpc_proxy", "no_proxy"):
    old = os.environ.get(name)
    if old or name == "no_proxy":
      os.environ[name] = ",".join([*filter(None, [old]), *hosts])
  # JAX warns of a hang that this exemption prevents.
  logging.getLogger("jax._src.distributed").addFilter(
    lambda record: "proxy variable" not in record.getMessage()
  )


def _find(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> rendezvous.Place | None:
  """What is given, else what the environment says; None for one process."""
  if num_processes == 1:
    return None
  env = os.environ.get
  coordinator = coordinator or env("JAX_COORDINATOR_ADDRESS")
  if num_processes is None:
    num_processes = _number("JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number("JAX_PROCESS_ID")
  place = _place_of(coordinator, num_processes, process_id)
  if place is None:
    place = _detect(coordinator, num_processes, process_id, timeout)
  given = (coordinator, num_processes, process_id)
  if place is None and any(value is not None for value in given):
    raise ValueError(
      "expected coordinator, num_processes and process_id, got "
      f"{coordinator}, {num_processes} and {process_id}: give all three, as "
      "no cluster was detected that provides the rest"
    )
  return place


def _number(variable: str) -> int | None:
  """The integer in an environment variable; None if it is unset."""
  text = os.environ.get(variable)
  try:
    return int(text) if text else None
  except ValueError:
    raise ValueError(
      f"expected {variable} to be an integer, got {text!r}"
    ) from None


def _detect(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> rendezvous.Place | None:
  # JAX has no public name for its detection.
  from jax._src import clusters

  try:
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      coordinator, num_processes, process_id, None, None, round(timeout)
    )
  # Whatever the clients raise, such as in a pod without a token or a job.
  except Exception as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    _log.warning(
      "cannot ask the cluster for other processes (%s): this process runs "
      "alone; to run several, give --coordinator, --num-processes and "
      "--process-id",
      reason,
    )
    return None
  coordinator, num_processes, process_id, devices = found
  devices = None if devices is None else list(devices)
  return _place_of(coordinator, num_processes, process_id, devices)


def _place_of(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  local_device_ids: list[int] | None = None,
) -> rendezvous.Place | None:
  """The place, checked; None if a part is unknown."""
  if coordinator is None or count is None or index is None:
    return None
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(
      "expected coordinator to be host:port with a port in [1, 65535], got "
      f"{coordinator!r}"
    )
  if count < 1:
    raise ValueError(f"expected num_processes >= 1, got {count}")
  if not 0 <= index < count:
    raise ValueError(
      f"expected process_id in [0, {count}), got {index} with "
      f"num_processes={count}"
    )
  return rendezvous.Place(coordinator, count, index, local_device_ids)
