"""Reads and writes other libraries' weights.

`load` reads timm, DeiT, DeiT III, mmpretrain, Hugging Face, big_vision and our
own files; `save` writes timm and Hugging Face folders, big_vision `.npz`, flat
files, StableHLO programs and ONNX graphs.
"""

from vitkd_jax.models.equal import fold_layerscale
from vitkd_jax.weights.files import sha256
from vitkd_jax.weights.loading import load
from vitkd_jax.weights.saving import save

__all__ = ["fold_layerscale", "load", "save", "sha256"]
