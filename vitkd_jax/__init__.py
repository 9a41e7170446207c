"""ViTKD (arXiv:2209.02432) in JAX/Flax."""

__version__ = "0.1.0"
