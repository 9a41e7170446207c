"""Options of XLA, and the folder that keeps what it compiled."""

import logging
import shutil

import jax
from jax.experimental.compilation_cache import compilation_cache
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
  compiler.CompilationCache("gs://bucket/run/compilation_cache", "run")
  assert jax.config.jax_persistent_cache_enable_xla_caches == "none"


def test_only_what_this_run_has_recorded_stays(tmp_path, cache_dir, caplog):
  def names():
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file())

  (tmp_path / "jit_step-0-cache").write_text("of an unknown run")
  kept = compiler.CompilationCache(str(tmp_path), "ours")
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  assert names() == []
  with kept.compiling():
    (tmp_path / "jit_step-1-cache").write_text("whole")
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla" / "tuned").write_text("whole")
  (tmp_path / "jit_step-2-cache").write_text("half writ")  # then killed
  compiler.CompilationCache(str(tmp_path), "ours")
  assert names() == ["jit_step-1-cache", "run.json", "tuned"]
  assert not caplog.text

  (tmp_path / "jit_step-1-cache").write_text("another program")
  compiler.CompilationCache(str(tmp_path), "ours")
  assert names() == ["run.json", "tuned"]
  assert "jit_step-1-cache, which this run did not write" in caplog.text
  compiler.CompilationCache(str(tmp_path), "theirs")
  assert names() == ["run.json"]
  (tmp_path / "run.json").write_text("[]")
  compiler.CompilationCache(str(tmp_path), "ours")


def test_a_program_of_another_run_under_our_name_is_not_run(
  tmp_path, cache_dir, monkeypatch
):
  """Two programs that differ in a number, as a learning rate."""
  ours, theirs = tmp_path / "ours", tmp_path / "theirs"
  monkeypatch.setattr(compiler, "_log", logging.getLogger("quiet"))
  least = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, least)

  def trained(folder, rate):
    jax.clear_caches()
    compilation_cache.reset_cache()
    kept = compiler.CompilationCache(str(folder), f"rate={rate}")

    def one_step(x):
      return x - rate

    lowered = jax.jit(one_step).lower(jnp.float32(1))
    with kept.compiling():
      step = lowered.compile()
    return float(step(jnp.float32(1)))

  try:
    jax.config.update(least, 0)
    assert trained(ours, 0.25) == 0.75
    assert trained(theirs, 0.5) == 0.5
    (name,) = [path.name for path in ours.glob("jit_one_step-*")]
    (other,) = theirs.glob("jit_one_step-*")
    shutil.copy(other, ours / name)
    assert trained(ours, 0.25) == 0.75
  finally:
    jax.config.update(least, before)
    compilation_cache.reset_cache()
