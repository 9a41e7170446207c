"""Options of XLA for the steps, and the folder that keeps what it compiled."""

from collections.abc import Iterator
import contextlib
import functools

from etils import epath
import jax
from jax.sharding import Mesh

from vitkd_jax import remote

# XLA's library for a CPU's small products is slower than its older kernels:
# a tenth of the quickstart's step (benchmarks/RESULTS.md). Sums stay with it.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def options(mesh: Mesh) -> dict[str, str]:
  """`compiler_options` for `jax.jit`; none but on a CPU.

  Args:
    mesh: that the program is compiled for.
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
  """Programs that the next start loads instead of compiling them.

  JAX writes a program straight under its name, and never again: what a killed
  process has half written would be warned of, and compiled, at every start. So
  a mark lies beside them during a long compilation; found at a start, it
  empties the folder.

  Args:
    folder: absolute, or on gs://; process 0 alone writes to it.
  """

  def __init__(self, folder: str):
    self._folder = epath.Path(folder)
    self._mark = self._folder / "unfinished"
    self._writes = jax.process_index() == 0
    if self._writes and self._mark.exists():
      self._folder.rmtree()
    jax.config.update("jax_compilation_cache_dir", folder)
    if remote.is_remote(
      folder
    ):  # XLA's own cache beside it, for GPUs, knows disks only
      jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

  @contextlib.contextmanager
  def compiling(self) -> Iterator[None]:
    """A context for a long compilation."""
    if self._writes:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._mark.touch()
    yield
    if self._writes:
      self._mark.unlink()
