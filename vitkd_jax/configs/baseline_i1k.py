r"""DeiT on ImageNet-1k without a teacher: the baseline of a distilled student.

  python -m vitkd_jax.train --config configs/baseline_i1k.py:pair=s3-ti \
      --workdir DIR

Arguments: as for configs/vitkd_i1k.py, whose pair names the student. Published
top-1 after 300 epochs, not measured here yet: Tiny 74.42, Small 80.55, Base
81.76 (recipe mmcls, the paper's); 72.2, 79.9, 81.8 (recipe deit,
arXiv:2012.12877).
"""

import ml_collections

from vitkd_jax.configs import vitkd_i1k


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of one student alone.

  Args:
    arg: what follows the colon of --config, see above.
  """
  parts = filter(None, [arg, "method=baseline"])
  return vitkd_i1k.get_config(",".join(parts))
