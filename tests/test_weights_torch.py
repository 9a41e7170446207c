"""PyTorch checkpoints as trainers write them; needs PyTorch."""

import argparse
import pathlib

import drawn
import numpy as np
import pytest
from test_weights_kinds import DEIT, OPTIONS, assert_same, theirs

from vitkd_jax.weights import loading

torch = pytest.importorskip("torch", reason="PyTorch writes the files")


def state(folder, seed=0):
  leaves = theirs(folder, seed=seed)
  return {k: torch.from_numpy(a.copy()) for k, a in leaves.items()}


def load(folder, checkpoint, **changes):
  torch.save(checkpoint, folder / "w.pth")
  return loading.load_with_notes(folder / "w.pth", **DEIT, **OPTIONS, **changes)


@pytest.mark.parametrize("nest", ["model", "net", "model_state_dict"])
def test_what_trainers_put_beside_the_tensors(tmp_path, nest):
  checkpoint = {
    nest: state(tmp_path),
    "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("a/b")),
    "metric": np.float64(81.5),
    "history": np.arange(3),
    "epoch": 3,
  }
  loaded = load(tmp_path, checkpoint)
  assert_same(loaded.params, drawn.params(**DEIT))


def test_parameters_and_views_are_read(tmp_path):
  tensors = state(tmp_path)
  name = "blocks.0.norm1.weight"
  tensors["head.bias"] = torch.nn.Parameter(tensors["head.bias"])
  tensors[name] = torch._neg_view(-tensors[name])
  assert_same(load(tmp_path, tensors).params, drawn.params(**DEIT))


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema"])
def test_a_moving_average_is_said_and_read(tmp_path, name):
  checkpoint = {"model": state(tmp_path, 1), name: state(tmp_path, 2)}
  loaded = load(tmp_path, checkpoint)
  assert loaded.notes == (f"read 'model'; --which ema reads {name!r}",)
  assert_same(loaded.params, drawn.params(seed=1, **DEIT))
  loaded = load(tmp_path, checkpoint, which="ema")
  assert_same(loaded.params, drawn.params(seed=2, **DEIT))


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t.to("meta"), "got a meta tensor"),
    (lambda t: t.to_sparse(), "got a tensor of torch.sparse_coo"),
    (lambda t: t.to(torch.complex64), "got a complex tensor"),
    (lambda t: torch.zeros(1).expand(10**12), "GB of memory, but"),
  ],
)
def test_tensors_that_are_not_plain_numbers(tmp_path, change, words):
  tensors = state(tmp_path)
  tensors["head.bias"] = change(tensors["head.bias"])
  with pytest.raises(ValueError, match=words):
    load(tmp_path, tensors)


@pytest.mark.parametrize(
  "checkpoint, words",
  [
    ({"weights": {"a": 1}, "epoch": 3}, "a dict of 'weights', 'epoch'"),
    ([1], "got a list"),
    ({7: torch.ones(2)}, "text as the name of a tensor, got 7"),
    ({"a": print}, "never executed"),
  ],
)
def test_checkpoints_without_tensors_by_name(tmp_path, checkpoint, words):
  with pytest.raises(ValueError, match=words):
    load(tmp_path, checkpoint)
