"""The roll call: who is missing, and who does not belong."""

import concurrent.futures
import logging
import os
import shutil
import socket
import subprocess
import sys
import time

from jax._src import clusters
import pytest

from vitkd_jax.cluster import rendezvous, startup


@pytest.fixture
def address():
  # An address of this process's own: nobody else takes its ports meanwhile.
  pid = os.getpid()
  host = f"127.{pid >> 16 & 127 | 128}.{pid >> 8 & 255}.{pid & 255}"
  with socket.socket() as free:
    free.bind((host, 0))
    return f"{host}:{free.getsockname()[1]}"


def call(address, indices, count, timeout):
  """What each of the processes gets: None, or its error."""
  places = [rendezvous.Place(address, c, i) for i, c in zip(indices, count)]  # noqa: B905

  def one(place):
    time.sleep(0.1 * (place.count - place.index))  # the first comes last
    try:
      return rendezvous.roll_call(place, timeout)
    except rendezvous.MissingError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    return list(pool.map(one, places))


def test_all_are_there_and_the_port_is_free_again(address):
  assert call(address, range(5), [5] * 5, timeout=120) == [None] * 5
  host, port = address.split(":")
  with socket.create_server((host, int(port))):
    pass


def test_the_missing_are_named_to_all(address):
  began = time.monotonic()
  told = call(address, (0, 2, 5), [6] * 3, timeout=5)
  assert time.monotonic() - began < 120
  assert len(set(told)) == 1
  assert (
    f"timed out after 5 s at {address} waiting for 3 of 6 processes: 1, 3, 4;"
    in told[0]
  )


def test_without_process_0_its_address_is_named(address):
  (told,) = call(address, (3,), [4], timeout=1)
  assert told.startswith(
    f"process 3 timed out after 1 s waiting for process 0 at {address}"
  )


def test_another_number_of_processes_is_told_to_all(address):
  told = call(address, (0, 1, 2), (3, 3, 4), timeout=20)
  assert told[0] == told[2]
  assert (
    "process 2 was started with num_processes=4, process 0 with 3" in told[0]
  )


def connected(host, port):
  """A connection, as soon as somebody listens."""
  deadline = time.monotonic() + 120
  while True:
    try:
      return socket.create_connection((host, port))
    except ConnectionRefusedError:
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_a_stranger_does_not_count(address):
  host, port = address.split(":")
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(
      rendezvous.roll_call, rendezvous.Place(address, 2, 0), 120
    )
    with connected(host, int(port)) as stranger:
      stranger.sendall(b"GET / HTTP/1.1\n\n")
      second = pool.submit(
        rendezvous.roll_call, rendezvous.Place(address, 2, 1), 120
      )
      assert (first.result(), second.result()) == (None, None)


@pytest.mark.parametrize(
  "given, said",
  [
    (("a:1", 2, None), "give all three"),
    ((None, 2, 0), "give all three"),
    (("nowhere", 2, 0), "host:port with a port .*, got 'nowhere'"),
    (("a:1", 2, 2), r"expected process_id in \[0, 2\), got 2"),
  ],
)
def test_what_is_not_known_is_asked_for(given, said):
  with pytest.raises(ValueError, match=said):
    startup.start(*given)


def test_alone_it_opens_no_port_and_notices_sigterm():
  code = """
import os, signal, socket
import jax
from vitkd_jax.cluster import preemption, startup
def open_sockets():
  links = [f"/proc/self/fd/{f}" for f in os.listdir("/proc/self/fd")]
  names = [os.readlink(link) for link in links if os.path.exists(link)]
  return {name for name in names if name.startswith("socket:")}
before = open_sockets()
with preemption.listening():
  startup.start()
  preemption.heed()
  assert (jax.process_count(), startup.process_count()) == (1, 1)
  assert open_sockets() == before
  assert not preemption.noticed()
  signal.raise_signal(signal.SIGTERM)
  assert preemption.noticed()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True, text=True, env=env, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


# Stands between a process and its wall clock.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>
static _Atomic long ahead;
void turn(long seconds) { ahead = seconds; }
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += ahead;
  return status;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  now->tv_sec = fine.tv_sec;
  now->tv_usec = fine.tv_nsec / 1000;
  return 0;
}
"""


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_alone_it_outlives_a_jump_of_the_wall_clock(tmp_path, seconds):
  """JAX looks at heartbeats once a second, and aborts at once."""
  if not (compiler := shutil.which("cc")):
    pytest.skip("needs a C compiler, for a clock that the test turns")
  source, library = tmp_path / "clock.c", tmp_path / "clock.so"
  source.write_text(CLOCK)
  subprocess.run(
    [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
  )
  code = f"""
import ctypes, time
from vitkd_jax.cluster import startup
startup.start()
before = time.time()
ctypes.CDLL({str(library)!r}).turn(ctypes.c_long({seconds}))
assert abs(time.time() - before - {seconds}) < 50
deadline = time.monotonic() + 3
while time.monotonic() < deadline:
  pass
"""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "LD_PRELOAD": str(library)}
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True, text=True, env=env, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  "given, said",
  [
    (dict(coordinator="host:99999"), r"port in \[1, 65535\], got 'host:99999'"),
    (dict(num_processes=-2), "expected num_processes >= 1, got -2"),
    (dict(timeout=float("nan")), "expected a finite join_timeout > 0, got nan"),
  ],
)
def test_a_slip_of_the_pen_is_refused(given, said):
  given = dict(coordinator="h:1", num_processes=2, process_id=0) | given
  with pytest.raises(ValueError, match=said):
    startup.start(**given)


