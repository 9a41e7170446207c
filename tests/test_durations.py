"""Intervals in epochs, examples and percent of a run."""

import dataclasses

import pytest

from vitkd_jax.commandline import elsewhere
from vitkd_jax.runs import history
from vitkd_jax.training import durations, experiment, lengths, sections

LENGTH = lengths.Length(steps=250, per_epoch=12.5, batch_size=64, accumulate=1)


def steps(**given):
  run = sections.Run(seed=0, epochs=20.0, batch_size=64, **given)
  return durations.in_steps(run, LENGTH)


@pytest.mark.parametrize(
  "given, found",
  [
    (dict(eval_every=7), dict(eval_every=7)),
    # Rounded as in big_vision's `steps`: 12.5 * 3 = 37.5, to even.
    (dict(eval_every_epochs=3), dict(eval_every=38)),
    (dict(eval_every_epochs=0.01), dict(eval_every=1)),
    (dict(eval_every=7, eval_every_epochs=0), dict(eval_every=0)),
    (dict(checkpoint_every_examples=6400), dict(checkpoint_every=100)),
    (dict(inspect_every_percent=0.1), dict(inspect_every=25)),
    (dict(log_every_percent=1.0, eval_every_epochs=2),
     dict(log_every=250, eval_every=25)),
  ],
)  # fmt: skip
def test_every_unit_becomes_steps(given, found):
  before = dataclasses.asdict(steps(**given))
  assert before.items() >= found.items()
  others = {"log_every", "eval_every", "inspect_every", "checkpoint_every"}
  plain = dataclasses.asdict(steps())
  for name in others - found.keys():
    assert before[name] == plain[name]


@pytest.mark.parametrize(
  "given, words",
  [
    (
      dict(eval_every_epochs=1.0, eval_every_percent=0.1),
      "expected either config.run.eval_every_epochs or "
      "config.run.eval_every_percent, got both",
    ),
    (
      dict(eval_every_percent=10.0),
      r"0 <= config.run.eval_every_percent <= 1, a share of the run, got 10",
    ),
    (dict(log_every_epochs=0.0), "0 < config.run.log_every_epochs, got 0"),
    (dict(inspect_every_examples=-1.0), "inspect_every_examples, got -1"),
  ],
)
def test_others_are_refused(given, words):
  with pytest.raises(ValueError, match=words):
    steps(**given)


def test_a_training_uses_them(tiny_config, untraced):
  tiny_config.run.eval_every_epochs = 2  # of 4 steps
  tiny_config.run.checkpoint_every_percent = 0.25  # of 12
  parts = experiment.build(tiny_config)
  assert parts.run.eval_every == 8
  assert parts.run.checkpoint_every == 3
  assert parts.run.log_every == 2


def test_every_name_is_known():
  """A run may resume with other intervals, and big_vision's names lead here."""
  names = {field.name for field in dataclasses.fields(durations.Every)}
  assert all(history.free(f"config.run.{name}") for name in names)
  assert history.free("config.run.eval_every")
  assert not history.free("config.run.epochs")
  keys = frozenset(f"run.{name}" for name in names)
  assert elsewhere.ours("ckpt_epochs", keys) == "run.checkpoint_every_epochs"
