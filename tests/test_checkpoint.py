"""Checkpoints: exact, verified, and never silently wrong."""

import json
import resource
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved import DAMAGED

from vitkd_jax.cluster import sharding
from vitkd_jax.runs import checkpoint, fingerprint

pytestmark = DAMAGED


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  ema: object
  flags: jax.Array


def make_state(seed, ema=True):
  rng = np.random.default_rng(seed)
  leaf = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)  # noqa: E731
  student = {"kernel": leaf(64, 64), "half": leaf(32).astype(jnp.bfloat16)}
  return State(
    step=jnp.int32(seed),
    params={"student": student, "head": {}},
    ema=jax.tree.map(lambda x: x + 1, student) if ema else None,
    flags=jnp.array([True, False]),
  )


def like(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def placed(state, mesh):
  return sharding.tree(state, mesh)


def restore(folder, state, mesh=None):
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    restored = checkpoints.restore(
      like(state), placed(state, mesh or sharding.make_mesh())
    )
    return restored and restored.state
  finally:
    checkpoints.close()


@pytest.fixture
def saved(tmp_path):
  """Checkpoints of steps 1 and 2, and their states."""
  folder = tmp_path / "checkpoints"
  checkpoints = checkpoint.Checkpoints(folder)
  states = {step: make_state(step) for step in (1, 2)}
  for step, state in states.items():
    checkpoints.save(step, state, top1=step / 10)
  checkpoints.wait()
  checkpoints.close()
  return folder, states


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip_is_exact_on_another_mesh(tmp_path, ema):
  state = make_state(5, ema)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(5, state, top1=0.0)
  checkpoints.wait()
  checkpoints.close()
  mesh = sharding.make_mesh(fsdp=4)
  shardings = sharding.tree(state, mesh, split=True)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored = checkpoints.restore(like(state), shardings).state
  checkpoints.close()
  assert_equal(restored, state)
  kernel = restored.params["student"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (16, 64)


def test_nothing_saved_is_none(tmp_path):
  assert restore(tmp_path, make_state(0)) is None


def data_files(folder, step):
  files = [p for p in (folder / str(step) / "state").rglob("*") if p.is_file()]
  return [p for p in files if p.parent.name == "d"]


def test_flipped_bits_are_found_and_the_step_before_is_taken(saved, tmp_path):
  folder, states = saved
  rng = np.random.default_rng(0)
  found = 0
  for trial in range(20):
    copy = tmp_path / f"copy{trial}"
    shutil.copytree(folder, copy)
    files = data_files(copy, 2)
    file = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    restored = restore(copy, states[2])
    # Either the flip hit padding and changed nothing, or step 1 is taken.
    good = 2 if int(restored.step) == 2 else 1
    assert_equal(restored, states[good])
    found += good == 1
    shutil.rmtree(copy)
  assert found >= 15


def test_fingerprint_sees_every_single_bit():
  x = np.zeros(8, np.float32)
  before = fingerprint.of({"x": jnp.asarray(x)})["x"]
  seen = {before}
  for word in range(8):
    for bit in range(32):
      y = x.view(np.uint32).copy()
      y[word] ^= np.uint32(1) << np.uint32(bit)
      value = fingerprint.of({"x": jnp.asarray(y.view(np.float32))})["x"]
      assert value != before
      seen.add(value)
  assert len(seen) > 200


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, bool])
def test_fingerprint_does_not_depend_on_the_sharding(dtype):
  x = jnp.arange(64).reshape(8, 8).astype(dtype)
  split = jax.device_put(x, sharding.batch(sharding.make_mesh()))
  assert fingerprint.of([x]) == fingerprint.of([split])


