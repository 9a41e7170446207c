r"""DeiT on ImageNet-1k without a teacher: what a distilled student must beat.

  python -m vitkd_jax.train --config configs/baseline_i1k.py:pair=s3-ti \
      --workdir DIR

Arguments: as configs/vitkd_i1k.py, whose pair names the student. Top-1 after
300 epochs, not measured by us yet: Tiny 74.42, Small 80.55, Base 81.76 (recipe
mmcls, the paper's); 72.2, 79.9, 81.8 (recipe deit, arXiv:2012.12877).
"""

from configs import vitkd_i1k


def get_config(arg=None):
  """The config of one student alone."""
  parts = filter(None, [arg, "method=baseline"])
  return vitkd_i1k.get_config(",".join(parts))
