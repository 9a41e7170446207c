"""How glibc treats the memory of a training on CPUs."""

import ctypes
from importlib import metadata, util
import os
import sys

import jax

# "default" leaves glibc's allocator as it is.
VARIABLE = "VITKD_ALLOCATOR"

# Parameters of mallopt(3), and the largest value of most, an int.
_ARENA_MAX, _MMAP_THRESHOLD, _TOP_PAD, _TRIM_THRESHOLD = -8, -3, -2, -1
_MOST = 2**31 - 1


def keep_memory() -> bool:
  """Lets glibc keep freed memory, if JAX will compute on this machine's CPUs.

  XLA allocates the temporaries of a step anew each time. By default glibc
  returns such large blocks to the kernel, which then clears every page of the
  next ones. There is one arena, since any other returns what exceeds 64 MiB.
  Call it before JAX starts its threads, each of which keeps the arena it has.

  Returns:
    Whether it did. It does not where JAX would find an accelerator, with
    another libc, where the environment tunes glibc (MALLOC_*, GLIBC_TUNABLES),
    or with VITKD_ALLOCATOR=default.
  """
  tuned = [name for name in os.environ if name.startswith("MALLOC_")]
  if tuned or {VARIABLE, "GLIBC_TUNABLES"} & os.environ.keys():
    return False
  if not sys.platform.startswith("linux") or _accelerated():
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  settings = {
    _ARENA_MAX: 1,
    _MMAP_THRESHOLD: _MOST,
    _TRIM_THRESHOLD: _MOST,
    _TOP_PAD: 2**28,
  }
  # Each is 0 where it was refused.
  return all([libc.mallopt(name, value) for name, value in settings.items()])


def _accelerated() -> bool:
  """Whether JAX would look for an accelerator; it is not started for this."""
  # JAX adds its options as attributes at run time.
  if platforms := jax.config.jax_platforms:  # type: ignore[attr-defined]
    return platforms != "cpu"
  plugins = metadata.entry_points(group="jax_plugins")
  return bool(plugins) or util.find_spec("libtpu") is not None
