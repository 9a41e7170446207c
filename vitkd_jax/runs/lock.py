"""One writer per workdir: a lock that ends with its process.

On a disk it is the kernel's advisory lock on a file, which NFS clients forward
to their server. Buckets have no locks: there an object names the writer, which
renews it every few seconds; a start that finds the object waits to see whether
it is still renewed.
"""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from typing import Any
import uuid

from vitkd_jax import remote

_log = logging.getLogger(__name__)

# Between two renewals of an object.
_BEAT_SECONDS = 10.0
# Without a renewal (four are missed) its writer is taken for dead.
_STALE_SECONDS = 45.0
# Errors of file systems without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


# In the message of every refusal.
IN_USE = "is in use by"


class HeldError(ValueError):
  """Another process writes to the workdir; the message names it."""


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
  """Context that holds the lock, the file or object `lock` in the workdir.

  Args:
    workdir: a folder, created if missing, or a URL.

  Raises:
    HeldError: another process holds the lock.
    OSError: the file or the bucket cannot be written.
  """
  make = _Lease if remote.is_remote(workdir) else _FileLock
  with make(workdir):
    yield


def is_held(workdir: str) -> bool:
  """Whether a process on this machine, or on NFS, holds the lock.

  Of a bucket, where only waiting tells, it is False.

  Args:
    workdir: a folder that may be missing, or a URL.
  """
  if remote.is_remote(workdir):
    return False
  try:
    file = os.open(os.path.join(workdir, "lock"), os.O_RDONLY | os.O_CLOEXEC)
  except FileNotFoundError:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # a file system without locks
    return False
  finally:
    os.close(file)
  return False


def _holder() -> dict[str, Any]:
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
  }


def _refusal(workdir: str, text: bytes) -> HeldError:
  try:
    held = json.loads(text)
    who = f"process {held['pid']} on {held['host']}, since {held['since']}"
  except (ValueError, KeyError, TypeError):  # not yet written by the holder
    who = "another process"
  return HeldError(
    f"workdir {workdir} {IN_USE} {who}; wait for it or stop it, or use another "
    "workdir"
  )


class _FileLock:
  """The kernel's lock on a file, released when the process ends."""

  def __init__(self, workdir: str):
    self._workdir = workdir

  def __enter__(self):
    os.makedirs(self._workdir, exist_ok=True)
    path = os.path.join(self._workdir, "lock")
    # Not inherited: a worker that outlives its trainer would hold the lock.
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      self._lock(path)
    except BaseException:
      os.close(self._file)
      raise

  def _lock(self, path: str) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise _refusal(self._workdir, os.pread(self._file, 4096, 0)) from None
    except OSError as error:
      if error.errno not in _UNSUPPORTED:
        raise
      _log.warning(
        "%s cannot be locked (%s): make sure that no other training writes to "
        "this workdir",
        path,
        error.strerror,
      )
    with contextlib.suppress(OSError):  # a full disk; only messages need it
      os.ftruncate(self._file, 0)
      os.pwrite(self._file, json.dumps(_holder()).encode(), 0)

  def __exit__(self, *_):
    os.close(self._file)


class _Lease:
  """An object that a thread renews, deleted at an orderly exit."""

  def __init__(self, workdir: str):
    import fsspec  # comes with gcsfs

    self._workdir = workdir
    path = workdir.rstrip("/") + "/lock"
    self._files, self._path = fsspec.core.url_to_fs(path)
    self._mine = {"token": uuid.uuid4().hex, **_holder()}
    self._renewals = 0
    self._done = threading.Event()

  def __enter__(self):
    if not self._created():
      self._take_over()
    self._thread = threading.Thread(
      target=self._renew, name="lock", daemon=True
    )
    self._thread.start()

  def __exit__(self, *_):
    self._done.set()
    self._thread.join()
    # If the bucket cannot be reached, the next start waits.
    with contextlib.suppress(Exception):
      if self._is_mine(self._read()):
        self._files.rm_file(self._path)

  def _created(self) -> bool:
    """Creates the object; False if another process has created it."""
    try:
      self._write(mode="create")
    except FileExistsError:
      # It is ours if a response was lost and the request was repeated.
      return self._is_mine(self._read())
    return True

  def _take_over(self) -> None:
    """Waits until the object has expired; raises if it is renewed."""
    seen = self._read()
    _log.warning(
      "%s names a training that may have ended; waiting up to %g s to see "
      "whether it still runs",
      self._path,
      _STALE_SECONDS,
    )
    deadline = time.monotonic() + _STALE_SECONDS
    while time.monotonic() < deadline:
      self._done.wait(_BEAT_SECONDS / 5)
      now = self._read()
      if now is None and self._created():
        return
      if now != seen:
        raise _refusal(self._workdir, now or self._read() or b"")
    self._write()
    # If two processes take it over at once, the last to write has it.
    self._done.wait(_BEAT_SECONDS / 5)
    now = self._read()
    if not self._is_mine(now):
      raise _refusal(self._workdir, now or b"")

  def _renew(self) -> None:
    while not self._done.wait(_BEAT_SECONDS):
      try:
        now = self._read()
        if now is not None and not self._is_mine(now):
          self._end(now)
        self._renewals += 1
        self._write()
      except Exception as error:  # the next renewal tries again
        _log.warning("%s could not be renewed: %s", self._path, error)

  def _end(self, now: bytes) -> None:
    """Ends the process, as it hung for so long that another took over."""
    print(f"error: {_refusal(self._workdir, now)}", file=sys.stderr, flush=True)
    os._exit(1)

  def _read(self) -> bytes | None:
    try:
      # A range, as otherwise the length would come from a cached listing.
      return self._files.cat_file(self._path, 0, 4096)
    except FileNotFoundError:
      return None

  def _write(self, mode: str = "overwrite") -> None:
    content = {**self._mine, "renewals": self._renewals}
    self._files.pipe_file(self._path, json.dumps(content).encode(), mode=mode)

  def _is_mine(self, content: bytes | None) -> bool:
    try:
      return json.loads(content or b"{}").get("token") == self._mine["token"]
    except ValueError:
      return False
