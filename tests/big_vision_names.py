"""All that ports/big_vision uses of big_vision, as of its commit 0127fb6."""

# {module: {name: parameters of the function, or None for what is no function}}
NAMES = {
  "big_vision.configs.common": {"parse_arg": ("arg", "lazy", "spec")},
  "big_vision.evaluators.common": {
    "eval_input_pipeline": (
      "data",
      "pp_fn",
      "batch_size",
      "devices",
      "keep_on_cpu",
      "cache",
      "prefetch",
      "warmup",
    )
  },
  "big_vision.models.vit": {
    "VANITY_NAMES": None,
    "fix_old_checkpoints": ("params",),
  },
  "big_vision.utils": {"load_params": ("ckpt", "kw")},
}
# Keys of a config that its train.py, optax.py and input_pipeline.py read.
KEYS = {
  "seed",
  "num_classes",
  "loss",
  "total_steps",
  "total_epochs",
  "input",
  "pp_modules",
  "model_name",
  "model",
  "mixup",
  "optax_name",
  "optax",
  "grad_clip_norm",
  "lr",
  "wd",
  "wd_mults",
  "schedule",
  "sharding_strategy",
  "log_training_steps",
  "ckpt_steps",
  "evals",
}
# Those that ports/big_vision/trainers/proj/vitkd/update.py reads besides.
OURS = {"teachers", "methods", "task_weight", "augment", "label_smoothing"}
