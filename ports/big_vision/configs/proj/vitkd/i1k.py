r"""ViTKD on ImageNet-1k in big_vision: the paper's pairs, or several teachers.

  python -m big_vision.trainers.proj.vitkd.train \
      --config CONFIGS/i1k.py:pair=s3-ti,weights=DIR --workdir W

Arguments: pair=s3-ti|b3-s|l3-b|s3+b3-ti, weights=DIR with TEACHER.npz by the
names in TEACHERS below, data_dir, batch_size, runlocal (a trial of 4 steps).

A teacher's file, with the classes' order and the exact gelu of DeiT III, which
the model here computes:

  python -m vitkd_jax.convert --to big_vision --fold-layerscale False \
      --weights hf:timm/deit3_small_patch16_224.fb_in22k_ft_in1k \
      --output DIR/deit3_small_patch16_224.npz

The recipe is the paper's (mmcls's DeiT), as configs/vitkd_i1k.py has it, but
for the learning rate, which falls to 0 and not to 1 % of its peak.
"""

import big_vision.configs.common as bvcc
import ml_collections as mlc

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEACHERS = {
  "s3": "deit3_small_patch16_224",
  "b3": "deit3_base_patch16_224",
  "l3": "deit3_large_patch16_224",
}
# The teachers and the student. Several teachers are learned from at once.
PAIRS = {
  "s3-ti": (("s3",), "deit_tiny_patch16_224"),
  "b3-s": (("b3",), "deit_small_patch16_224"),
  "l3-b": (("l3",), "deit_base_patch16_224"),
  "s3+b3-ti": (("s3", "b3"), "deit_tiny_patch16_224"),
}
# The paper's 3e-5 and 3e-6 of a sum over 196 tokens and 384 channels, as
# weights of a mean, so that they hold for another width.
MIMIC, GENERATION = 3e-5 * 196 * 384, 3e-6 * 196 * 384


def get_config(arg=None):
  """The config of one pair.

  Args:
    arg: what follows the colon of --config, see above.
  """
  arg = bvcc.parse_arg(
    arg,
    pair="s3-ti",
    weights="weights",
    data_dir="",
    batch_size=1024,
    runlocal=False,
  )
  teachers, student = PAIRS[arg.pair]
  config = mlc.ConfigDict()
  config.seed = 0
  config.num_classes = 1000
  config.loss = "softmax_xent"
  if arg.runlocal:
    config.total_steps = 4
  else:
    config.total_epochs = 300

  data = dict(name="imagenet2012", data_dir=arg.data_dir or None)
  config.input = dict(
    data=dict(**data, split="train[:64]" if arg.runlocal else "train"),
    batch_size=8 if arg.runlocal else arg.batch_size,
    cache_raw=False,
    shuffle_buffer_size=8 if arg.runlocal else 250_000,
    pp="decode_jpeg_and_inception_crop(224)"
    '|copy("label", "labels")|keep("image", "labels")',
  )
  config.pp_modules = ["ops_general", "ops_image"]
  config.augment = dict(
    flip=0.5,
    randaugment_ops=2,
    randaugment_magnitude=9.0,
    randaugment_std=0.5,
    fill=MEAN,
    erase=0.25,
    erase_mean=MEAN,
    erase_std=STD,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    label_smoothing=0.1,
  )

  config.model_name = "proj.vitkd.model"
  config.model = dict(
    variant=student,
    dtype_mm="bfloat16",
    drop_path=0.1 if arg.pair == "l3-b" else 0.0,
  )
  config.teachers = {
    name: dict(
      init=f"{arg.weights}/{TEACHERS[name]}.npz",
      model_name="proj.vitkd.model",
      model=dict(variant=TEACHERS[name], dtype_mm="bfloat16"),
      mean=MEAN,
      std=STD,
      dtype="bfloat16",
    )
    for name in teachers
  }
  share = 1 / len(teachers)
  config.methods = {}
  for name in teachers:
    config.methods[f"vitkd_{name}"] = dict(
      kind="vitkd",
      teacher=name,
      reduction="mean",
      weights=dict(mimic=share * MIMIC, generation=share * GENERATION),
    )
    config.methods[f"nkd_{name}"] = dict(
      kind="nkd", teacher=name, weights=dict(nkd=share)
    )

  config.optax_name = "scale_by_adam"
  config.optax = dict(b2=0.999)
  config.grad_clip_norm = 5.0
  config.lr = 1e-3 * config.input.batch_size / 1024
  config.wd = config.lr * 0.05  # of the peak: not multiplied by the rate
  config.wd_mults = [(".*/kernel|.*/mask_token", 1.0)]
  warmup = dict(warmup_steps=1) if arg.runlocal else dict(warmup_epochs=20)
  config.schedule = dict(decay_type="cosine", **warmup)

  config.log_training_steps = 1 if arg.runlocal else 50
  config.ckpt_steps = 2 if arg.runlocal else 1000
  pp_eval = "decode|resize_small(256)|central_crop(224)|value_range(-1, 1)"
  every = dict(log_steps=4) if arg.runlocal else dict(log_epochs=5)
  split = "validation[:64]" if arg.runlocal else "validation"
  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(**data, split=split),
      pp_fn=pp_eval
      + '|onehot(1000, key="label", key_result="labels")'
      + '|keep("image", "labels")',
      loss_name="softmax_xent",
      **every,
    )
  )
  for name in teachers:
    config.evals[name] = dict(
      type="proj.vitkd.compare",
      pred=f"compare_{name}",
      data=dict(**data, split=split),
      pp_fn=pp_eval + '|keep("image")',
      **every,
    )
  return config
