"""Freed memory stays with a training on CPUs, unless something speaks against.

Page faults are counted in processes of their own: the setting is a process's.
"""

import os
import subprocess
import sys
import types

import pytest

from vitkd_jax.cluster import allocator

# Blocks as large as a step's temporaries, in a thread as XLA's are.
_COUNT = """
import ctypes, resource, threading
from vitkd_jax.cluster import allocator
print(allocator.keep_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 100 * 2**20

def use():
  block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
  ctypes.memset(block, 1, size)
  libc.free(block)

def work():
  use()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(4):
    use()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def count(**environment):
  """Whether the setting was made, and the page faults of four more blocks."""
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
  }
  done = subprocess.run(
    [sys.executable, "-c", _COUNT],
    env=clean
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  made, faults = done.stdout.split()
  return made == "True", int(faults)


@pytest.mark.skipif(
  "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}),
  reason="the setting is glibc's",
)
def test_freed_blocks_are_used_again():
  made, faults = count()
  unmade, before = count(VITKD_ALLOCATOR="default")
  assert made
  assert not unmade
  # Huge pages, where the kernel has them, make both numbers smaller.
  assert faults < before / 4


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("MALLOC_ARENA_MAX", "4"),
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=4"),
    ("VITKD_ALLOCATOR", "default"),
  ],
)
def test_the_environment_has_the_last_word(name, value, monkeypatch):
  monkeypatch.setenv(name, value)
  assert not allocator.keep_memory()


def platforms(monkeypatch, value):
  config = types.SimpleNamespace(jax_platforms=value)
  monkeypatch.setattr(allocator, "jax", types.SimpleNamespace(config=config))


def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch):
  """Its host reads and decodes in many threads, which would share one arena."""
  platforms(monkeypatch, "cuda,cpu")
  assert not allocator.keep_memory()


def test_an_installed_plugin_is_an_accelerator(monkeypatch):
  platforms(monkeypatch, None)
  monkeypatch.setattr(allocator.metadata, "entry_points", lambda group: [group])
  assert not allocator.keep_memory()
