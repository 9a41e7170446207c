"""Writes a dataset's folder shard by shard, so a kill loses at most one shard.

A file gets its name only when it is complete, and dataset_info.json comes last:
existing files are whole, and a second start writes the missing ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
from typing import Any

from array_record.python import array_record_module
from etils import epath

from vitkd_jax import remote
from vitkd_jax.data import tfrecords
from vitkd_jax.data.builders import census as censuses

# Of the files, the first by default.
FORMATS = ("array_record", tfrecords.FORMAT)

STATE = "preparation.json"
_INFO = "dataset_info.json"
_PART = ".part"  # suffix of a file being written

# Called with each encoded image that was read; None for a record without one.
Seen = Callable[[bytes | None], None]


@dataclasses.dataclass(frozen=True)
class Shard:
  """One array_record or TFRecord file.

  Attributes:
    file: file name, which says the format.
    count: number of records.
    size: in bytes, approximately.
    records: makes the serialized records, and calls its argument for each.
  """

  file: str
  count: int
  size: int
  records: Callable[[Seen], Iterable[bytes]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The files of a dataset.

  Attributes:
    folder: "name/version".
    fingerprint: hash of the source; a folder begun with another is refused.
    shards: of all splits.
    metadata: writes TFDS's other files into a local folder, given the census of
      the images.
    stamp: of the source, by which `finished` recognises it; "" for none.
  """

  folder: str
  fingerprint: str
  shards: Sequence[Shard]
  metadata: Callable[[str, censuses.Census], None]
  stamp: str = ""

  @property
  def count(self) -> int:
    """Records of all shards."""
    return sum(shard.count for shard in self.shards)


def write(
  plan: Plan,
  data_dir: str,
  progress: Callable[[int], None] = lambda count: None,
) -> epath.Path:
  """Writes the missing files of a dataset.

  Args:
    plan: files to write.
    data_dir: folder of datasets, local or gs://.
    progress: called with the number of records read since the last call, and
      with the count of each existing shard.

  Returns:
    The folder of the finished dataset.

  Raises:
    ValueError: the folder holds something else, or the disk is too small;
      nothing was written.
    OSError, RuntimeError: a file cannot be read or written; finished shards
      are kept.
  """
  folder = epath.Path(data_dir) / plan.folder
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"cannot make {folder}: {error.strerror}.") from error
  with _alone(folder):
    state, there = _begin(folder, plan)
    missing = [s for s in plan.shards if s.file not in there]
    if not missing and _INFO in there:
      progress(plan.count)
    else:
      _write_missing(plan, folder, state, missing, progress)
  return folder


def finished(data_dir: str, name: str, stamp: str) -> epath.Path | None:
  """Finds a finished dataset that was made from a given source.

  Args:
    data_dir: folder of datasets, local or gs://.
    name: of the dataset.
    stamp: of the source.

  Returns:
    The folder of its version; None if there is no such dataset, it is
    incomplete, or its source may have changed.

  Raises:
    ValueError: its preparation.json is damaged.
  """
  folder = epath.Path(data_dir) / name
  for version in folder.iterdir() if folder.is_dir() else ():
    there = {path.name for path in version.iterdir()}
    if {STATE, _INFO} <= there:
      state = _state_of(version)
      if state.get("stamp") == stamp and there >= set(state["shards"]):
        return version
  return None


def census(folder: epath.Path) -> censuses.Census:
  """The census of the images of a finished dataset.

  Args:
    folder: result of `write` or `finished`.

  Raises:
    ValueError: its preparation.json is damaged.
  """
  return _joined(_state_of(folder)["shards"].values())


def _joined(parts: Iterable[dict[str, Any] | None]) -> censuses.Census:
  whole = censuses.Census()
  for part in parts:
    whole.join(censuses.Census.from_json(part))
  return whole


