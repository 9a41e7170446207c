"""The classes of ImageNet-A and -R are those that timm scores over."""

import importlib.util
import pathlib

import pytest

from vitkd_jax.data import subsets


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_the_same_classes_as_timm(name):
  spec = importlib.util.find_spec("timm")
  folder = pathlib.Path(spec.origin).parent / "data" / "_info"
  text = (folder / f"{name}_indices.txt").read_text()
  wanted = tuple(map(int, text.split()))
  assert subsets.scored_classes(name, 1000) == wanted
