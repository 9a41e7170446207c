"""Scalars as a TensorBoard event file, written by the caller's own thread.

tensorboardX writes through a thread that a full disk ends, after which its
queue blocks forever.
"""

from collections.abc import Mapping
import os
import socket
import struct
import sys
import time
from typing import Any

from etils import epath

from vitkd_jax import remote

# tensorboardX imports PyTorch where it is installed, and works without it.
_MODULES: dict[str, Any] = sys.modules
_LOADED = _MODULES.setdefault("torch", None)
from tensorboardX.proto import event_pb2  # noqa: E402
from tensorboardX.record_writer import masked_crc32c  # noqa: E402
from tensorboardX.summary import scalar  # noqa: E402

if _LOADED is None:
  del _MODULES["torch"]

# Between two uploads to a bucket: each writes the whole object again.
_UPLOAD_SECONDS = 120


class Events:
  """The event file of one start of a run.

  Args:
    workdir: an existing folder, or a URL.
    first_step: TensorBoard drops events of earlier files from this step on.
  """

  def __init__(self, workdir: str, first_step: int):
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    self._path = epath.Path(workdir) / f"{name}.{os.getpid()}"
    self._content = b"" if remote.is_remote(workdir) else None
    self._uploaded = time.monotonic()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(
      event_pb2.Event(file_version="brain.Event:2"),
      event_pb2.Event(step=first_step, session_log=start),
    )

  def close(self) -> None:
    """Uploads what is left for a bucket."""
    if self._content:
      self._path.write_bytes(self._content)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends scalars.

    Args:
      step: updates done.
      values: scalars by name.
    """
    self._write(
      *(
        event_pb2.Event(step=step, summary=scalar(name, value))
        for name, value in values.items()
      )
    )

  def _write(self, *events):
    now = time.time()
    for event in events:
      event.wall_time = now
    records = b"".join(map(_record, events))
    if self._content is None:
      # Unbuffered, so that a failed write is not retried when closing.
      with open(self._path, "ab", buffering=0) as file:
        file.write(records)
      return
    self._content += records
    if time.monotonic() > self._uploaded + _UPLOAD_SECONDS:
      self._path.write_bytes(self._content)
      self._uploaded = time.monotonic()


def _record(event) -> bytes:
  """A TFRecord: length, its checksum, data, their checksum."""
  data = event.SerializeToString()
  length = struct.pack("<Q", len(data))
  checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
  return length + next(checks) + data + next(checks)
