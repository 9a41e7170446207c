r"""DeiT from two teachers on ImageNet-1k: DINOv2's features, DeiT III's logits.

  python -m vitkd_jax.train --config configs/multi_teacher_i1k.py:student=ti \
      --config.teachers.dinov2.weights=FILE \
      --config.teachers.deit3.weights=FILE --workdir DIR

DINOv2 (timm's vit_base_patch14_dinov2.lvd142m, no classes) teaches its last
patch tokens and CLS token through a LayerNorm and a linear layer each, as
Proteus does (arXiv:2407.10366). It gets 196 pixels, so that its patches of 14
are on the student's grid. DeiT III (deit3_small_patch16_224.fb_in22k_ft_in1k)
teaches its logits by NKD. Where both are regressed, `python -m
vitkd_jax.doctor` prints PHI-S's scales for config.teachers.NAME.scale;
config.task.teacher_drop=0.5 leaves teachers out by image, as UNIC does.

Arguments: student=ti|s|b, recipe=mmcls|deit, epochs=N, seed=N, batch_size=N,
runlocal (a trial of 2 epochs of 64 images, 8 at a time). No accuracy of this
combination is published or measured here.
"""

import ml_collections

from vitkd_jax.configs import common, vitkd_i1k

# {student: the pair of `vitkd_i1k` whose student it is}.
_PAIRS = {"ti": "s3-ti", "s": "b3-s", "b": "l3-b"}
_ARGUMENTS = {"student": "ti"} | {
  name: default
  for name, default in vitkd_i1k.ARGUMENTS.items()
  if name not in ("pair", "method")
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of one student.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, **_ARGUMENTS)
  pair = common.choose("student", args["student"], _PAIRS)
  given = [x for x in (arg or "").split(",") if not x.startswith("student=")]
  config = vitkd_i1k.get_config(
    ",".join([f"pair={pair}", "method=baseline", *filter(None, given)])
  )
  config.teachers.dinov2 = common.teacher(
    weights="weights/vit_base_patch14_dinov2.lvd142m.safetensors",
    variant="vit_base_patch14_dinov2",
    image_size=196,
    resize_posemb=True,
  )
  config.teachers.deit3 = common.teacher(
    weights="weights/deit3_small_patch16_224.fb_in22k_ft_in1k.safetensors",
    variant="deit3_small_patch16_224",
  )
  shared = dict(
    kind="regress",
    teacher="dinov2",
    place="encoded",
    projector="ln_linear",
    weights=dict(regress=1.0),
  )
  config.methods = common.methods(
    ("nkd", "patches", "cls"),
    nkd=dict(teacher="deit3"),
    patches=shared,
    cls=shared | dict(tap="cls"),
  )
  return config
