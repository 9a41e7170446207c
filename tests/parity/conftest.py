"""Live comparisons with PyTorch and timm; see requirements.txt beside this.

A plain `pytest` passes them by; `pytest tests/parity` runs them.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision("highest"):
    yield