def pick(step, pattern):
  """The largest file of a step that matches."""
  files = [p for p in step.rglob(pattern) if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def empty_dir(step):
  shutil.rmtree(step)
  step.mkdir()


def halve_all(step):
  for path in step.rglob("*"):
    if path.is_file():
      halve(path)


def drop_fingerprint(step):
  path = step / "meta" / "metadata"
  meta = json.loads(path.read_text())
  path.write_text(json.dumps({"step": meta["step"]}))


def wrong_fingerprint(step):
  path = step / "meta" / "metadata"
  meta = json.loads(path.read_text())
  name = next(iter(meta["fingerprint"]))
  meta["fingerprint"][name] ^= 1
  path.write_text(json.dumps(meta))


# Whether the step is lost by it; where not, it must restore as it was.
DAMAGE = {
  "empty folder": (empty_dir, True),
  "all files halved": (halve_all, True),
  "no meta": (lambda s: shutil.rmtree(s / "meta"), True),
  "no state": (lambda s: shutil.rmtree(s / "state"), True),
  "no json": (lambda s: (s / "meta/metadata").unlink(), True),
  "halved json": (lambda s: halve(s / "meta/metadata"), True),
  "empty json": (lambda s: (s / "meta/metadata").write_text(""), True),
  "no fingerprint": (drop_fingerprint, True),
  "wrong fingerprint": (wrong_fingerprint, True),
  "no tree": (lambda s: (s / "state/_METADATA").unlink(), True),
  "halved tree": (lambda s: halve(s / "state/_METADATA"), True),
  "no manifest": (lambda s: (s / "state/manifest.ocdbt").unlink(), True),
  "halved manifest": (lambda s: halve(s / "state/manifest.ocdbt"), True),
  "zeroed manifest": (lambda s: zero(s / "state/manifest.ocdbt"), True),
  "no index": (lambda s: pick(s / "state/d", "*").unlink(), True),
  "no data": (lambda s: pick(s / "state", "d/*").unlink(), True),
  "halved data": (lambda s: halve(pick(s / "state", "d/*")), True),
  "zeroed data": (lambda s: zero(pick(s / "state", "d/*")), True),
  "no note of success": (
    lambda s: (s / "commit_success.txt").unlink(missing_ok=True),
    False,
  ),
  "no checkpoint metadata": (
    lambda s: (s / "_CHECKPOINT_METADATA").unlink(),
    False,
  ),
}


def test_damage_of_every_kind_is_found_and_named(saved, tmp_path, caplog):
  folder, states = saved
  survived = []
  for name, (damage, fatal) in DAMAGE.items():
    copy = tmp_path / name.replace(" ", "_")
    shutil.copytree(folder, copy)
    damage(copy / "2")
    caplog.clear()
    restored = restore(copy, states[1])
    good = 1 if fatal else 2
    assert int(restored.step) == good, name
    assert_equal(restored, states[good])
    assert ("checkpoint of step 2" in caplog.text) == fatal, name
    survived.append(name)
    shutil.rmtree(copy)
  assert len(survived) == 20


def test_a_damaged_step_can_be_saved_again(saved):
  folder, states = saved
  halve_all(folder / "2")
  assert_equal(restore(folder, states[1]), states[1])
  checkpoints = checkpoint.Checkpoints(folder)
  checkpoints.save(2, states[2], top1=None)
  checkpoints.wait()
  checkpoints.close()
  assert_equal(restore(folder, states[2]), states[2])


def test_no_whole_step_is_an_error_and_no_fresh_start(saved):
  folder, states = saved
  for step in (1, 2):
    halve_all(folder / str(step))
  with pytest.raises(checkpoint.DamagedError, match=r"none of .*\[2, 1\]"):
    restore(folder, states[1])


@pytest.mark.parametrize(
  "change, said",
  [
    (
      lambda p: {**p, "half": p["half"].astype(jnp.float16)},
      "params/student/half is bfloat16 (32,) in the checkpoint, float16 (32,)",
    ),
    (
      lambda p: {**p, "kernel": p["kernel"][:8]},
      "params/student/kernel is float32 (64, 64) in the checkpoint, float32 (8",
    ),
    (
      lambda p: {**p, "more": p["half"]},
      "params/student/more is only in this run",
    ),
    (
      lambda p: {"half": p["half"]},
      "params/student/kernel is only in the checkpoint",
    ),
  ],
)
def test_what_does_not_fit_is_named_and_not_cast(saved, change, said):
  folder, states = saved
  params = {"student": change(states[2].params["student"]), "head": {}}
  with pytest.raises(checkpoint.DamagedError) as refusal:
    restore(folder, states[2].replace(params=params))
  assert said in str(refusal.value)


def test_a_full_disk_is_told_and_later_saves_work(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state = {"x": jax.random.normal(jax.random.key(0), (512, 512))}
  checkpoints.save(1, state, top1=None)
  checkpoints.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, hard))
  try:
    checkpoints.save(2, state, top1=None)
    with pytest.raises(Exception, match=r"(?i)too large|exhausted"):
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert checkpoints.steps() == [1]
  checkpoints.save(3, state, top1=None)
  checkpoints.wait()
  assert not checkpoints.busy()
  checkpoints.close()
  assert int(restore(tmp_path, {"x": state["x"]})["x"].size) == 512**2
  assert 3 in [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]


def test_whether_it_was_evaluated_is_kept(tmp_path):
  for step, evaluated in ((1, True), (2, False)):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = make_state(step)
    checkpoints.save(step, state, top1=None, evaluated=evaluated)
    checkpoints.wait()
    found = checkpoints.restore(
      like(state), placed(state, sharding.make_mesh())
    )
    assert found.evaluated == evaluated
    checkpoints.close()


def test_newest_and_best_are_kept(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  # Most saves come without an evaluation of their own.
  for step, top1 in enumerate([0.1, 0.9, None, 0.4, None]):
    checkpoints.save(step, make_state(step), top1=top1)
  checkpoints.wait()
  assert checkpoints.steps() == [4, 3, 1]
  checkpoints.close()
