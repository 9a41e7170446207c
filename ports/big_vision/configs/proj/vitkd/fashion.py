r"""A small ViT on Fashion-MNIST, taught by ViTKD and NKD, in big_vision.

  python -m vitkd_jax.prepare fashion_mini --source vitkd_jax/data \
      --data-dir DIR --to tfrecord
  python -m vitkd_jax.convert --weights shipped:fashion_teacher \
      --to big_vision --output TEACHER.npz
  python -m big_vision.trainers.proj.vitkd.train \
      --config CONFIGS/fashion.py:teacher=TEACHER.npz,data_dir=DIR --workdir W

The quickstart of vitkd_jax: 8,000 training images, 28 x 28 pixels, the student
DeiT's form with 64 channels and four blocks. Arguments: teacher, data_dir,
runlocal (12 steps), scan, fsdp.
"""

import big_vision.configs.common as bvcc
import ml_collections as mlc


def get_config(arg=None):
  """The config of one student.

  Args:
    arg: what follows the colon of --config, see above.
  """
  arg = bvcc.parse_arg(
    arg, teacher="", data_dir="", runlocal=False, scan=False, fsdp=False
  )
  config = mlc.ConfigDict()
  config.seed = 0
  config.num_classes = 10
  config.loss = "softmax_xent"
  if arg.runlocal:
    config.total_steps = 12
  else:
    config.total_epochs = 8

  data = dict(name="fashion_mini", data_dir=arg.data_dir or None)
  # The size is stated: the file's images may have any.
  decode = "decode(channels=3)|resize(28)"
  config.input = dict(
    data=dict(**data, split="train"),
    batch_size=64,
    shuffle_buffer_size=8_000,
    pp=decode + '|copy("label", "labels")|keep("image", "labels")',
  )
  config.pp_modules = ["ops_general", "ops_image"]
  config.augment = dict(label_smoothing=0.1)

  config.model_name = "proj.vitkd.model"
  config.model = dict(
    variant="deit_pico_patch4_28", init_scheme="big_vision", scan=arg.scan
  )
  config.teachers = dict(
    nano=dict(
      init=arg.teacher,
      model_name="proj.vitkd.model",
      model=dict(variant="vit_nano_patch4_28"),
    )
  )
  config.methods = dict(
    vitkd=dict(reduction="mean", weights=dict(mimic=0.2, generation=1.0)),
    nkd=dict(weights=dict(nkd=2.0)),
  )
  if arg.fsdp:
    config.sharding_strategy = [
      (".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')
    ]

  config.optax_name = "scale_by_adam"
  config.optax = dict(b2=0.999)
  config.grad_clip_norm = 5.0
  config.lr = 1.5e-3
  config.wd = config.lr * 0.05  # of the peak: not multiplied by the rate
  config.wd_mults = [(".*/kernel|.*/mask_token", 1.0)]
  config.schedule = dict(
    warmup_steps=3 if arg.runlocal else 125, decay_type="cosine"
  )

  config.log_training_steps = 4 if arg.runlocal else 25
  config.ckpt_steps = 4 if arg.runlocal else 125
  pp_eval = decode + "|value_range(-1, 1)"
  keep = '|onehot(10, key="label", key_result="labels")|keep("image", "labels")'
  every = dict(log_steps=12 if arg.runlocal else 125)
  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(**data, split="test"),
      pp_fn=pp_eval + keep,
      loss_name="softmax_xent",
      **every,
    ),
    nano=dict(
      type="proj.vitkd.compare",
      pred="compare_nano",
      data=dict(**data, split="test"),
      pp_fn=pp_eval + '|keep("image")',
      **every,
    ),
    fewshot=dict(
      type="fewshot_lsr",
      data_dir=arg.data_dir or None,
      representation_layer="pre_logits",
      datasets={"fashion": ("fashion_mini", "train", "test")},
      pp_train=pp_eval + '|keep("image", "label")',
      pp_eval=pp_eval + '|keep("image", "label")',
      shots=(10,),
      l2_reg=2.0**10,
      display_first=[("fashion", 10)],
      **every,
    ),
  )
  return config
