r"""ViTKD on ImageNet-1k: the paper's three pairs (arXiv:2209.02432, table 2).

  python -m vitkd_jax.train --config configs/vitkd_i1k.py:pair=s3-ti \
      --config.teachers.teacher.weights=FILE --workdir DIR

Arguments: pair=s3-ti|b3-s|l3-b, method=baseline|both|NAME+NAME, of the methods
in docs/methods.md, recipe=mmcls|deit, epochs=N, seed=N, batch_size=N, runlocal
(a trial of 2 epochs of 64 images, 8 at a time). Data: docs/data.md; machines:
docs/clusters.md.

The authors' top-1 after 300 epochs, not measured here yet:

  pair    baseline  ViTKD  NKD    both
  s3-ti   74.42     76.06  76.68  77.78
  b3-s    80.55     81.95  -      83.59
  l3-b    81.76     83.46  84.96  85.41

With recipe=deit the baselines are 72.2, 79.9 and 81.8 (arXiv:2012.12877);
compare a student with the baseline of its own recipe.
"""

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.training import sections

# (teacher, student); the paper's teachers are timm's fb_in22k_ft_in1k.
PAIRS = {
  "s3-ti": ("deit3_small_patch16_224", "deit_tiny_patch16_224"),
  "b3-s": ("deit3_base_patch16_224", "deit_small_patch16_224"),
  "l3-b": ("deit3_large_patch16_224", "deit_base_patch16_224"),
}
EXAMPLES = 1_281_167
# Arguments and their defaults.
ARGUMENTS = dict(
  pair="s3-ti",
  method="both",
  recipe="mmcls",
  epochs=300,
  seed=0,
  batch_size=1024,
  runlocal=False,
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of one pair, method and recipe.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, **ARGUMENTS)
  _, student = common.choose("pair", args["pair"], PAIRS)
  methods = common.method_names(args["method"])
  recipe = common.choose("recipe", args["recipe"], common.RECIPES)
  steps = EXAMPLES // max(args["batch_size"], 1)  # per epoch

  config = ml_collections.ConfigDict()
  config.run = common.section(
    sections.Run,
    seed=args["seed"],
    epochs=float(args["epochs"]),
    batch_size=args["batch_size"],
    log_every=50,
    eval_every=5 * steps,
    checkpoint_every=5 * steps,
    checkpoint_minutes=5.0,
  )
  config.data = common.section(
    sections.Data,
    name="imagenet2012",
    train_split="train",
    eval_split="validation",
    image_size=224,
    num_workers=16,  # a host's cores, at most
  )
  config.student = common.student(variant=student, dtype_mm="bfloat16")
  # In the paper's recipe only the Base student is regularised like DeiT's.
  recipe(config, base=args["pair"] == "l3-b")
  config.task = common.section(sections.Task)
  config.methods = common.methods(methods)
  config.teachers = {}
  if methods:
    config.teachers.teacher = teacher(args["pair"])
  return common.trial(config) if args["runlocal"] else config


def teacher(pair: str) -> ml_collections.ConfigDict:
  """A pair's teacher.

  Args:
    pair: of `PAIRS`.
  """
  variant, _ = PAIRS[pair]
  return common.teacher(
    weights=f"weights/{variant}.fb_in22k_ft_in1k.safetensors", variant=variant
  )
