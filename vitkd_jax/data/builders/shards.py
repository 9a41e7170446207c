"""Writes a data set's folder shard by shard, so that a kill loses one shard.

A file appears under its name only when it is complete, and dataset_info.json
comes last: what is there can be trusted, and a second start writes the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile

from array_record.python import array_record_module
from etils import epath

from vitkd_jax import remote
from vitkd_jax.data.builders import census as censuses

_STATE = "preparation.json"
_INFO = "dataset_info.json"
_PART = ".part"  # ends the name of what is being written


@dataclasses.dataclass(frozen=True)
class Shard:
  """One array_record file.

  Attributes:
    file: its name.
    count: records in it.
    size: bytes that it needs, about.
    records: makes the records, serialized; is given what to call with the
      encoded image of each one that was read, or None.
  """

  file: str
  count: int
  size: int
  records: Callable[[Callable[[bytes | None], None]], Iterable[bytes]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """A data set, as files.

  Attributes:
    folder: "name/version".
    fingerprint: hash of the source; a folder begun with another is refused.
    shards: all of them.
    metadata: writes TFDS's other files into the local folder it is given, of
      images with that census.
    stamp: of the source, by which `finished` knows it; "" for none.
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
  """Writes what is not there yet; the folder of the finished data set.

  Args:
    plan: what to write.
    data_dir: local folder or gs:// address of data sets.
    progress: called with the number of records that were read since, and with
      the count of each shard that is there.

  Raises:
    ValueError: the folder holds something else, or the disk is too small;
      nothing was written.
    OSError, RuntimeError: a file cannot be read or written; finished shards
      stay.
  """
  folder = epath.Path(data_dir) / plan.folder
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"{folder} cannot be made: {error.strerror}.") from error
  with _alone(folder):
    state, there = _begin(folder, plan)
    missing = [s for s in plan.shards if s.file not in there]
    if not missing and _INFO in there:
      progress(plan.count)
    else:
      _write_missing(plan, folder, state, missing, progress)
  return folder


def finished(data_dir: str, name: str, stamp: str) -> epath.Path | None:
  """Folder of the set `name` that was made of a source with that stamp.

  None where there is no such set, where it is not complete, and where its
  source may have changed since.
  """
  folder = epath.Path(data_dir) / name
  for version in folder.iterdir() if folder.is_dir() else ():
    there = {path.name for path in version.iterdir()}
    if {_STATE, _INFO} <= there:
      state = _state_of(version)
      if state.get("stamp") == stamp and there >= set(state["shards"]):
        return version
  return None


def census(folder: epath.Path) -> censuses.Census:
  """What was noted of the images of a finished set that `write` made."""
  return _joined(_state_of(folder)["shards"].values())


def _joined(parts):
  whole = censuses.Census()
  for part in parts:
    whole.join(censuses.Census.from_json(part))
  return whole


def _write_missing(plan, folder, state, missing, progress):
  _check_room(folder, missing)
  shards = state["shards"]
  for shard in plan.shards:
    if shard in missing:
      part = censuses.Census()
      with _appearing(folder / shard.file) as path:
        _write_shard(path, shard, part, progress)
        # Before the shard is there: a kill between leaves no shard without.
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
def _alone(folder) -> Iterator[None]:
  """Keeps a second process out, where the folder is on a disk."""
  if remote.is_remote(folder):  # two of them would write the same objects
    yield
    return
  file = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f"another process is preparing {folder}.") from error
    yield
  finally:
    os.close(file)


def _begin(folder, plan):
  """Claims the folder, or knows it again; its state, and its files' names."""
  # A folder of a bucket is not there before its first object.
  there = {path.name for path in folder.iterdir()} if folder.exists() else set()
  there = {name for name in there if not name.endswith(_PART)}
  if there and _STATE not in there:
    raise ValueError(
      f"{folder} holds files that this program did not write; they stay as they"
      " are. Choose another --data-dir, or delete that folder."
    )
  state = None
  if any(".array_record-" in name for name in there):
    state = _state_of(folder)
  if state and state["fingerprint"] != plan.fingerprint:
    raise ValueError(
      f"{folder} was begun with other files or options (was something in"
      " --source added, removed or changed since?); choose another name, or"
      " delete that folder."
    )
  begun = {"fingerprint": plan.fingerprint, "stamp": plan.stamp, "shards": {}}
  if state:
    begun["shards"] = state["shards"]
  if begun != state:
    _put_state(folder, begun)
  return begun, there


def _state_of(folder):
  path = folder / _STATE
  try:
    state = json.loads(path.read_text())
    fingerprint, noted = state["fingerprint"], state.get("shards", {})
    return {**state, "fingerprint": fingerprint, "shards": dict(noted)}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is damaged ({error!r}); delete {folder} and start again."
    ) from error


def _put_state(folder, state):
  _put(folder / _STATE, json.dumps(state, sort_keys=True).encode())


def _check_room(folder, missing):
  if remote.is_remote(folder):
    return
  needed = sum(shard.size for shard in missing)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise ValueError(
      f"{folder} needs {needed / 1e9:,.1f} GB more, but its disk has"
      f" {free / 1e9:,.1f} GB left; free some, or name another --data-dir."
    )


def _write_shard(path, shard, part, progress):
  def seen(data):
    if data is not None:
      part.add(data)
    progress(1)

  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in shard.records(seen):
    writer.write(record)
  writer.close()


def _put(path, data):
  with _appearing(path) as local, open(local, "wb") as file:
    file.write(data)


@contextlib.contextmanager
def _appearing(path: epath.Path) -> Iterator[str]:
  """A local file to write, which is at `path` when all went well."""
  if remote.is_remote(path):  # an object is there whole or not at all
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
