"""Live: big_vision's own code, given our npz."""

import ast
import functools
import pathlib
import sys
import types

import big_vision_names
import drawn
import flax.training.checkpoints  # noqa: F401, asks for TensorFlow: no stub yet
import jax
import numpy as np
import pytest

from peers import families
from vitkd_jax import weights
from vitkd_jax.models import vit


def import_big_vision():
  """big_vision's ViT; its one use of TensorFlow, remote files, is left out."""
  names = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")
  stubs = {name: types.ModuleType(name) for name in names}
  stubs["tensorflow"].io = stubs["tensorflow.io"]
  stubs["tensorflow.io"].gfile = stubs["tensorflow.io.gfile"]
  sys.modules.update(stubs)
  try:
    return pytest.importorskip(
      "big_vision.models.vit",
      reason="the comparison with big_vision's own code needs a checkout of "
      "github.com/google-research/big_vision: PYTHONPATH=CHECKOUT "
      "pytest tests/peers/test_big_vision.py",
      exc_type=ImportError,
    )
  finally:
    for name in names:
      del sys.modules[name]


big_vision = import_big_vision()


def theirs(path, fields):
  """Logits of big_vision's model with what its own loader reads."""
  fields = {k: v for k, v in fields.items() if k != "variant"}
  model = big_vision.Model(5, **fields)
  init = model.init(jax.random.key(0), families.image())["params"]
  params = big_vision.load(init, str(path), fields)
  with jax.default_matmul_precision("highest"):
    return jax.jit(model.apply)({"params": params}, families.image())[0]


def ours(params, fields):
  with jax.default_matmul_precision("highest"):
    return jax.jit(vit.Model(5, **fields).apply)(
      {"params": params}, families.image()
    )[0]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("pool_type", ["gap", "tok", "map"])
def test_our_npz_gives_our_logits(tmp_path, pool_type, scan):
  fields = dict(
    variant="Ti/16", pool_type=pool_type, scan=scan, **families.SMALL
  )
  params = drawn.params(image_size=families.SIZE, **fields)
  path = tmp_path / "w.npz"
  weights.save(path, params, format="big_vision", **fields)
  np.testing.assert_allclose(
    theirs(path, fields), ours(params, fields), atol=1e-5, rtol=0
  )


def test_a_deit3_is_folded_and_its_gelu_is_the_exact_one(tmp_path, monkeypatch):
  fields = dict(variant="deit3_small_patch16_224", **families.SMALL)
  params = drawn.params(image_size=families.SIZE, **fields)
  path = tmp_path / "w.npz"
  weights.save(path, params, format="big_vision", **fields)
  want = ours(params, fields)
  fields |= dict(pool_type="tok")
  tanh = theirs(path, fields)
  gelu = functools.partial(jax.nn.gelu, approximate=False)
  monkeypatch.setattr(big_vision.nn, "gelu", gelu)
  np.testing.assert_allclose(theirs(path, fields), want, atol=1e-5, rtol=0)
  # big_vision's model as it is computes the tanh form: close, and not equal.
  assert 1e-6 < np.abs(tanh - want).max() < 1e-2


def parameters(node):
  args = node.args
  names = [x.arg for x in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
  names += [x.arg for x in (args.vararg, args.kwarg) if x]
  return tuple(names)


def test_all_that_the_port_uses_is_there():
  root = pathlib.Path(big_vision.__file__).parents[1]
  for module, names in big_vision_names.NAMES.items():
    path = root.joinpath(*module.split(".")[1:]).with_suffix(".py")
    found = {}
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef):
        found[node.name] = parameters(node)
      elif isinstance(node, ast.Assign):
        found |= {x.id: None for x in node.targets if isinstance(x, ast.Name)}
    for name, expected in names.items():
      assert found[name] == expected, f"{module}.{name}"


def test_every_key_of_the_ports_configs_is_read():
  root = pathlib.Path(big_vision.__file__).parents[1]
  files = ("train", "optax", "input_pipeline", "evaluators/common", "utils")
  text = "".join((root / f"{name}.py").read_text() for name in files)
  for key in big_vision_names.KEYS:
    name = key.removesuffix("_steps").removesuffix("_epochs")
    assert f"config.{key}" in text or f'"{name}"' in text, key
