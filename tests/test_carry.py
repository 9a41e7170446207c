"""The objective as a package of another code base, without the rest of ours."""

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "ports" / "carry.py")]

# A ViT with what big_vision's has, and no more; and terms of two methods.
CODE = """
import importlib, json, sys
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

class Theirs(nn.Module):
  num_classes: int | None = None
  patch_size: tuple = (4, 4)
  width: int = 16
  depth: int = 2
  pool_type: str = "gap"
  rep_size: bool = False
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, image, *, train=False):
    out = {"encoder": {}}
    x = nn.Conv(self.width, self.patch_size, self.patch_size, "VALID")(image)
    x = x.reshape(len(x), -1, self.width)
    if self.pool_type == "tok":
      cls = self.param("cls", nn.initializers.normal(), (1, 1, self.width))
      x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
    for i in range(self.depth):
      y = nn.Dense(self.width, name=f"block{i}")(jnp.tanh(x))
      x = x + y
      out["encoder"][f"block{i:02d}"] = {"+mlp": x, "mlp": y}
    x = out["encoded"] = nn.LayerNorm()(x)
    x = out["head_input"] = x[:, 0] if self.pool_type == "tok" else x.mean(1)
    return nn.Dense(self.num_classes, name="head")(x), out

def run(package):
  of = lambda name: importlib.import_module(f"{package}.{name}")
  objective, sides, methods = map(of, (
    "distill.objective", "distill.sides", "distill.methods"))
  student, teacher = Theirs(5), Theirs(5, width=24, depth=3, pool_type="tok")
  side, other = (sides.of(x, (8, 12)) for x in (student, teacher))
  assert (side.num_prefix_tokens, other.num_prefix_tokens) == (0, 1)
  assert side.grid == (2, 3)
  make = objective.Method.make
  taught = ("big", other)
  found = objective.Objective(
    student=student, student_stats=None, student_side=side,
    teachers={"big": objective.Teacher(teacher, None, other)},
    methods={
      "vitkd": make("vitkd", methods.METHODS["vitkd"](),
                    {"mimic": 3e-5, "generation": 3e-6}, side, taught),
      "nkd": make("nkd", methods.METHODS["nkd"](), {"nkd": 1.0}, side, taught),
    })
  key = jax.random.key(0)
  rng = np.random.default_rng(0)
  image = rng.standard_normal((4, 8, 12, 3)).astype(np.float32)
  params = found.init_params(key, (1, 8, 12, 3))
  own = {"big": teacher.init(jax.random.key(1), image)["params"]}
  micro = {"image": {"student": image, "big": 2 * image},
           "target": np.eye(5, dtype=np.float32)[:4],
           "draws": found.draws(key, 4), "key": key}
  weights = found.weights_at(0)
  grads, means = jax.jit(
    lambda *args: objective.gradients(found, *args))(
      params, own, weights, micro)
  sums = {jax.tree_util.keystr(k): float(jnp.abs(x).sum())
          for k, x in jax.tree_util.tree_leaves_with_path(grads)}
  return {name: float(x) for name, x in means.items()} | sums
"""
BLOCKED = """
import sys
import einops, flax.linen, flax.struct, jax, numpy  # and what these need
OTHERS = ("absl", "grain", "orbax", "optax", "tensorflow", "ml_collections",
          "vitkd_jax", "cv2", "scipy", "tensorflow_datasets")
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in OTHERS:
      raise ImportError(f"{name} is not there")
for name in list(sys.modules):
  if name.split(".")[0] in OTHERS:
    del sys.modules[name]
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
"""


def test_what_is_carried_computes_the_same_with_little(tmp_path):
  folder = tmp_path / "theirs" / "proj" / "vitkd"
  done = subprocess.run(
    [*COMMAND, str(folder), "theirs.proj.vitkd"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  code = (
    BLOCKED
    + CODE
    + """
import theirs.proj.vitkd.data.augment
print(json.dumps(run("theirs.proj.vitkd")))
"""
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  scope = {}
  exec(CODE, scope)
  expected = scope["run"]("vitkd_jax")
  assert found.keys() == expected.keys()
  assert {"task", "vitkd/mimic", "vitkd/generation", "nkd"} < found.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_folder_with_files_of_others_is_left_alone(tmp_path):
  def carry(package="mine"):
    return subprocess.run(
      [*COMMAND, str(tmp_path / "mine"), package],
      capture_output=True,
      text=True,
    )

  refused = carry("my-package")
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: expected the dotted name")
  assert carry().returncode == carry().returncode == 0
  (tmp_path / "mine" / "CARRIED.md").unlink()
  refused = carry()
  assert refused.returncode == 2
  assert "holds files that are not from here" in refused.stderr
  assert (tmp_path / "mine" / "distill" / "objective.py").exists()


@pytest.mark.parametrize("method", ["vitkd", "spectral", "mgd"])
def test_a_wrong_number_of_tokens_is_refused(method):
  scope = {}
  exec(CODE, scope)
  sides = importlib.import_module("vitkd_jax.distill.sides")
  view = importlib.import_module("vitkd_jax.distill.view")
  methods = importlib.import_module("vitkd_jax.distill.methods")
  teacher = scope["Theirs"](5, pool_type="tok")
  side = sides.of(teacher, (8, 12))
  module = methods.METHODS[method]()
  needs = module.needs(module, side, side)
  image = np.zeros((2, 8, 16, 3), np.float32)  # more columns than the side's
  logits, out = teacher.init_with_output({"params": np.uint32([0, 1])}, image)[
    0
  ]
  with pytest.raises(
    ValueError, match="expected 2x3 patch tokens after 1 other"
  ):
    view.make(side, needs.teacher, logits, out)
