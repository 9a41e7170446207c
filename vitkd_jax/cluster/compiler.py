"""Options of XLA for the steps, and the folder that keeps what it compiled."""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import logging
import os

from etils import epath
import jax
from jax.sharding import Mesh

from vitkd_jax import remote

_log = logging.getLogger(__name__)

# XLA's library for a CPU's small products is slower than its older kernels:
# a tenth of the quickstart's step (benchmarks/RESULTS.md). It keeps the sums.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def options(mesh: Mesh) -> dict[str, str]:
  """`compiler_options` for `jax.jit`, empty except on CPUs.

  Args:
    mesh: the mesh that the program is compiled for.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  return dict(_CPU) if on_cpu and _known() else {}


@functools.cache
def _known() -> bool:
  """Whether this XLA has the option; a later one may drop it."""
  identity = jax.jit(lambda x: x, compiler_options=_CPU)
  try:
    identity.lower(jax.ShapeDtypeStruct((), "float32")).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


class CompilationCache:
  """JAX's persistent compilation cache, for the next start of a run.

  JAX runs whatever it finds under the name of a program: another program, or
  one that a killed process has half written. So the file run.json beside the
  programs has the run's identity and the hash of each file, and a start deletes
  what it does not name. That is no signature: who can write it can run code.

  Args:
    folder: absolute path or URL; only process 0 writes to it.
    run: the run's identity; programs of another run are deleted.
  """

  def __init__(self, folder: str, run: str):
    self._folder, self._run = epath.Path(folder), run
    self._record = self._folder / "run.json"
    self._writes = jax.process_index() == 0
    if self._writes:
      known = self._known()
      for name, path in self._files().items():
        if known.get(name) != _sha256(path):
          if name in known:
            _log.warning("deleted %s, which this run did not write", path)
          path.unlink()
    jax.config.update("jax_compilation_cache_dir", folder)
    if remote.is_remote(folder):
      # XLA's own caches beside it, for GPUs, cannot be remote.
      jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

  @contextlib.contextmanager
  def compiling(self) -> Iterator[None]:
    """Returns a context for a long compilation, whose result is recorded."""
    yield
    self.record()

  def record(self) -> None:
    """Records what has been compiled, for the next start to trust."""
    if not self._writes:
      return
    with contextlib.suppress(OSError):  # a full disk; it is compiled again
      hashes = {name: _sha256(p) for name, p in self._files().items()}
      self._folder.mkdir(parents=True, exist_ok=True)
      record = {"run": self._run, "sha256": hashes}
      self._record.write_text(json.dumps(record, indent=2, sort_keys=True))

  def _known(self) -> dict[str, str]:
    """The hashes of the files that this run has recorded."""
    try:
      record = json.loads(self._record.read_text())
      return dict(record["sha256"]) if record["run"] == self._run else {}
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
      return {}

  def _files(self) -> dict[str, epath.Path]:
    """All files below the folder but the record, by relative name."""
    found, folders = {}, [self._folder] if self._folder.exists() else []
    while folders:
      for path in folders.pop().iterdir():
        if path.is_dir():
          folders.append(path)
        elif path != self._record:
          found[os.path.relpath(path, self._folder)] = path
    return found


def _sha256(path: epath.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()