def _write_missing(
  plan: Plan,
  folder: epath.Path,
  state: dict[str, Any],
  missing: Sequence[Shard],
  progress: Callable[[int], None],
) -> None:
  _check_room(folder, missing)
  shards = state["shards"]
  for shard in plan.shards:
    if shard in missing:
      part = censuses.Census()
      with _appearing(folder / shard.file) as path:
        _write_shard(path, shard, part, progress)
        # Before the shard gets its name: a kill in between leaves no shard
        # without a census.
        shards[shard.file] = part.to_json()
        _put_state(folder, state)
    else:
      shards.setdefault(shard.file, None)
      progress(shard.count)
  with tempfile.TemporaryDirectory() as made:
    plan.metadata(made, _joined(shards[shard.file] for shard in plan.shards))
    files = sorted(epath.Path(made).iterdir(), key=lambda p: p.name == _INFO)
    for path in files:
      _put(folder / path.name, path.read_bytes())


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
  """Keeps a second process out of a folder on a disk."""
  if remote.is_remote(folder):  # two processes would write the same objects
    yield
    return
  file = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"another process is preparing {folder}; wait for it to finish."
      ) from error
    yield
  finally:
    os.close(file)


def _begin(folder: epath.Path, plan: Plan) -> tuple[dict[str, Any], set[str]]:
  """Claims or recognises the folder; returns its state and file names."""
  # A folder of a bucket does not exist before its first object.
  there = {path.name for path in folder.iterdir()} if folder.exists() else set()
  there = {name for name in there if not name.endswith(_PART)}
  if there and STATE not in there:
    raise ValueError(
      f"{folder} holds files that this program did not write; choose another"
      " --data-dir, or delete that folder."
    )
  state = None
  if any(f".{format}-" in name for name in there for format in FORMATS):
    state = _state_of(folder)
  if state and state["fingerprint"] != plan.fingerprint:
    raise ValueError(
      f"{folder} was begun with other files or options (did something in"
      " --source change?); choose another name, or delete that folder."
    )
  begun = {"fingerprint": plan.fingerprint, "stamp": plan.stamp, "shards": {}}
  if state:
    begun["shards"] = state["shards"]
  if begun != state:
    _put_state(folder, begun)
  return begun, there


def _state_of(folder: epath.Path) -> dict[str, Any]:
  path = folder / STATE
  try:
    state = json.loads(path.read_text())
    fingerprint, noted = state["fingerprint"], state.get("shards", {})
    return {**state, "fingerprint": fingerprint, "shards": dict(noted)}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is damaged ({error!r}); delete {folder} and start again."
    ) from error


def _put_state(folder: epath.Path, state: dict[str, Any]) -> None:
  _put(folder / STATE, json.dumps(state, sort_keys=True).encode())


def _check_room(folder: epath.Path, missing: Sequence[Shard]) -> None:
  if remote.is_remote(folder):
    return
  needed = sum(shard.size for shard in missing)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise ValueError(
      f"expected {needed / 1e6:,.2f} MB of free disk space for {folder}, got"
      f" {free / 1e6:,.2f} MB; free some, or choose another --data-dir."
    )


def _write_shard(
  path: str,
  shard: Shard,
  part: censuses.Census,
  progress: Callable[[int], None],
) -> None:
  def seen(data: bytes | None) -> None:
    if data is not None:
      part.add(data)
    progress(1)

  if f".{tfrecords.FORMAT}-" in shard.file:
    tfrecords.write(path, shard.records(seen))
    return
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in shard.records(seen):
    writer.write(record)
  writer.close()


def _put(path: epath.Path, data: bytes) -> None:
  with _appearing(path) as local, open(local, "wb") as file:
    file.write(data)


@contextlib.contextmanager
def _appearing(path: epath.Path) -> Iterator[str]:
  """Yields a local file to write, which becomes `path` on success."""
  if remote.is_remote(path):  # an object is written whole or not at all
    with tempfile.TemporaryDirectory() as folder:
      local = os.path.join(folder, path.name)
      yield local
      path.write_bytes(epath.Path(local).read_bytes())
    return
  local = f"{path}{_PART}"
  try:
    yield local
    with open(local, "rb") as file:
      os.fsync(file.fileno())  # a power cut must not leave an empty shard
    os.replace(local, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(local)
