"""Two writers, one workdir on gs://, where no kernel keeps a lock."""

import concurrent.futures
import contextlib
import json
import os
import threading

import pytest

from vitkd_jax.runs import lock

WORKDIR = "gs://runs/one"


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  """Renewals come soon; a dead writer is waited for as long as ever."""
  monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)


def put(server, **held):
  """Leaves the object of another writer, which nobody renews."""
  content = {"host": "gone", "pid": 7, "since": "2026", **held}
  with server.store.lock:
    number = next(server.store.numbers)
    server.store.objects["runs", "one/lock"] = (
      number,
      json.dumps({"token": "x", **content}).encode(),
    )


def held(server):
  with server.store.lock:
    return json.loads(server.store.objects["runs", "one/lock"][1])


def test_the_second_is_refused_and_the_end_leaves_nothing(server):
  with lock.hold(WORKDIR):
    said = f"{WORKDIR} is in use by process {os.getpid()} on "
    with pytest.raises(lock.HeldError, match=said), lock.hold(WORKDIR):
      pass
  assert server.store.names("runs") == []
  with lock.hold(WORKDIR):
    pass


def test_of_many_at_once_one_has_it(server):
  done = threading.Barrier(4)

  def one():
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(lock.hold(WORKDIR))
        return True
      except lock.HeldError:
        return False
      finally:
        done.wait(120)  # held until all have their answer

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    told = [each.result() for each in [pool.submit(one) for _ in range(4)]]
  assert sorted(told) == [False, False, False, True]


def test_a_dead_predecessor_locks_nobody_out(server, monkeypatch, caplog):
  monkeypatch.setattr(lock, "_STALE_SECONDS", 0.2)
  put(server)
  with lock.hold(WORKDIR):
    assert held(server)["pid"] == os.getpid()
    assert "may have ended; waiting up to 0.2 s" in caplog.text
  assert server.store.names("runs") == []


def test_one_that_ends_meanwhile_is_not_waited_for(server, monkeypatch):
  monkeypatch.setattr(lock, "_STALE_SECONDS", 1e6)
  put(server)
  read = lock._Lease._read
  reads = []

  def ends_after_three(self):
    reads.append(self)
    if len(reads) == 3:
      with server.store.lock:
        server.store.objects.clear()
    return read(self)

  monkeypatch.setattr(lock._Lease, "_read", ends_after_three)
  with lock.hold(WORKDIR):
    assert held(server)["pid"] == os.getpid()


def test_one_that_stood_still_ends_when_another_took_over(server, monkeypatch):
  ended = threading.Event()
  monkeypatch.setattr(lock._Lease, "_end", lambda self, now: ended.set())
  with lock.hold(WORKDIR):
    put(server)
    assert ended.wait(120)


def test_the_other_ones_object_is_left_alone(server, monkeypatch):
  monkeypatch.setattr(lock, "_BEAT_SECONDS", 1e6)
  with lock.hold(WORKDIR):
    put(server)
  assert held(server)["host"] == "gone"


def test_a_service_that_stumbles_ends_nothing(server, caplog):
  failed = threading.Event()

  def refused(method, path):
    if failed.is_set() or method != "POST":
      return False
    failed.set()
    return True

  with lock.hold(WORKDIR):
    server.store.refused = refused
    assert failed.wait(120)
    before = held(server)["renewals"]
    deadline = threading.Event()
    for _ in range(2400):
      if held(server)["renewals"] > before:
        break
      deadline.wait(0.05)
    assert held(server)["renewals"] > before
  assert "could not be renewed" in caplog.text
