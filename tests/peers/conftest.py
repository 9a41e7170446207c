"""Lets torchvision's wheel for CUDA be imported beside PyTorch for CPUs."""

import contextlib

# Before any test file, which imports timm first by its name.
with contextlib.suppress(ImportError):
  from peers import peers  # noqa: F401