def test_a_word_in_place_of_a_number_is_named(monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(ValueError, match="to be an integer, got 'two'"):
    startup.start("h:1")


def test_a_port_that_is_taken_is_named(address):
  host, port = address.split(":")
  with (
    socket.create_server((host, int(port))),
    pytest.raises(rendezvous.MissingError, match=f"cannot listen at {address}"),
  ):
    rendezvous.roll_call(rendezvous.Place(address, 2, 0), timeout=1)


class Unwilling(clusters.ClusterEnv):
  """As Kubernetes without a token, or a job: its client raises."""

  opt_in_only_method = False

  @classmethod
  def is_env_present(cls):
    raise LookupError("no token\nin this pod")


def test_a_cluster_that_cannot_be_asked_is_no_cluster(monkeypatch, caplog):
  monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [Unwilling])
  assert startup._detect(None, None, None, 10) is None
  assert "(no token): this process runs alone" in caplog.text


def test_part_of_a_place_is_not_run_alone(monkeypatch):
  monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [Unwilling])
  with pytest.raises(ValueError, match="give all three"):
    startup.start("h:1")


PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")


@pytest.mark.parametrize(
  "given, found",
  [
    ({}, {}),
    ({"http_proxy": "p"}, {"no_proxy": "h,localhost,127.0.0.1"}),
    (
      {"grpc_proxy": "p", "no_proxy": "a,b"},
      {"no_proxy": "a,b,h,localhost,127.0.0.1"},
    ),
    (
      {"https_proxy": "p", "no_grpc_proxy": "a"},
      {
        "no_grpc_proxy": "a,h,localhost,127.0.0.1",
        "no_proxy": "h,localhost,127.0.0.1",
      },
    ),
  ],
)
def test_the_coordinator_is_not_asked_through_a_proxy(
  monkeypatch, given, found
):
  for name in (*PROXIES, "no_proxy", "no_grpc_proxy"):
    monkeypatch.setenv(name, "")  # so that what is set below is taken back
    monkeypatch.delenv(name)
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(logging.getLogger("jax._src.distributed"), "filters", [])
  startup._reach_directly("h:1")
  names = ("no_proxy", "no_grpc_proxy")
  assert {n: os.environ[n] for n in names if n in os.environ} == found


def test_a_proxy_that_does_not_answer_is_not_waited_for():
  code = "from vitkd_jax.cluster import startup; startup.start()"
  env = {
    name: value for name, value in os.environ.items() if "proxy" not in name
  }
  env |= dict.fromkeys(PROXIES, "http://127.0.0.1:9")  # nobody listens there
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True, text=True, check=False, timeout=250,  # of 307 s
    env=env | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""


@pytest.mark.parametrize(
  "option, value",
  [
    (None, None),
    ("jax_disable_jit", "1"),
    ("jax_enable_x64", "1"),
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_numpy_rank_promotion", "raise"),
    ("jax_transfer_guard", "disallow"),
  ],
)
def test_options_of_jax_that_are_in_the_way_are_named(option, value):
  code = (
    "from vitkd_jax.cluster import startup\n"
    "try:\n"
    "  startup.check_environment()\n"
    "except ValueError as error:\n"
    "  print(error)\n"
  )
  said = option.upper() if option else ""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, **({said: value} if option else {})},
  )
  assert done.stdout.startswith(said)
  assert bool(done.stdout) == bool(said)
