"""Options of XLA, and the folder that keeps what it compiled."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.cluster import compiler, sharding


@pytest.fixture
def mesh():
  yield sharding.make_mesh(devices=jax.devices()[:1])
  compiler._known.cache_clear()


def test_options_change_no_result(mesh):
  x = np.random.default_rng(0).standard_normal((40, 30), np.float32)

  def function(x):
    return jnp.tanh(x @ x.T).sum(axis=0)

  options = compiler.options(mesh)
  with_options = jax.jit(function, compiler_options=options)(x)
  np.testing.assert_allclose(with_options, jax.jit(function)(x), rtol=1e-5)


def test_an_option_that_xla_does_not_know_is_left_out(mesh, monkeypatch):
  monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_no_such_option": "1"})
  compiler._known.cache_clear()
  assert compiler.options(mesh) == {}


@pytest.fixture
def cache_dir():
  names = "jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches"
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_on_a_bucket_xla_keeps_nothing_beside(tmp_path, monkeypatch, cache_dir):
  # XLA derives its cache for GPUs from JAX's folder, and knows no gs://.
  monkeypatch.setattr(compiler.epath, "Path", lambda folder: tmp_path)
  compiler.CompilationCache("gs://bucket/run/compilation_cache")
  assert jax.config.jax_persistent_cache_enable_xla_caches == "none"


def test_what_a_killed_process_left_half_written_goes(tmp_path, cache_dir):
  (tmp_path / "jit_step-1-cache").write_text("whole")
  kept = compiler.CompilationCache(str(tmp_path))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  with kept.compiling():
    assert (tmp_path / "unfinished").exists()
  compiler.CompilationCache(str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["jit_step-1-cache"]

  with contextlib.suppress(KeyboardInterrupt), kept.compiling():
    (tmp_path / "jit_step-1-cache").write_text("wh")
    raise KeyboardInterrupt
  compiler.CompilationCache(str(tmp_path))
  assert not tmp_path.exists()
  with kept.compiling():  # makes it anew
    pass
