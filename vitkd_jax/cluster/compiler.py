"""Options of XLA for the steps, and the folder that keeps what it compiled."""

from collections.abc import Iterator
import contextlib
import functools

from etils import epath
import jax
from jax.sharding import Mesh

from vitkd_jax import remote

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

  JAX writes a program under its final name and never again, so one that a
  killed process has half written would cause a warning and a compilation at
  every later start. A marker file exists during long compilations; if a start
  finds it, it empties the folder.

  Args:
    folder: absolute path or URL; only process 0 writes to it.
  """

  def __init__(self, folder: str):
    self._folder = epath.Path(folder)
    self._marker = self._folder / "unfinished"
    self._writes = jax.process_index() == 0
    if self._writes and self._marker.exists():
      self._folder.rmtree()
    jax.config.update("jax_compilation_cache_dir", folder)
    if remote.is_remote(folder):
      # XLA's own caches beside it, for GPUs, cannot be remote.
      jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

  @contextlib.contextmanager
  def compiling(self) -> Iterator[None]:
    """Returns a context for a long compilation."""
    if self._writes:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._marker.touch()
    yield
    if self._writes:
      self._marker.unlink()
