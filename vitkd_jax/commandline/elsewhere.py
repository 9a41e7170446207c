"""What other trainers call the keys of a config."""

# Names of big_vision's configs, and of timm's options as keys: ours.
_OURS = {
  "aa": "augment.randaugment_ops",
  "base_lr": "schedule.peak",
  "ckpt_epochs": "run.checkpoint_every_epochs",
  "ckpt_examples": "run.checkpoint_every_examples",
  "ckpt_percent": "run.checkpoint_every_percent",
  "ckpt_steps": "run.checkpoint_every",
  "ckpt_timeout": "run.step_timeout",
  "clip_grad": "optimizer.clip_norm",
  "cutmix": "augment.cutmix_alpha",
  "dataset": "data.name",
  "decay_type": "schedule.kind",
  "drop_path_rate": "student.drop_path",
  "evals": "run.eval_every",
  "grad_accum_steps": "run.accumulate",
  "grad_clip_norm": "optimizer.clip_norm",
  "input.batch_size": "run.batch_size",
  "input.data.name": "data.name",
  "input.data.split": "data.train_split",
  "input.pp": "augment",
  "keep_ckpt_steps": "run.keep",
  "learning_rate": "schedule.peak",
  "log_training_epochs": "run.log_every_epochs",
  "log_training_examples": "run.log_every_examples",
  "log_training_percent": "run.log_every_percent",
  "log_training_steps": "run.log_every",
  "lr": "schedule.peak",
  "min_lr": "schedule.end",
  "mixup": "augment.mixup_alpha",
  "model": "student",
  "model_ema_decay": "run.ema_decay",
  "model_init": "student.init",
  "model_name": "student.variant",
  "num_epochs": "run.epochs",
  "opt": "optimizer.name",
  "optax_name": "optimizer.name",
  "pretrained": "student.init",
  "reprob": "augment.erase",
  "sched": "schedule.kind",
  "smoothing": "augment.label_smoothing",
  "total_epochs": "run.epochs",
  "total_steps": "run.epochs",
  "warmup_lr": "schedule.warmup_start",
  "warmup_steps": "schedule.warmup_epochs",
  "wd": "optimizer.weight_decay",
}


def ours(name: str, keys: frozenset[str]) -> str | None:
  """The key of ours that another trainer calls so, or one of that last name.

  Args:
    name: of a key without "config.", such as "input.batch_size" or "lr".
    keys: all keys of the config, such as "schedule.peak", and its sections.
  """
  parts = name.split(".")
  for start in range(len(parts)):
    for end in range(len(parts), start, -1):
      found = _OURS.get(".".join(parts[start:end]))
      if found in keys:
        return found
  same = [key for key in keys if key.rpartition(".")[2] == parts[-1]]
  return same[0] if len(same) == 1 else None
