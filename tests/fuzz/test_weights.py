"""Damaged and odd weights: read or refused in one sentence, never more."""

import pytest

from fuzz import runner

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
  "target, cases",
  [
    ("npz", 200),
    ("big_vision_state", 200),
    ("safetensors", 200),
    ("flat_metadata", 200),
    ("timm_folder", 200),
    ("huggingface_folder", 200),
    ("workdir", 200),
    ("old_workdir", 200),
  ],
)
def test_mutated(target, cases):
  counts = runner.check(f"fuzz.weights_cases:{target}", cases)
  assert all(counts.values()), counts  # some are read, some are refused


def test_mutated_pth():
  pytest.importorskip("torch", reason="PyTorch writes the files; not installed")
  counts = runner.check("fuzz.weights_cases:pth", 200)
  assert all(counts.values()), counts
